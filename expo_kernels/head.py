"""The fused loss inside a Hugging Face model, at the module that owns the head's weight.

    attach(model)                                         # in place: no wrapper, no key of the state dict changes
    out = model(input_ids=ids, scoring=Scoring(batch=batch, objective=objective))     # LossOutput, no logits
    seq = model(input_ids=ids, scoring=Scoring(batch=batch))                          # [S] summed log-probs

Without `scoring` the model is what it was: generation and saving do not notice. The head runs the kernels in its own
forward, so whatever gathers a module's parameters around its forward (ZeRO-3's hooks) gathers the head's around that
alone. check_head compares the model's own logits with what the head computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_padded
from expo_kernels.logprob import sequence_logprob, token_logprob
from expo_kernels.types import IGNORE, Batch, Divisors, Execution, HeadOptions, LossOutput, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Scoring", "attach", "check_head", "detach"]

Hidden = Tensor  # [S, T, D], or [1, M, D] for packed sequences


@dataclass(frozen=True, eq=False, kw_only=True)
class Scoring:
    """What a model is asked for in place of logits; the fields are preference_loss's.

    The batch's labels are what the hidden states of all positions predict: [S, T] for input_ids [S, T], shifted by one,
    the last column -100 (or packed alike). Without an objective: the sequences' summed log-probs [S].
    """

    batch: Batch
    objective: Objective | None = None
    reference: Tensor | None = None
    columns: Mapping[str, Tensor] | None = None
    divisor: float | Tensor | Divisors | None = None
    execution: Execution = Execution()
    stats: tuple[str, ...] = ()
    router_weight: float = 0.0  # of a mixture of experts: what its balancing loss is worth beside the objective's

    def __call__(self, hidden: Hidden, weight: Tensor, head: HeadOptions) -> LossOutput | Tensor:
        if self.objective is None:
            return sequence_logprob(hidden, weight, self.batch, head=head, execution=self.execution)
        return preference_loss(
            hidden, weight, self.batch, self.objective, reference=self.reference, columns=self.columns,
            divisor=self.divisor, head=head, execution=self.execution, stats=self.stats,
        )  # fmt: skip


Compute = Callable[[Hidden, Tensor, HeadOptions], Any]  # a Scoring, or anything that is called like one


class _FusedModel:
    """What attach puts before a causal model's own class."""

    def forward(self, *args: Any, scoring: Compute | None = None, **kwargs: Any) -> Any:
        if scoring is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if kwargs.pop("labels", None) is not None:
            raise ValueError("a model with scoring: want the labels in scoring.batch, got labels as well")
        body = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        router_weight = getattr(scoring, "router_weight", 0.0)
        more = {"output_router_logits": True} if router_weight else {}
        out = body(*args, **{**kwargs, **more, "use_cache": False})
        made = self.get_output_embeddings()(out[0], scoring)  # type: ignore[attr-defined]
        if not router_weight:
            return made
        return made._replace(loss=made.loss + router_weight * _balancing(self, out, kwargs.get("attention_mask")))


class _FusedHead:
    """What attach puts before the output head's own class."""

    logit_options: HeadOptions

    def forward(self, hidden: Hidden, scoring: Compute | None = None) -> Any:
        if scoring is None:
            return super().forward(hidden)  # type: ignore[misc]
        options = self.logit_options
        head = HeadOptions(bias=self.bias, softcap=options.softcap, logit_scale=options.logit_scale)  # type: ignore[attr-defined]
        return scoring(hidden, self.weight, head)  # type: ignore[attr-defined]


def _balancing(model: Any, out: Any, mask: Tensor | None) -> Tensor:
    """The model's own balancing loss of its experts, of the tokens that a mask [S, T] has."""
    function = getattr(sys.modules[type(model).__mro__[2].__module__], "load_balancing_loss_func", None)
    logits = getattr(out, "router_logits", None)
    if function is None or logits is None:
        raise ValueError(f"router_weight: want a mixture of experts with router logits, got {type(model).__name__}")
    tokens = mask if mask is not None and mask.ndim == 2 else None
    return function(logits, model.num_experts, model.num_experts_per_tok, tokens)


def attach(model: PreTrainedModel) -> PreTrainedModel:
    """Gives the model and its output head subclasses of their own classes, in place; -> the model.

    With an adapter (peft) pass `peft_model.get_base_model()`. A head that is no plain linear layer is refused.
    """
    if isinstance(model, _FusedModel):
        return model
    options = _logit_options(model)
    for linear in _linear_heads(model):
        linear.__class__ = _subclass(_FusedHead, type(linear))
        linear.logit_options = options  # type: ignore[assignment]
    model.__class__ = _subclass(_FusedModel, type(model))
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Undoes attach."""
    if isinstance(model, _FusedModel):
        for linear in _linear_heads(model):
            del linear.logit_options
            linear.__class__ = type(linear).__mro__[2]
        model.__class__ = type(model).__mro__[2]
    return model


def _subclass(mixin: type, own: type) -> type:
    """The name stays: save_pretrained writes it into the configuration."""
    return type(own.__name__, (mixin, own), {"__module__": own.__module__, "__qualname__": own.__qualname__})


def _linear_heads(model: PreTrainedModel) -> list[nn.Linear]:
    """The output head; under peft's modules_to_save the frozen one and its trained copies."""
    where = f"attach: {type(model).__name__}"
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{where}: want a decoder, got a model with an encoder as well")
    if getattr(model, getattr(model, "base_model_prefix", "") or "?", model) is model:
        raise ValueError(f"{where}: want a model with a body and a head, found no body")
    head = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):
        found = [head.original_module, *head.modules_to_save.values()]
    elif hasattr(head, "lora_A"):
        raise ValueError(
            f"{where}: the output head has a low-rank adapter, whose product with the weight the fused loss does not "
            "form; train the head whole (modules_to_save) or leave it out of the adapter's target_modules"
        )
    else:
        found = [head]
    for linear in found:
        if not isinstance(linear, nn.Linear) or type(linear).forward not in (nn.Linear.forward, _FusedHead.forward):
            raise ValueError(f"{where}: want a plain linear output head, got {type(linear).__name__}")
    return found


def _logit_options(model: PreTrainedModel) -> HeadOptions:
    """What the configuration says of the logits: Gemma's soft cap, Cohere's and Granite's scales."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    divided = getattr(config, "logits_scaling", None)
    return HeadOptions(
        softcap=getattr(config, "final_logit_softcapping", None) or None,
        logit_scale=float(1.0 if scale is None else scale) / float(1.0 if divided is None else divided),
    )


@torch.no_grad()
def check_head(
    model: nn.Module, vocabulary: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Raises ValueError where the model's own logits are others than the head's, on a probe of a few tokens.

    model is what is called in training (an engine around an attached model, on every rank alike), dtype what it
    computes in. The probe runs twice, once with hidden states scaled until the logits are large, since a soft cap does
    not show on small ones.
    """
    ids = (torch.arange(_PROBE) * 7919 % vocabulary)[None]  # [1, T]
    batch = from_padded(torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE), roles=1).to(device)
    ids, training = ids.to(device), model.training
    model.eval()
    try:
        size = _differ(model, ids, batch, dtype, 1.0)
        _differ(model, ids, batch, dtype, _LARGE / max(size, 1e-6))
    finally:
        model.train(training)


_PROBE, _LARGE = 12, 40.0


def _differ(model: nn.Module, ids: Tensor, batch: Batch, dtype: torch.dtype, factor: float) -> float:
    """-> the largest logit. Both sides round: the model its logits, to its own dtype."""
    with _scaled(model, factor):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # [T - 1, V]
        ours = model(input_ids=ids, scoring=_TokenLogprob(batch)).float()  # [T - 1]
    size = float(logits.abs().max())
    theirs = logits.log_softmax(-1).gather(1, batch.labels[:, None])[:, 0]
    worst, allowed = float((ours - theirs).abs().max()), 8 * torch.finfo(dtype).eps * max(size, 1.0)
    if not worst <= allowed:
        raise ValueError(
            "check_head: the model's own log-probs differ from those of its hidden states and head by up to "
            f"{worst:.3g} nats (logits up to {size:.3g}, allowed {allowed:.2g}); it changes its logits, or the hidden "
            "states before its head, in a way this version does not know, so the fused loss cannot train it"
        )
    return size


@dataclass(frozen=True, eq=False)
class _TokenLogprob:
    """The probe's: log-probs of the single tokens [N]."""

    batch: Batch

    def __call__(self, hidden: Hidden, weight: Tensor, head: HeadOptions) -> Tensor:
        return token_logprob(hidden, weight, self.batch, head=head)


@contextmanager
def _scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """The head's input, times factor."""
    hooks = [
        module.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]))
        for module in model.modules()
        if isinstance(module, _FusedHead)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
