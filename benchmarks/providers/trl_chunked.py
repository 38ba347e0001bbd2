"""TRL's chunked log-probs, as its DPOTrainer uses them since 1.16."""

from __future__ import annotations

from torch import Tensor

from benchmarks.providers.contract import Provider, Workload, dpo, not_importable

COLUMNS = 32768  # of a tile of logits: what TRL 1.16 passes


def trl(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    """On a card the scored positions alone; elsewhere all of them, as TRL does. Its metrics are left out."""
    from trl.kernels import ChunkedLogProbFunction

    mask = case.labels != -100
    compact = case.hidden.is_cuda
    logp = ChunkedLogProbFunction.apply(
        case.hidden[mask] if compact else case.hidden.flatten(0, 1),
        case.weight,
        None,
        case.labels[mask] if compact else case.labels.clamp(min=0).flatten(),
        1.0,
        COLUMNS,
        case.softcap,
        1.0,
        ("log_probs",),
    )[0]
    if compact:
        logp = logp.new_zeros(mask.shape).masked_scatter(mask, logp)
    else:
        logp = logp.view(mask.shape).masked_fill(~mask, 0)
    return dpo(logp.sum(1), case.reference)


def _missing(case: Workload) -> str | None:
    if reason := not_importable("trl.kernels"):
        return reason
    import trl.kernels

    has = hasattr(trl.kernels, "ChunkedLogProbFunction")
    return None if has else "this TRL has no ChunkedLogProbFunction, which came with 1.16"


PROVIDERS = {
    "trl": Provider(
        loss=trl,
        missing=_missing,
        note="on a CPU its plain torch path, on all positions: no headline is made of that",
    )
}
