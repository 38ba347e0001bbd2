"""What a caller passes -> what ops takes. All checks of shapes, dtypes and values stand here, before any work.

    problem.py      hidden states, weight, batch, head, execution -> Problem
    evaluation.py   objective, reference, columns -> Evaluation        divisors.py   what sums are divided by
    checks.py       of one value

Values are checked on host tensors only; what lies on a device is never asked, and a bad value met there gives NaN in
its group.
"""

from expo_kernels.inputs.evaluation import make_evaluation
from expo_kernels.inputs.problem import as_batch, check_stats, make_problem

__all__ = ["as_batch", "check_stats", "make_evaluation", "make_problem"]
