"""The second door: log-probs of tokens and sequences, for objectives of one's own, references and evaluation."""

from __future__ import annotations

from torch import Tensor

from expo_kernels.inputs import as_batch, make_problem
from expo_kernels.ops import logprob
from expo_kernels.ops.problem import Problem
from expo_kernels.types import Batch, Execution, HeadOptions, TokenStats


def sequence_logprob(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    head: HeadOptions = HeadOptions(),
    execution: Execution = Execution(),
) -> Tensor:
    """Summed label log-prob of each sequence, [S]; differentiable in hidden, weight and head.bias.

    Arguments as in preference_loss; labels [S, T] may be any number of sequences. Under torch.no_grad() this is the
    reference pass: one product, nothing of size V.
    """
    return logprob.sequence_logprob(_problem("sequence_logprob", hidden, weight, batch, head, execution))


def token_logprob(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    head: HeadOptions = HeadOptions(),
    execution: Execution = Execution(),
) -> Tensor:
    """Log-prob of each scored token, [N] in the batch's order (unweighted); differentiable likewise."""
    return logprob.token_logprob(_problem("token_logprob", hidden, weight, batch, head, execution))


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    head: HeadOptions = HeadOptions(),
    execution: Execution = Execution(),
) -> TokenStats:
    """(logp, entropy, is_argmax) of each scored token, [N] each, without a gradient."""
    return logprob.token_stats(_problem("token_stats", hidden, weight, batch, head, execution))


def _problem(
    where: str, hidden: Tensor, weight: Tensor, batch: Batch | Tensor, head: HeadOptions, execution: Execution
) -> Problem:
    return make_problem(where, hidden, weight, as_batch(where, batch, roles=1), head, execution)
