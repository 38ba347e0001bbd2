"""A model's predictive entropy over responses, from its hidden states: no logits, a forward a batch of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluation.generating.checkpoint import open_checkpoint
from evaluation.generating.prompts import template_digest
from evaluation.responses import Response
from expo_kernels import Batch, HeadOptions, TokenStats, token_stats
from expo_kernels.head import attach, check_head
from expo_kernels.layout import from_padded
from train.data import Dropped, TokenOptions
from train.data.texts import Content, Text
from train.data.tokens import Tokeniser
from train.layouts import Ids, pad_sequences


class Scored(NamedTuple):
    """A response under a model; means over its tokens, the prompt's are not among them."""

    entropy: float  # nats: of the model's whole distribution before each token
    surprisal: float  # nats: -log p of the token that came
    tokens: int


class Continuation(NamedTuple):
    prompt: Ids  # at least one token
    response: Ids  # at least one token


class Scores(NamedTuple):
    each: list[Scored]
    other_tokens: int  # responses whose text makes another number of tokens than were sampled
    other_template: int  # responses in a conversation that was put into words otherwise when they were sampled


@dataclass(frozen=True, eq=False)
class _Stats:
    """What an attached model is called with: statistics of single tokens in place of logits."""

    batch: Batch

    def __call__(self, hidden: Tensor, weight: Tensor, head: HeadOptions) -> TokenStats:
        return token_stats(hidden, weight, self.batch, head=head)


@torch.no_grad()
def predictive_entropy(
    model: PreTrainedModel, sequences: Sequence[Continuation], *, batch_tokens: int, pad: int
) -> list[Scored]:
    """A forward a batch of at most `batch_tokens` padded tokens (or one sequence), at temperature 1.

    model: with the fused head attached (expo_kernels.head.attach). -> in the order of `sequences`.
    """
    for i, (prompt, response) in enumerate(sequences):
        if not prompt or not response:
            raise ValueError(
                f"predictive_entropy: want a token of prompt and of response, got {len(prompt)} and {len(response)} "
                f"in sequence {i}"
            )
    found: list[Scored | None] = [None] * len(sequences)
    with tqdm(total=len(sequences), desc="entropy", disable=None) as bar:
        for places in token_batches([len(p) + len(r) for p, r in sequences], batch_tokens):
            for place, scored in zip(places, _forward(model, [sequences[i] for i in places], pad), strict=True):
                found[place] = scored
            bar.update(len(places))
    assert None not in found, "every sequence is in one batch"
    return [scored for scored in found if scored is not None]


def token_batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Places of sequences, the longest first: as many as fit `limit` tokens with padding, at least one."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _forward(model: PreTrainedModel, sequences: Sequence[Continuation], pad: int) -> list[Scored]:
    ids, mask, labels = pad_sequences(sequences, pad)  # [S, T] each
    device = model.device
    batch = from_padded(labels, roles=1).to(device)
    stats = model(input_ids=ids.to(device), attention_mask=mask.to(device), scoring=_Stats(batch))
    entropy, logp = (_means(values, batch).tolist() for values in (stats.entropy, stats.logp))
    lengths = batch.host.lengths
    return [Scored(e, -p, n) for e, p, n in zip(entropy, logp, lengths, strict=True)]


def _means(values: Tensor, batch: Batch) -> Tensor:
    """[N] -> [S], in float64."""
    sums = torch.zeros(len(batch.lengths), dtype=torch.float64, device=values.device)
    return sums.index_add(0, batch.segments, values.double()) / batch.lengths


class Scorer:
    """A model's folder or hub name, loaded, with the fused head attached and checked; its tokenizer."""

    def __init__(
        self, path: str, *, chat_template: str | None = None, template_args: Mapping[str, Any] | None = None,
        revision: str | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "auto" if device.type == "cuda" else "float32"
        self._checkpoint, self.tokenizer = open_checkpoint(
            path, dtype=dtype, chat_template=chat_template, revision=revision, trust_remote_code=trust_remote_code
        )
        self.path = path
        number = getattr(torch, self._checkpoint.dtype)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=number, revision=revision, trust_remote_code=trust_remote_code
        )
        self._model: Any = attach(model).eval().to(device)
        check_head(self._model, self._checkpoint.vocabulary, device, number)
        args = dict(template_args or {})
        self._template = template_digest(self.tokenizer, args)
        self._tokenise = Tokeniser(self.tokenizer, TokenOptions(chat_template_args=args))

    def __call__(self, responses: Sequence[Response], batch_tokens: int) -> Scores:
        sequences = [self.continuation(response) for response in responses]
        found = predictive_entropy(self._model, sequences, batch_tokens=batch_tokens, pad=self._checkpoint.pad)
        pairs = zip(responses, sequences, strict=True)
        return Scores(
            found, sum(self._other_tokens(response, tokens.response) for response, tokens in pairs),
            sum(map(self._other_template, responses)),
        )  # fmt: skip

    def _other_tokens(self, response: Response, tokens: Ids) -> bool:
        return response.tokens not in (None, len(tokens) - (tokens[-1] in self._checkpoint.eos))

    def _other_template(self, response: Response) -> bool:
        """A plain prompt goes through none; None where the file does not say."""
        known = response.sampling.get("template")
        return not isinstance(response.prompt, str) and known not in (None, self._template)

    def continuation(self, response: Response) -> Continuation:
        """Tokens as the trainer has them. The end's token is scored where the model said it: not after a cut."""
        answer: Content = response.response
        if not isinstance(response.prompt, str):
            answer = [{"role": "assistant", "content": response.response}]
        where = f"prompt {response.prompt_id}, sample {response.sample}"
        try:
            text = Text(response.prompt, [answer], {}, {}, response.tools, dict(response.template_args))
            made = self._tokenise(text)
        except Exception as error:  # a template refuses by errors of its own
            raise ValueError(f"{where}: {error}") from error
        if isinstance(made, Dropped):
            raise ValueError(f"{where}: {made.cause}")
        (tokens,) = made.responses
        ends = [i for i, token in enumerate(tokens) if token in self._checkpoint.eos]
        if ends:  # a template may write more after it
            tokens = tokens[: ends[-1] + (response.finish != "length")]
        limit, length = self._checkpoint.positions, len(made.prompt) + len(tokens)
        if limit is not None and length > limit:
            raise ValueError(f"{where}: want at most the model's {limit} positions, got {length} tokens")
        return Continuation(made.prompt, tokens)
