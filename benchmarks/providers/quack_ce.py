"""QuACK's linear cross-entropy, in the form that gives a number a token.

Its chunked form makes one mean or sum of all tokens, from which no loss of pairs can be had; so its user multiplies
the logits and calls its cross-entropy kernel, which overwrites them with their gradient.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.providers.contract import Provider, Workload, dpo, needs_cuda, no_softcap, not_importable


def quack(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    from quack.linear_cross_entropy import linear_cross_entropy_func

    nll = linear_cross_entropy_func(
        case.hidden.flatten(0, 1), case.weight, None, case.labels.flatten(), ignore_index=-100, reduction="none",
        inplace_backward=True,
    )  # fmt: skip
    return dpo(-nll.float().view(case.labels.shape).sum(1), case.reference)


def _missing(case: Workload) -> str | None:
    return (
        needs_cuda(case, "QuACK", (9, 0))
        or not_importable("quack.linear_cross_entropy")
        or no_softcap(case, "QuACK's linear cross-entropy")
    )


PROVIDERS = {
    "quack": Provider(
        loss=quack, missing=_missing, note="logits, then its cross-entropy kernel: its chunked form is one scalar"
    )
}
