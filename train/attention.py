"""How the sequences of a packed row are kept apart: by which code of the attention, and what that is told.

mask      torch's sdpa with a block-diagonal mask: everywhere, quadratic in the row; can share prompts
varlen    torch's attention over sequences of many lengths: on a GPU
flash     flash-attn, where that is installed
padded    no packed rows
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from expo_kernels.head import Scoring
from train.layouts import Group, Inputs, Layout
from train.settings import ModelSettings

VARLEN = "expo_varlen"  # what transformers knows our use of torch's varlen_attn by


class Packing(NamedTuple):
    kind: str  # padded, mask, varlen, flash
    implementation: str  # for from_pretrained
    shared_prompts: bool
    why: str

    @property
    def packed(self) -> bool:
        return self.kind != "padded"

    def model_inputs(self, inputs: Inputs) -> dict[str, Any]:
        """The keyword arguments of the model, on the device where the inputs are."""
        if self.kind == "padded":
            return {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
        shared = {"input_ids": inputs.input_ids, "position_ids": inputs.position_ids}
        assert inputs.parts is not None, "a packed layout makes them"
        if self.kind == "mask":
            return {**shared, "attention_mask": self._mask(inputs.parts)}
        ends, longest = inputs.ends, inputs.longest
        lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return {**shared, **lengths}

    def _mask(self, parts: Tensor) -> Tensor:
        """parts [2, L] -> [1, 1, L, L]; eager attention adds it, sdpa reads it as a truth."""
        seen = block_mask(parts)[None, None]
        if self.implementation != "eager":
            return seen
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


def block_mask(parts: Tensor) -> Tensor:
    """parts [2, L] -> [L, L]: whether token i sees token j: an earlier one of its segment, of the prompt or of its own
    response."""
    segment, part = parts
    earlier = torch.ones(len(part), len(part), dtype=torch.bool, device=parts.device).tril()
    return earlier & (segment[:, None] == segment) & ((part == 0) | (part[:, None] == part))


def choose(settings: ModelSettings, device: torch.device) -> Packing:
    """What `packing` and `shared_prompts` come to on this machine, and why."""
    asked, own = settings.packing, settings.attn_implementation
    if asked == "none":
        return Packing("padded", own, False, "packing: none")
    kind, why = (asked, "asked for") if asked != "auto" else _best(settings, device)
    if kind in ("varlen", "flash") and settings.shared_prompts:
        if asked != "auto":
            raise ValueError(f"shared_prompts: want packing mask, which can express it, got {asked}")
        kind, why = "mask", f"shared_prompts, which {kind} cannot express"
    implementation = {"varlen": VARLEN, "flash": "flash_attention_2"}.get(kind, own)
    if kind == "flash" and own == "flash_attention_3":
        implementation = own
    if kind == "mask" and own.startswith("flash"):
        raise ValueError(f"packing: want attn_implementation sdpa or eager for a mask, got {own}")
    if kind == "varlen":
        register_varlen()
    return Packing(kind, implementation, settings.shared_prompts, why)


def _best(settings: ModelSettings, device: torch.device) -> tuple[str, str]:
    if device.type != "cuda":
        return "mask", "the only one that trains without a GPU"
    if importlib.util.find_spec("flash_attn") is not None:
        return "flash", "flash-attn is installed"
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return "varlen", "flash-attn is not installed, and torch has varlen_attn"
    return "mask", "neither flash-attn nor torch's varlen_attn is here"


def check_windows(config: Any, packing: Packing, longest: int) -> None:
    """A mask of ours takes the place of the model's own, sliding windows included."""
    window = getattr(config.get_text_config(), "sliding_window", None)
    if packing.kind in ("mask", "varlen") and window is not None and longest > window:
        raise ValueError(
            f"packing: want sequences of at most the model's sliding window of {window} tokens, got {longest}; "
            "packing: none, or flash, keeps the window"
        )


def register_varlen() -> None:
    """Transformers hands our function what model_inputs put beside the ids."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, L, d], key and value [1, H', L, d] -> [1, L, H, d]."""
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("varlen attention: want plain attention, got a soft cap or sinks; packing: mask has them")
    grouped = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None or max_length_q is None:
        if attention_mask is not None or query.shape[2] != key.shape[2]:
            raise ValueError("varlen attention: want a packed row or whole sequences without padding (sdpa has more)")
        whole = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return whole.transpose(1, 2), None
    from torch.nn.attention import varlen

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [L, H, d]
    out = varlen.varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0),
        enable_gqa=grouped,
    )  # fmt: skip
    return cast(Tensor, out)[None], None


@torch.no_grad()
def check_packing(
    model: nn.Module, packing: Packing, vocabulary: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Raises ValueError where a sequence's log-prob in a packed row is another than alone: for a model that does not
    read its positions or its mask, or code of the attention that mixes sequences. Every rank calls it."""
    if not packing.packed:
        return
    tokens = (torch.arange(24) * 7919 % vocabulary).tolist()
    group, other = Group(tokens[:4], [tokens[4:9], tokens[9:12]]), Group(tokens[12:17], [tokens[17:18], tokens[18:24]])
    layout = Layout(True, packing.shared_prompts)
    got = _logps(model, packing, layout, [group, other], device).view(2, 2)
    alone = [Group(each.prompt, [response]) for each in (group, other) for response in each.responses]
    want = torch.cat([_logps(model, packing, layout, [one], device) for one in alone]).view(2, 2).T
    worst, allowed = float((got - want).abs().max()), 32 * torch.finfo(dtype).eps * max(1.0, float(want.abs().max()))
    if not worst <= allowed:
        raise ValueError(
            f"packing: a sequence in a packed row ({packing.kind}) scores up to {worst:.3g} nats other than alone "
            f"(allowed {allowed:.2g}), so this model's attention mixes sequences; use packing: none"
        )


def _logps(model: nn.Module, packing: Packing, layout: Layout, groups: list[Group], device: torch.device) -> Tensor:
    inputs, batch = layout(groups)
    moved = packing.model_inputs(inputs.map(lambda x: x.to(device)))
    return model(**moved, scoring=Scoring(batch=batch.to(device))).float()
