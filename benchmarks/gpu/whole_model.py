"""The model of whole_step.py and its step: forward, one of two heads, backward, AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from expo_kernels import Batch
from expo_kernels.head import Scoring, attach
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective

BETA = 0.1
PROMPT = 0.25  # of each sequence
BYTES_A_WEIGHT = 8  # bf16: itself, its gradient, AdamW's two states
LONGEST = 1 << 18


class Body(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    def weights(self, layers: int) -> int:
        """Norms left out."""
        kv = self.hidden * self.kv_heads // self.heads
        layer = 2 * self.hidden * (self.hidden + kv) + 3 * self.hidden * self.intermediate
        return layers * layer + 2 * self.vocabulary * self.hidden


BODIES = {"llama3-8b": Body(4096, 32, 32, 8, 14336, 128256), "tiny": Body(64, 4, 4, 2, 128, 512)}


class Pair(NamedTuple):
    ids: Tensor  # [2, T]
    labels: Tensor  # [2, T], shifted: what each position predicts, -100 in the prompt and at the end
    batch: Batch
    reference: Tensor  # [2]: the policy's own log-probs as it starts


class Stepper:
    """A model, its optimizer, and steps of one pair of whatever length."""

    def __init__(self, body: Body, layers: int, device: torch.device, head: str) -> None:
        self.body, self.device, self.head = body, device, head
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=body.vocabulary, hidden_size=body.hidden, intermediate_size=body.intermediate,
            num_hidden_layers=layers, num_attention_heads=body.heads, num_key_value_heads=body.kv_heads,
            max_position_embeddings=LONGEST, tie_word_embeddings=False, use_cache=False,
        )  # fmt: skip
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model: Any = attach(model).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.objective = make_objective("dpo", beta=BETA)

    def step(self, length: int) -> Callable[[], object]:
        pair = self._pair(length)

        def run() -> None:
            self._loss(pair, self.head).backward()
            self.optimizer.step()
            self.forget()

        return run

    def loss_and_norms(self, length: int, head: str) -> tuple[float, float, float]:
        """The loss, and the norms of the gradients of the head's weight and of the embedding."""
        loss = self._loss(self._pair(length), head)
        loss.backward()
        weights = (self.model.get_output_embeddings().weight, self.model.get_input_embeddings().weight)
        norms = [float(weight.grad.float().norm()) for weight in weights]
        self.forget()
        return float(loss.detach()), norms[0], norms[1]

    def forget(self) -> None:
        """The gradients of a step, also of one that ended in the middle."""
        self.optimizer.zero_grad(set_to_none=True)

    def _pair(self, length: int) -> Pair:
        ids = torch.randint(0, self.body.vocabulary, (2, length), generator=torch.Generator().manual_seed(length))
        labels = ids.roll(-1, 1)
        labels[:, -1] = -100
        labels[:, : int(PROMPT * length)] = -100
        ids, batch = ids.to(self.device), from_padded(labels).to(self.device)
        with torch.no_grad():
            reference = self.model(input_ids=ids, scoring=Scoring(batch=batch))
        return Pair(ids, labels.to(self.device), batch, reference)

    def _loss(self, pair: Pair, head: str) -> Tensor:
        if head == "ours":
            scoring = Scoring(batch=pair.batch, objective=self.objective, reference=pair.reference)
            return self.model(input_ids=pair.ids, scoring=scoring).loss
        logits = self.model(input_ids=pair.ids).logits  # of all positions, as one writes it
        logp = logits.float().log_softmax(-1).gather(2, pair.labels.clamp(min=0)[..., None])[..., 0]
        chosen, rejected = ((logp * (pair.labels != -100)).sum(1) - pair.reference).unbind()
        return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected))
