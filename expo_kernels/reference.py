"""The truth: the whole pipeline in plain torch, any dtype up to float64, gradients by autograd.

It shares no code with ops or kernels, and of an objective it uses the loss only: coefficients are autograd's. In
float64 it is what every test compares with; in the input's dtype it is the plain PyTorch that sets the allowed error.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from expo_kernels.layout import default_divisors, with_declared_weights
from expo_kernels.types import Batch, Counts, ForwardOnly, HeadOptions, Objective, SequenceLogprobs


def token_logprob(hidden: Tensor, weight: Tensor, batch: Batch, head: HeadOptions | None = None) -> Tensor:
    """-> logp [N]. The logits [N, V] in the input's dtype, then fp32 (float64 stays), as models do."""
    return log_softmax(hidden, weight, batch, head).gather(1, batch.labels[:, None])[:, 0]


def log_softmax(hidden: Tensor, weight: Tensor, batch: Batch, head: HeadOptions | None = None) -> Tensor:
    """-> [N, V]."""
    head = head or HeadOptions()
    h = hidden.reshape(-1, hidden.shape[-1])[batch.rows]
    bias = None if head.bias is None else head.bias.to(h.dtype)
    z = torch.nn.functional.linear(h, weight, bias) * head.logit_scale
    if head.softcap is not None:
        z = torch.tanh(z / head.softcap) * head.softcap
    return torch.log_softmax(z if z.dtype == torch.float64 else z.float(), dim=-1)


def sequence_logprob(hidden: Tensor, weight: Tensor, batch: Batch, head: HeadOptions | None = None) -> Tensor:
    """-> seq [S], weighted by the batch's token weights."""
    return _sequence_sums(token_logprob(hidden, weight, batch, head), batch)


def preference_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch,
    objective: Objective,
    *,
    reference: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
    divisors: Counts | None = None,
    head: HeadOptions | None = None,
) -> Tensor:
    """-> the scalar loss; the objective's divisor, anchors and inactive groups as in fused_expo_loss."""
    batch = with_declared_weights(objective, batch, "reference")
    seq = sequence_logprob(hidden, weight, batch, head)
    return objective_loss(seq, batch, objective, reference, columns, divisors)


def objective_loss(
    seq: Tensor,
    batch: Batch,
    objective: Objective,
    reference: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
    divisors: Counts | None = None,
) -> Tensor:
    """seq [S] -> the scalar loss."""
    host, needs = batch.host, objective.needs
    K, P, A = host.roles, host.groups, host.anchors
    divisors = divisors or default_divisors(host)
    lengths = batch.lengths[: K * P].view(K, P)
    active = (lengths > 0).all(0)
    seen = SequenceLogprobs(
        policy=seq[: K * P].view(K, P),
        lengths=lengths.clamp(min=1).to(seq.dtype),
        reference=None if reference is None else _grouped(reference.to(seq.dtype), K, P),
        columns={
            name: (column.view(K, P) if name in needs.sequence_columns else column).to(seq.dtype)
            for name, column in (columns or {}).items()
        },
        divisors=divisors,
        active=active,
        forward_only=_forward_only(seq, batch, reference) if needs.forward_only else None,
    )
    loss = torch.where(active, objective(seen).loss, 0.0).sum()
    loss = loss / (divisors.tokens if needs.divisor == "tokens" else divisors.groups)
    if batch.anchor_weights is not None and needs.anchor_scale is not None:
        anchors = seq[K * P : K * P + A] * batch.anchor_weights.to(seq.dtype)
        loss = loss + needs.anchor_scale * anchors.sum() / divisors.anchors
    return loss


def _forward_only(seq: Tensor, batch: Batch, reference: Tensor | None) -> ForwardOnly:
    F = batch.host.forward_only
    return ForwardOnly(seq[-F:], None if reference is None else reference.to(seq.dtype)[-F:], batch.lengths[-F:] > 0)


def _sequence_sums(logp: Tensor, batch: Batch) -> Tensor:
    if batch.token_weights is not None:
        logp = logp * batch.token_weights.to(logp.dtype)
    ends = batch.offsets.tolist()
    return torch.stack([logp[a:b].sum() for a, b in itertools.pairwise(ends)])


def _grouped(reference: Tensor, K: int, P: int) -> Tensor:
    return reference[..., : K * P].reshape(*reference.shape[:-1], K, P)
