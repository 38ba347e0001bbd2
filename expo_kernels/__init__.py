"""Preference losses (EXPO, arXiv 2506.07492, and its peers) straight from hidden states, without the logits.

from expo_kernels.fused_expo_loss import expo_loss, preference_loss
"""

from expo_kernels.logprob import sequence_logprob, token_logprob, token_stats
from expo_kernels.types import (
    Batch,
    Divisors,
    Execution,
    HeadOptions,
    LossOutput,
    Needs,
    Objective,
    SequenceLogprobs,
    Terms,
    TokenStats,
)

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Divisors",
    "Execution",
    "HeadOptions",
    "LossOutput",
    "Needs",
    "Objective",
    "SequenceLogprobs",
    "Terms",
    "TokenStats",
    "sequence_logprob",
    "token_logprob",
    "token_stats",
]
