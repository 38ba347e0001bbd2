"""Loss and gradients against float64: backend x dtype x layout x objective, one rule of error (support.py)."""

from __future__ import annotations

from functools import partial

import pytest
import small_objectives as small
import torch
from backends import BACKENDS, applies
from support import (
    DTYPES,
    SEEDS,
    SMALL,
    Case,
    Errors,
    fused,
    padded_case,
    padded_labels,
    rounding_floor,
    truth,
    with_reference,
)

from benchmarks.cases import head_case
from expo_kernels import Execution, HeadOptions
from expo_kernels.fused_expo_loss import expo_loss, preference_loss
from expo_kernels.layout import from_packed, from_padded
from expo_kernels.objectives import make_objective

T, D, V = 11, 33, 301  # ragged in every dimension, and no multiple of a tile
WORKSPACE = {
    "plain": SMALL,
    "native": SMALL,
    "triton": 4 * SMALL,
}  # the interpreter takes its time for each block of rows


def padded(S, dtype, seed, **layout):
    return padded_case(S, T, D, V, dtype=dtype, seed=seed, bias=True, softcap=5.0, scale=1.3, **layout)


def packed(S, dtype, seed, **layout):
    """The padded case's tokens without their padding, in one row."""
    case = padded_case(S, T, D, V, dtype=dtype, seed=seed, roles=1)
    lengths = list(case.batch.host.lengths)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    hidden = case.hidden.reshape(-1, D)[case.batch.rows]
    return Case(hidden, case.weight, None, from_packed(case.batch.labels, cu, **layout))


def shared(S, dtype, seed, **layout):
    """Every sequence's first token is predicted by one and the same row: a shared prompt."""
    h, w, y = head_case(S * T, D, V, dtype=dtype, seed=seed)
    rows = torch.arange(S * T)
    rows[::T] = 0
    return Case(h, w, None, from_packed(y, torch.arange(0, S * T + 1, T), rows=rows, **layout))


PAIRS = {
    "padded": lambda dtype, seed: padded(6, dtype, seed),
    "packed": lambda dtype, seed: packed(6, dtype, seed),
    "shared-rows": lambda dtype, seed: shared(6, dtype, seed),
    "forward-only": lambda dtype, seed: padded(8, dtype, seed, forward_only=2),
    "token-mean": lambda dtype, seed: padded(6, dtype, seed, token_weights="mean"),
    "one-pair-one-token": lambda dtype, seed: padded_case(2, 1, D, V, dtype=dtype, seed=seed),
}
ANCHORS = {
    "anchors": lambda dtype, seed: padded(9, dtype, seed, anchors=3, anchor_weights=torch.tensor([1.0, 0.5, 2.0])),
    "anchors-only": lambda dtype, seed: packed(3, dtype, seed, anchors=3),
}
SINGLES = {
    "singles": lambda dtype, seed: padded(5, dtype, seed, roles=1),
    "singles-and-others": lambda dtype, seed: padded(7, dtype, seed, roles=1, forward_only=2),
}
LISTS = {"lists": lambda dtype, seed: padded(9, dtype, seed, roles=3)}

EXPO = {
    "reg": make_objective("expo_reg", lam=0.3, temperature=20.0),
    "comp": make_objective("expo_comp", lam=0.3, temperature=20.0),
}
CASES = [
    *((name, EXPO["reg"], layout) for name, layout in PAIRS.items()),
    *((name, EXPO["comp"], layout) for name, layout in PAIRS.items()),
    ("padded", make_objective("expo_reg", lam=0.3, logp_reduction="mean"), PAIRS["padded"]),
    ("padded", make_objective("expo_comp", lam=0.3, logp_reduction="mean"), PAIRS["padded"]),
    *((name, make_objective("expo_comp", lam=0.3, samples="anchors"), layout) for name, layout in ANCHORS.items()),
    # one objective for each thing that an objective can need
    ("padded", make_objective("distill"), PAIRS["padded"]),
    ("padded", make_objective("infifpo", clip=False), PAIRS["padded"]),
    ("packed", make_objective("slic"), PAIRS["packed"]),
    ("packed", make_objective("lddpo"), PAIRS["packed"]),
    ("padded", make_objective("cpo"), PAIRS["padded"]),
    ("singles-and-others", make_objective("kto"), SINGLES["singles-and-others"]),
    ("singles", small.Coupled(), SINGLES["singles"]),
    ("singles", make_objective("sft"), SINGLES["singles"]),
    ("lists", small.Listwise(), LISTS["lists"]),
    ("singles", small.Listwise(), SINGLES["singles"]),
]

EVERY = {"native-bf16": 3, "native-fp32": 3, "triton": 4, "triton-fused": 6}


def everything():
    """Every case on every backend and dtype. make test has one in EVERY of them, a case in the interpreter with another
    dtype each; make test-all has them all."""
    for i, case in enumerate(CASES):
        for backend in BACKENDS:
            for j, dtype in enumerate(filter(partial(applies, backend), DTYPES)):
                name = f"{type(case[1]).__name__}-{case[0]}-{backend}-{str(dtype).removeprefix('torch.')}"
                marks = [pytest.mark.slow] if (i + j) % EVERY.get(backend, 1) else []
                yield pytest.param(backend, dtype, case, id=name, marks=marks)


@pytest.mark.parametrize(("backend", "dtype", "case"), list(everything()), indirect=["backend"])
def test_loss_and_gradients(case, dtype, backend):
    _, objective, layout = case
    errors = Errors()
    for seed in SEEDS:
        made = with_reference(layout(dtype, seed), objective, seed)
        exact, plain = truth(made, objective), truth(made, objective, dtype)
        ours, floor = fused(made, objective, WORKSPACE[backend], backend), rounding_floor(made)
        assert ours.keys() == exact.keys()
        for name in exact:
            errors.add(name, ours[name], plain[name], exact[name], floor)
    errors.check()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_padded_labels_need_no_batch(backend):
    """A label tensor is the padded batch of pairs, and expo_loss is preference_loss with everything spelled out."""
    h, w, y = head_case(6 * T, D, V)
    labels, hidden, reference = padded_labels(6, T, y), h.view(6, T, D), torch.full((6,), -20.0)
    a = expo_loss(
        hidden, w, labels, variant="reg", lam=0.3, temperature=20.0, reference=reference, backend=backend,
        workspace_bytes=1 << 20, softcap=5.0, logit_scale=1.1, bias=torch.ones(V),
    )  # fmt: skip
    b = preference_loss(
        hidden, w, from_padded(labels), EXPO["reg"], reference=reference,
        head=HeadOptions(bias=torch.ones(V), softcap=5.0, logit_scale=1.1),
        execution=Execution(backend=backend, workspace_bytes=1 << 20),
    )  # fmt: skip
    assert torch.equal(a.loss, b.loss) and torch.equal(a.seq_logps, b.seq_logps)
    assert torch.equal(a.terms.coefficients, b.terms.coefficients)
