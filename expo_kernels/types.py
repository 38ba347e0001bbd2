"""The values that cross layers. They hold data.

Vocabulary, the same in every file:
    N scored tokens   S sequences   P groups (pairs, most often)   K roles, the sequences of one group   A anchors
    M rows of hidden states   D hidden size   V vocabulary   R rows of one chunk
    h hidden, w head weight, y label, z logit, logp log-probability of the label, seq its sum over a sequence,
    c = dL/dseq, d_x the gradient of x
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from expo_kernels.sparsity import Sparsity, SparsityReport

IGNORE = -100  # the label of a token that is not scored


@dataclass(frozen=True)
class HostLayout:
    """What the host knows of a batch, so that the device is never asked."""

    lengths: tuple[int, ...]  # [S] scored tokens of each sequence
    roles: int  # K
    groups: int  # P; the first K * P sequences are the groups', role by role
    anchors: int  # A; the next A sequences
    forward_only: int  # the last sequences: scored, never trained
    leading_shape: tuple[int, ...] | None  # of the padded labels; None for packed ones
    row_count: int | None  # rows that hidden must have; None where the caller named the rows
    max_row: int  # -1 without tokens
    max_label: int  # -1 without tokens
    repeated_rows: bool  # some hidden row predicts several scored tokens
    mean_weights: bool  # the token weights already turn sums into means
    weighted_by: object | None = None  # the objective whose declared token weights are among them

    @property
    def grouped_sequences(self) -> int:
        return self.roles * self.groups


@dataclass(frozen=True, eq=False)
class Batch:
    """The scored tokens of a batch, sequence by sequence; made and validated by expo_kernels.layout.

    Sequence s = k * P + p is role k of group p (for pairs: the chosen half first); then come anchors, then
    forward-only sequences.
    """

    rows: Tensor  # [N] int64, the row of the flattened hidden states that predicts the token; repeats allowed
    labels: Tensor  # [N] int64
    segments: Tensor  # [N] int64, the sequence of each token
    offsets: Tensor  # [S+1] int64, where each sequence begins
    lengths: Tensor  # [S] int64
    by_group: Tensor | None  # [N] int64, the tokens in group order; None where that is the order they have
    token_weights: Tensor | None  # [N] fp32
    anchor_weights: Tensor | None  # [A] fp32
    host: HostLayout

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """What a DataLoader with pin_memory=True calls."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        changed: dict[str, Any] = {name: change(value) for name, value in values if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed)


class Divisors(NamedTuple):
    """What sums are divided by; a trainer passes the step's global counts. Every count that the loss divides by must be
    named, for one left to the batch beside one of the step would be neither; more may be."""

    groups: float | Tensor | None = None  # active groups
    anchors: float | Tensor | None = None  # non-empty anchors
    tokens: float | Tensor | None = None  # scored tokens of the first role's sequences in active groups


class Counts(NamedTuple):
    """Divisors with nothing left open."""

    groups: float | Tensor
    anchors: float | Tensor
    tokens: float | Tensor


class ForwardOnly(NamedTuple):
    """The batch's last sequences, scored and never trained, for an objective that declares them."""

    policy: Tensor  # [F]
    reference: Tensor | None  # [F]
    active: Tensor  # [F] bool: not empty


class SequenceLogprobs(NamedTuple):
    """What an objective sees. Always sums. Inactive groups are masked and groups that are not finite poisoned by the
    engine afterwards; only an objective that couples groups has to look at `active` itself."""

    policy: Tensor  # [K, P]
    lengths: Tensor  # [K, P] in the dtype of policy, at least 1
    reference: Tensor | None  # [K, P], or [R, K, P] with several references
    columns: Mapping[str, Tensor]  # [P], or [K, P] for columns declared per sequence; in the dtype of policy
    divisors: Counts  # for losses that mix two means
    active: Tensor  # [P] bool: no sequence of the group is empty
    forward_only: ForwardOnly | None = None  # where declared


class Terms(NamedTuple):
    """What an objective returns, before any division. LossTerms is what a caller gets."""

    loss: Tensor  # [P]
    coefficients: Tensor  # [K, P], d loss / d policy in closed form
    rewards: Tensor  # [K, P]
    margin: Tensor | None = None  # [P]

    def check(self, where: str, K: int, P: int) -> None:
        """Raises ValueError where a shape is not what the engine reads."""
        for name, want in (("loss", (P,)), ("coefficients", (K, P)), ("rewards", (K, P)), ("margin", (P,))):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != want:
                raise ValueError(f"{where}: want {name} of shape {want}, got {tuple(value.shape)}")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective declares. References, columns and anchors that it does not declare may not be passed."""

    roles: int | None = 2  # sequences of a group; None: any number
    reference: bool = False
    several_references: bool = False  # takes [R, S] references as well
    columns: tuple[str, ...] = ()  # one number a group
    sequence_columns: tuple[str, ...] = ()  # one number a sequence
    lengths: bool = False  # divides sums by lengths, so token_weights="mean" is refused
    token_weights: bool = False  # has a method token_weights(batch) -> [N]
    whole_batch: bool = False  # couples the groups, so all must be scored before any coefficient is known
    forward_only: bool = False  # is shown the forward-only sequences, of which the batch must have some
    anchor_scale: float | None = None  # an anchor's loss is anchor_scale * weight * logp; None: takes no anchors
    divisor: str = "groups"  # or "tokens": what the sum of its losses is divided by
    mixes_divisors: bool = False  # uses more than one of logps.divisors, so a caller may not pass a single number

    def __post_init__(self) -> None:
        for name in ("columns", "sequence_columns"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"Needs: want {name} a tuple of names, got the string {getattr(self, name)!r}")


class PairForm(NamedTuple):
    """A loss on pairs whose closed form a backend may fuse with its sums (kernels/triton/sequences/pairs.py)."""

    name: str  # "expo_reg" or "expo_comp"
    lam: float
    pull: float  # expo_comp: what the pair's own log-probs are pulled up by
    mean: bool  # the reduction
    temperature: float


@runtime_checkable
class Objective(Protocol):
    """A function of a few numbers per sequence. Any object of this shape plugs in.

    One that is also known to the backends in closed form says so by an attribute `pair_form: PairForm | None`. One that
    wants more of its columns than finite numbers has `check_columns(columns)`, which raises ValueError; it is asked
    where the columns are on the host.
    """

    @property
    def needs(self) -> Needs: ...

    def __call__(self, logps: SequenceLogprobs) -> Terms: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadOptions:
    """z = softcap * tanh(a / softcap), or a itself, with a = logit_scale * (h w^T + bias)."""

    bias: Tensor | None = None  # [V]
    softcap: float | None = None
    logit_scale: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Execution:
    """How the numbers are computed; none of these changes what is computed, beyond rounding.

    weight_gradient_out takes dw in place of weight.grad. preference_loss adds it during *forward*, for an upstream
    gradient of 1: one forward a step, no activation checkpoint around it, no forward with gradients enabled that is
    not meant to train, and one backward() on the loss itself (scale it by divisor=). sequence_logprob and
    token_logprob add it in backward, times whatever comes.
    """

    backend: str = "auto"
    workspace_bytes: int | None = None  # None: 1 GiB
    sparsity: Sparsity | None = None  # None: the exact gradient; Certified(...), Unbiased(...)
    on_sparsity: Callable[[SparsityReport], None] | None = None  # sequence_logprob, token_logprob: told in backward
    weight_gradient_out: Tensor | None = None  # [V, D] in the accumulator's dtype
    skip_inactive: bool | None = (
        None  # leave rows with c = 0 out of backprop; None: where that costs no synchronisation
    )


class TokenStats(NamedTuple):
    """Per scored token, in the batch's order; None where not asked for."""

    logp: Tensor  # [N]
    entropy: Tensor | None = None  # [N] nats
    is_argmax: Tensor | None = None  # [N] bool: no logit is larger than the label's


class LossTerms(NamedTuple):
    """The groups' terms as they entered the loss; detached."""

    loss: Tensor  # [P], before division
    margin: Tensor | None  # [P], where the objective has one
    coefficients: Tensor  # [S] = d (scalar loss) / d seq


class LossOutput(NamedTuple):
    """`loss` is differentiable in hidden, weight and bias; everything else is detached."""

    loss: Tensor  # scalar
    seq_logps: Tensor  # [S] sums
    lengths: Tensor  # [S]
    rewards: Tensor  # [S]; NaN for sequences outside groups, which have none
    terms: LossTerms
    empty: int  # groups with an empty sequence, hence inactive
    stats: Mapping[str, Tensor]  # what `stats` asked for, per token [N]
    sparsity: SparsityReport | None  # what a sparse gradient left out; None for an exact one
