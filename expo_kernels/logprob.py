"""The second door: log-probs of tokens and sequences, for objectives of one's own, references and evaluation."""

from __future__ import annotations

from torch import Tensor

from expo_kernels.inputs import make_problem
from expo_kernels.ops import logprob
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

    Arguments as in preference_loss. Under torch.no_grad() this is the reference pass: one product, nothing of size V.
    """
    return logprob.sequence_logprob(make_problem("sequence_logprob", hidden, weight, batch, head, execution))


def token_logprob(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    head: HeadOptions = HeadOptions(),
    execution: Execution = Execution(),
) -> Tensor:
    """Log-prob of each scored token, [N] in the batch's order (unweighted); differentiable likewise."""
    return logprob.token_logprob(make_problem("token_logprob", hidden, weight, batch, head, execution))


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    head: HeadOptions = HeadOptions(),
    execution: Execution = Execution(),
) -> TokenStats:
    """(logp, entropy, is_argmax) of each scored token, [N] each, without a gradient."""
    return logprob.token_stats(make_problem("token_stats", hidden, weight, batch, head, execution))
