"""Preference losses (EXPO, arXiv 2506.07492, and its peers) straight from hidden states, without the logits.

The mission's module is expo_kernels.fused_expo_loss; this page lists everything public.
"""

from expo_kernels.fused_expo_loss import expo_loss, preference_loss
from expo_kernels.logprob import sequence_logprob, token_logprob, token_stats
from expo_kernels.sparsity import Certified, SparsityReport, Unbiased
from expo_kernels.types import (
    Batch,
    Divisors,
    Execution,
    HeadOptions,
    LossOutput,
    LossTerms,
    Needs,
    Objective,
    SequenceLogprobs,
    Terms,
    TokenStats,
)

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Certified",
    "Divisors",
    "Execution",
    "HeadOptions",
    "LossOutput",
    "LossTerms",
    "Needs",
    "Objective",
    "SequenceLogprobs",
    "SparsityReport",
    "Terms",
    "TokenStats",
    "Unbiased",
    "expo_loss",
    "preference_loss",
    "sequence_logprob",
    "token_logprob",
    "token_stats",
]
