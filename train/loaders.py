"""Loaders of micro-batches: the orders that settings ask for, in torch's DataLoader."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch.utils.data import DataLoader

from train.batches import Collator, Corpus
from train.launch import rank, world
from train.order import Anchors, Order, StepOrder, TokenOrder
from train.settings import Settings


class Loader(DataLoader):
    """Not accelerate's: the order knows the ranks, and a rank without examples stays without. The Trainer tells a
    loader its epoch; after skipping, on resume, it finds the order by itself."""

    def set_epoch(self, epoch: int) -> None:
        cast(Order, self.batch_sampler).set_epoch(epoch)


class Feed(NamedTuple):
    corpus: Corpus
    order: Order

    def loader(self, collator: Collator, workers: int, pin: bool) -> Loader:
        return Loader(self.corpus, batch_sampler=self.order, collate_fn=collator, num_workers=workers, pin_memory=pin)


def training_feed(settings: Settings, corpus: Corpus, shared_prompts: bool) -> Feed:
    own = settings.training
    count = 0 if corpus.anchors is None else len(corpus.anchors)
    anchors = Anchors(len(corpus), count, settings.data.per_device_anchors, own.seed)
    if own.max_tokens is None:
        per_rank = own.per_device_train_batch_size
        order: Order = StepOrder(
            len(corpus), per_rank=per_rank, ranks=world(), rank=rank(), seed=own.seed, anchors=anchors
        )
    else:
        order = TokenOrder(
            corpus.lengths(shared_prompts), micros=own.gradient_accumulation_steps, ranks=world(), rank=rank(),
            budget=own.max_tokens - corpus.longest_anchor * anchors.per_rank, seed=own.seed, anchors=anchors,
        )  # fmt: skip
    return Feed(corpus, order)


def evaluation_feed(settings: Settings, corpus: Corpus) -> Feed:
    per_rank = settings.training.per_device_eval_batch_size
    return Feed(corpus, StepOrder(len(corpus), per_rank=per_rank, ranks=world(), rank=rank()))
