"""Bad input: an error before any work, saying where, what was wanted and what came."""

from __future__ import annotations

import pytest
import torch
from small_objectives import Coupled

from expo_kernels import Divisors, Execution, HeadOptions, Needs, Terms, sequence_logprob, token_stats
from expo_kernels.fused_expo_loss import expo_loss, preference_loss
from expo_kernels.kernels.plain import ops
from expo_kernels.layout import from_packed, from_padded
from expo_kernels.objectives import LDDPO, ExpoComp, make_objective

D, V = 8, 30
HIDDEN, WEIGHT = torch.randn(4, 5, D), torch.randn(V, D)
LABELS = torch.randint(0, V, (4, 5))
COMP = make_objective("expo_comp", lam=0.3)
REG = make_objective("expo_reg", lam=0.3)
REFERENCE = torch.full((4,), -9.0)


@pytest.fixture(autouse=True)
def _no_work(monkeypatch):
    """The backend must not be reached."""

    def fail(*args):
        raise AssertionError("work was done before the input was checked")

    for name in ("logprob", "score", "backprop", "segment_sum"):
        monkeypatch.setattr(ops, name, fail)


def loss(hidden=HIDDEN, weight=WEIGHT, batch=LABELS, objective=COMP, **more):
    return preference_loss(hidden, weight, batch, objective, **more)


def head(**options):
    return loss(head=HeadOptions(**options))


def execute(**options):
    return loss(execution=Execution(**options))


def expo(variant="comp", lam=0.3, **more):
    return expo_loss(HIDDEN, WEIGHT, LABELS, variant=variant, lam=lam, **more)


def bad_labels(value):
    labels = LABELS.clone()
    labels[2, 3] = value
    return labels


class WrongShape:
    needs = Needs()

    def __call__(self, logps):
        return Terms(logps.policy[0], logps.policy[0], logps.policy)


ANCHORED = from_padded(LABELS, anchors=2)
CU = torch.tensor([0, 5, 10, 15, 20])
FLAT = LABELS.flatten()
BAD = {
    "hidden and weight disagree": (lambda: loss(weight=torch.randn(V, D + 1)), r"\[V, D\].*\(30, 9\)"),
    "weight not a matrix": (lambda: loss(weight=torch.randn(V)), r"weight \[V, D\]"),
    "hidden of another layout": (lambda: loss(hidden=torch.randn(4, 7, D)), r"hidden \[4, 5, 'D'\].*\[4, 7, 'D'\]"),
    "hidden of another count": (lambda: loss(hidden=torch.randn(7, D), batch=from_packed(FLAT, CU)), "20 rows.*got 7"),
    "rows past hidden": (
        lambda: loss(hidden=torch.randn(3, D), batch=from_packed(FLAT, CU, rows=torch.arange(20) % 5)),
        "rows below 3.*got 4",
    ),
    "integer hidden": (lambda: loss(hidden=HIDDEN.long()), "floating point"),
    "two dtypes": (lambda: loss(hidden=HIDDEN.bfloat16()), "one dtype"),
    "label past the vocabulary": (lambda: loss(batch=bad_labels(V)), "below the vocabulary of 30, got 30"),
    "negative label": (lambda: loss(batch=bad_labels(-1)), "labels >= 0 or -100, got -1 at position 13"),
    "float labels": (lambda: loss(batch=LABELS.float()), "integer labels"),
    "labels not a matrix": (lambda: loss(batch=FLAT), r"labels \[S, T\]"),
    "odd pairs": (lambda: loss(hidden=HIDDEN[:3], batch=LABELS[:3]), "2 sequences a group, got 3"),
    "not a multiple of roles": (lambda: from_padded(LABELS, roles=3), "3 sequences a group, got 4"),
    "more anchors than sequences": (lambda: from_padded(LABELS, anchors=5), "at least 5 sequences, got 4"),
    "roles not an integer": (lambda: from_padded(LABELS, roles=2.0), "roles an integer"),
    "anchor weights": (lambda: from_padded(LABELS, anchors=2, anchor_weights=torch.ones(3)), r"\[2\], got \(3,\)"),
    "anchor weight nan": (
        lambda: from_padded(LABELS, anchors=2, anchor_weights=torch.tensor([1, torch.nan])),
        "finite anchor_weights",
    ),
    "token weights' shape": (lambda: from_padded(LABELS, token_weights=torch.ones(4)), "labels' shape"),
    "token weights' name": (lambda: from_padded(LABELS, token_weights="sum"), "\"mean\", got 'sum'"),
    "token weight inf": (lambda: from_padded(LABELS, token_weights=torch.full((4, 5), torch.inf)), "finite"),
    "offsets fall": (lambda: from_packed(FLAT, torch.tensor([0, 10, 5, 15, 20])), "never falls, got 10 then 5 at 1"),
    "offsets end early": (lambda: from_packed(FLAT, torch.tensor([0, 5, 10])), "from 0 to 20, got 0 to 10"),
    "offsets empty": (lambda: from_packed(FLAT, torch.tensor([0])), r"\[S\+1\]"),
    "packed labels not flat": (lambda: from_packed(LABELS, CU), r"labels \[L\]"),
    "rows' shape": (lambda: from_packed(FLAT, CU, rows=torch.arange(4)), r"rows \[20\]"),
    "negative rows": (lambda: from_packed(FLAT, CU, rows=torch.arange(20) - 1), "rows >= 0, got -1"),
    "no reference": (lambda: loss(objective=REG), r"needs reference log-probs \(sums\) \[4\], got None"),
    "reference too long": (lambda: loss(objective=REG, reference=torch.zeros(5)), r"\[4\], got \(5,\)"),
    "several references": (lambda: loss(objective=REG, reference=torch.zeros(2, 4)), r"\[4\], got \(2, 4\)"),
    "reference nan": (lambda: loss(objective=REG, reference=REFERENCE * torch.nan), "finite reference.*nan"),
    "positive reference": (lambda: loss(objective=REG, reference=-REFERENCE), "none of them positive, got 9.0"),
    "reference elsewhere": (lambda: loss(objective=REG, reference=REFERENCE.to("meta")), "reference on cpu.*got meta"),
    "reference a list": (lambda: loss(objective=REG, reference=[1.0]), "reference a Tensor, got list"),
    "hidden a tuple": (lambda: loss(hidden=(HIDDEN,)), "hidden a Tensor, got tuple"),
    "weight a module": (lambda: loss(weight=torch.nn.Linear(D, V)), "weight a Tensor, got Linear"),
    "labels a list": (lambda: loss(batch=[1, 2]), "batch a Batch, got list"),
    "head None": (lambda: loss(head=None), "head a HeadOptions, got NoneType"),
    "objective a name": (lambda: loss(objective="expo_reg"), "want an objective .*make_objective.*'expo_reg'"),
    "objective a class": (lambda: loss(objective=ExpoComp), "want an objective .*your own instance.*class"),
    "empty hidden size": (lambda: loss(hidden=HIDDEN[..., :0], weight=WEIGHT[:, :0]), r"\(30, 0\)"),
    "forgotten shift": (
        lambda: loss(hidden=torch.randn(4, 6, D)),
        r"got \[4, 6, 'D'\] \(hidden\[:, :-1\] predicts labels\[:, 1:\]\)",
    ),
    "a tensor as lam": (lambda: expo("reg", torch.tensor(0.2)), r"lam a number in \[0, 1\], got tensor"),
    "samples for reg": (lambda: expo("reg", 0.2, samples="pair"), 'samples for variant "comp" only'),
    "one divisor for two means": (
        lambda: loss(batch=ANCHORED, objective=ExpoComp(lam=1.0, samples="anchors"), divisor=2.0),
        r"more than one count; want divisor=Divisors\(groups=.*got 2.0",
    ),
    "one divisor for a mix": (lambda: loss(objective=make_objective("cpo"), divisor=2.0), "more than one count"),
    "skip neither true nor false": (lambda: execute(skip_inactive="no"), "skip_inactive True, False or None"),
    "reference of integers": (lambda: loss(objective=REG, reference=REFERENCE.long()), "floating point reference"),
    "unused reference": (lambda: loss(reference=REFERENCE), "ExpoComp uses no reference"),
    "missing column": (lambda: loss(objective=make_objective("distill"), reference=REFERENCE), r"missing \['gap'\]"),
    "unused column": (lambda: loss(columns={"gap": torch.ones(2)}), r"not used \['gap'\]"),
    "column's shape": (
        lambda: loss(objective=make_objective("distill"), reference=REFERENCE, columns={"gap": torch.ones(4)}),
        r"gap \[2\], got \[4\]",
    ),
    "column nan": (
        lambda: loss(
            objective=make_objective("distill"), reference=REFERENCE, columns={"gap": torch.tensor([0, torch.nan])}
        ),
        "finite column gap",
    ),
    "no gap for a logarithm": (
        lambda: loss(objective=make_objective("odpo"), reference=REFERENCE, columns={"gap": torch.tensor([1.0, 0.0])}),
        "ODPO: want every gap positive",
    ),
    "a mark that is none": (
        lambda: loss(
            objective=make_objective("kto", reference_point="batch"),
            batch=from_padded(LABELS, roles=1),
            reference=REFERENCE,
            columns={"desirable": torch.tensor([1.0, 0.0, 0.5, 1.0])},
        ),
        "KTO: want desirable 1 or 0, got 0.5",
    ),
    "a gain below 0": (
        lambda: loss(
            objective=make_objective("irpo"), reference=REFERENCE, columns={"gain": torch.tensor([1.0, -2.0, 0.5, 1.0])}
        ),
        "IRPO: want no gain below 0",
    ),
    "no forward-only sequences": (
        lambda: loss(
            objective=make_objective("kto"),
            batch=from_padded(LABELS, roles=1),
            reference=REFERENCE,
            columns={"desirable": torch.ones(4)},
        ),
        "KTO looks at forward-only sequences, and the batch has none",
    ),
    "a reference without the forward-only sequences": (
        lambda: loss(
            objective=make_objective("kto"),
            batch=from_padded(LABELS, roles=1, forward_only=1),
            reference=REFERENCE[:3],
            columns={"desirable": torch.ones(3)},
        ),
        r"want reference \[4\]",
    ),
    "columns that are no mapping": (
        lambda: loss(objective=make_objective("distill"), reference=REFERENCE, columns=torch.ones(2)),
        "want columns a Mapping, got Tensor",
    ),
    "a complex column": (
        lambda: loss(
            objective=make_objective("distill"),
            reference=REFERENCE,
            columns={"gap": torch.ones(2, dtype=torch.complex64)},
        ),
        "want column gap of real numbers",
    ),
    "no reference at all": (
        lambda: loss(objective=make_objective("infifpo"), reference=torch.zeros(0, 4)),
        "want at least one reference",
    ),
    "roles of the objective": (
        lambda: loss(objective=make_objective("sft")),
        "groups of 1, got a batch with groups of 2",
    ),
    "anchors nobody takes": (lambda: loss(batch=ANCHORED), "2 anchors, and ExpoComp takes none"),
    "anchors that are not there": (lambda: loss(objective=ExpoComp(lam=1.0, samples="anchors")), "the batch has none"),
    "a reduction given twice": (
        lambda: loss(
            objective=make_objective("expo_comp", lam=0.3, logp_reduction="mean"),
            batch=from_padded(LABELS, token_weights="mean"),
        ),
        "does so already",
    ),
    "a mean given twice": (
        lambda: loss(objective=Coupled(), batch=from_padded(LABELS, roles=1, token_weights="mean")),
        "does so already",
    ),
    "divisor zero": (lambda: loss(divisor=0), "positive divisor of groups, got 0"),
    "divisor of anchors": (lambda: loss(divisor=Divisors(groups=1.0, anchors=-1.0)), "positive divisor of anchors"),
    "divisor a vector": (lambda: loss(divisor=torch.ones(2)), "one number as divisor"),
    "bias' shape": (lambda: head(bias=torch.ones(D)), r"bias \[30\]"),
    "softcap zero": (lambda: head(softcap=0.0), "softcap a positive number, got 0.0"),
    "scale negative": (lambda: head(logit_scale=-1.0), "logit_scale a positive number"),
    "unknown backend": (lambda: execute(backend="cuda"), "want auto, plain, triton, native, got 'cuda'"),
    "workspace zero": (lambda: execute(workspace_bytes=0), "positive integer, got 0"),
    "workspace too small": (lambda: execute(workspace_bytes=512), "at least 1472 for one row"),
    "buffer's dtype": (
        lambda: loss(
            weight=WEIGHT.clone().requires_grad_(),
            execution=Execution(weight_gradient_out=torch.zeros(V, D, dtype=torch.bfloat16)),
        ),
        "weight_gradient_out contiguous.*float32",
    ),
    "buffer for a frozen head": (
        lambda: execute(weight_gradient_out=torch.zeros(V, D)),
        "a weight that requires a gradient",
    ),
    "unknown statistic": (lambda: loss(stats=("perplexity",)), "entropy, is_argmax, got 'perplexity'"),
    "unknown variant": (lambda: expo("dpo"), '"reg" or "comp", got \'dpo\''),
    "lam past 1": (lambda: expo("reg", 1.5, reference=REFERENCE), r"lam a number in \[0, 1\], got 1.5"),
    "lam zero": (lambda: expo("comp", 0.0), r"lam a number in \(0, inf\), got 0.0"),
    "lam nan": (lambda: expo("comp", float("nan")), "got nan"),
    "temperature": (lambda: expo(temperature=0.0), r"temperature a number in \(0, inf\)"),
    "reduction": (lambda: expo(logp_reduction="max"), "logp_reduction one of sum, mean, got 'max'"),
    "unknown objective": (lambda: make_objective("expo"), "want one of adpo, .* got 'expo'"),
    "unknown parameter": (lambda: make_objective("expo_reg", lam=0.1, beta=1), "expo_reg takes lam.*got 'beta'"),
    "missing parameter": (lambda: make_objective("expo_reg"), "expo_reg needs lam"),
    "samples": (lambda: make_objective("expo_comp", lam=1.0, samples="all"), "samples one of pair, anchors"),
    "sequence_logprob": (lambda: sequence_logprob(HIDDEN, WEIGHT[:, :3], LABELS), "sequence_logprob: want hidden"),
    "token_stats": (lambda: token_stats(HIDDEN, WEIGHT[:9], LABELS.clamp(9)), "token_stats: want labels below"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_stats_as_a_string():
    with pytest.raises(TypeError, match="tuple of names"):
        loss(stats="entropy")


def test_token_weights_of_the_wrong_shape():
    class Wrong(LDDPO):
        def token_weights(self, batch):
            return torch.ones(3)

    with pytest.raises(ValueError, match="want token_weights of Wrong"):
        loss(objective=Wrong(), reference=REFERENCE)


def test_an_objective_that_returns_the_wrong_shape(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"WrongShape: want coefficients of shape \(2, 2\)"):
        loss(objective=WrongShape())


def test_the_environment_names_a_backend(monkeypatch):
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", "nothing")
    with pytest.raises(ValueError, match="EXPO_KERNELS_BACKEND is set"):
        loss()


def test_token_weights_that_are_not_finite():
    class Wrong(LDDPO):
        def token_weights(self, batch):
            return torch.full(batch.labels.shape, torch.nan)

    with pytest.raises(ValueError, match="finite token_weights of Wrong, got nan"):
        loss(objective=Wrong(), reference=REFERENCE)


def test_a_divisor_goes_to_the_objectives_own_count(monkeypatch):
    monkeypatch.undo()
    batch = from_padded(LABELS, roles=1)
    whole = loss(batch=batch, objective=make_objective("sft"), divisor=1.0).loss
    assert torch.allclose(loss(batch=batch, objective=make_objective("sft"), divisor=100.0).loss * 100, whole)
    scalar = loss(divisor=torch.tensor([2.0], dtype=torch.float64)).loss
    assert scalar.shape == () and scalar.dtype == torch.float32


def test_accumulation_over_micro_batches_with_anchors(monkeypatch):
    """Four pairs and three anchors at once, or as 3 + 3 and 1 + 0: one loss, by the step's counts."""
    monkeypatch.undo()
    hidden, labels = torch.randn(11, 5, D), torch.randint(0, V, (11, 5))

    def part(rows, anchors, divisor=None):
        batch = from_padded(labels[rows], anchors=anchors)
        return expo_loss(hidden[rows], WEIGHT, batch, variant="comp", lam=0.3, divisor=divisor).loss

    counts = Divisors(groups=4, anchors=3)
    whole = part([*range(11)], 3)
    parts = part([0, 1, 2, 4, 5, 6, 8, 9, 10], 3, counts) + part([3, 7], 0, counts)
    assert torch.allclose(whole, parts, rtol=1e-5)


def test_a_label_tensor_in_compiled_code(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(Exception, match="want a Batch"):
        torch.compile(lambda h: loss(hidden=h).loss, fullgraph=True, backend="eager")(HIDDEN)
