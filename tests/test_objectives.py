"""Objectives on their own: coefficients against autograd in float64, values by hand, limits, what the paper proves."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass
from functools import partial

import pytest
import small_objectives
import torch

from expo_kernels import Needs, Objective, SequenceLogprobs
from expo_kernels.objectives import OBJECTIVES, ExpoReg, WithSFT, check_objective, make_objective
from expo_kernels.objectives.check import random_inputs
from expo_kernels.objectives.parts.shapes import EXPONENT_LIMIT, SHAPES
from expo_kernels.types import Counts, ForwardOnly
from toy import bandit

make = make_objective
SHIPPED = {
    "expo_reg": [
        make("expo_reg", lam=0.3), make("expo_reg", lam=0.0), make("expo_reg", lam=1.0),
        make("expo_reg", lam=0.2, logp_reduction="mean", temperature=0.5, offset=0.7),
    ],
    "expo_comp": [
        make("expo_comp", lam=0.3), make("expo_comp", lam=2.0, samples="anchors"),
        make("expo_comp", lam=0.3, logp_reduction="mean", temperature=0.5, offset=-0.7),
    ],
    "dpo": [
        make("dpo"), make("dpo", beta=1.0, label_smoothing=0.2), make("dpo", label_smoothing=0.2, robust=True),
        make("dpo", logp_reduction="mean"),
    ],
    "ipo": [make("ipo"), make("ipo", tau=0.5, logp_reduction="mean")],
    "gpo": [make("gpo", shape=shape, beta=0.3) for shape in SHAPES],
    "slic": [make("slic"), make("slic", delta=2.0, sft_weight=0.3, sft_reduction="mean")],
    "fdpo": [
        *(make("fdpo", divergence=name, beta=0.3) for name in ("js", "forward_kl", "reverse_kl")),
        make("fdpo", divergence="alpha", alpha=0.4),
    ],
    "simpo": [make("simpo"), make("simpo", beta=2.5, gamma_beta_ratio=0.6, label_smoothing=0.1)],
    "kto": [
        make("kto", desirable_weight=1.3), make("kto", reference_point="batch"), make("kto", reference_point="column"),
    ],
    "orpo": [make("orpo"), make("orpo", beta=0.5, sft_reduction="mean")],
    "cpo": [make("cpo"), make("cpo", sft_weight=0.2, sft_reduction="sum", label_smoothing=0.1)],
    "odpo": [make("odpo"), make("odpo", scaling="linear", alpha=0.5)],
    "dpop": [make("dpop"), make("dpop", beta=0.3, lam=2.0)],
    "rdpo": [make("rdpo", alpha=0.05)],
    "caldpo": [make("caldpo", beta=0.5)],
    "lddpo": [make("lddpo")],
    "adpo": [make("adpo", form=form, labels=kind) for form in ("listwise", "pairwise") for kind in ("soft", "hard")],
    "xpo": [make("xpo", alpha=0.01)],
    "sft": [make("sft"), make("sft", reduction="mean"), make("sft", reduction="sum")],
    "distill": [make("distill", beta=0.5)],
    "rpo": [make("rpo", eta=2.0)],
    "wrpo": [make("wrpo", alpha=0.3)],
    "irpo": [make("irpo", beta=0.5)],
    "infifpo": [
        make("infifpo", beta=0.3), make("infifpo", fusion="mean", clip=False), make("infifpo", logp_reduction="sum"),
    ],
}  # fmt: skip
MIXED = [
    make("dpo", sft_weight=0.3), make("kto", sft_weight=0.3, sft_reduction="mean"),
    make("adpo", sft_weight=0.1, sft_reduction="sum"), make("expo_comp", lam=0.1, samples="anchors", sft_weight=1.0),
]  # fmt: skip
SMALL_ONES = [cls() for _, cls in inspect.getmembers(small_objectives, inspect.isclass) if hasattr(cls, "needs")]
EVERY = [*(o for group in SHIPPED.values() for o in group), *MIXED, *SMALL_ONES]


def test_every_registered_objective_is_tested_here():
    assert set(SHIPPED) == set(OBJECTIVES)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_coefficients_are_the_gradient_of_the_loss(objective):
    check_objective(objective)
    assert isinstance(objective, Objective)


@dataclass(frozen=True)
class WrongSign(ExpoReg):
    def __call__(self, logps):
        terms = super().__call__(logps)
        return terms._replace(coefficients=-terms.coefficients)


def test_a_wrong_coefficient_is_found():
    with pytest.raises(ValueError, match=r"WrongSign.* has the coefficient .* where its loss has the derivative"):
        check_objective(WrongSign(lam=0.3))


def moved(objective, by: float, dtype=torch.float64) -> SequenceLogprobs:
    """Random inputs at differences and log-ratios of exactly `by` for the first two responses."""
    seen = random_inputs(objective)
    base = seen.policy.detach().to(dtype)
    base[1:] = base[:1]
    reference = None if seen.reference is None else base.expand(seen.reference.shape)
    policy = base.clone()
    policy[0] += by
    other = seen.forward_only
    return seen._replace(
        policy=policy.requires_grad_(), lengths=torch.ones_like(policy), reference=reference,
        columns={name: column.to(dtype) for name, column in seen.columns.items()},
        forward_only=None if other is None else other._replace(policy=base[0, :5], reference=base[0, :5]),
    )  # fmt: skip


@pytest.mark.parametrize("by", [0.0, 1e4, -1e4, 1.5, -30.0])
@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_margins_of_any_size(objective, by):
    """Finite in fp32 and float64; in float64 the coefficients are autograd's."""
    for dtype in (torch.float32, torch.float64):
        logps = moved(objective, by, dtype)
        terms = objective(logps)
        assert bool(terms.loss.isfinite().all()) and bool(terms.coefficients.isfinite().all())
        assert terms.loss.dtype == terms.coefficients.dtype == dtype
    (exact,) = torch.autograd.grad(terms.loss.sum(), logps.policy)
    kink = by == 0 and type(objective).__name__ == "DPOP"
    assert kink or torch.allclose(terms.coefficients, exact, rtol=1e-9, atol=4e-16)


def test_the_stated_clamps():
    """Slopes saturate at e^20 (exponentials) and at 1 / (1 - e^-1e-4) (odds), and losses go on growing."""
    assert EXPONENT_LIMIT == 20.0
    gpo = make("gpo", shape="exponential", beta=1.0)
    for d in (-25.0, -1e4):
        terms = gpo(pair(d, 0.0))
        assert float(terms.coefficients[0]) == pytest.approx(-math.exp(20.0))
        assert float(terms.loss) == pytest.approx(math.exp(20.0) * (1 - 20 - d))
    js = make("fdpo", divergence="forward_kl", beta=1.0)(pair(-1e3, 0.0))
    assert float(js.coefficients[0]) == pytest.approx(-math.exp(20.0))
    certain = make("orpo", lam=1.0, sft_weight=0.0)(pair(0.0, -9.0, lengths=(1, 1), sums=True))
    assert float(certain.margin) == pytest.approx(9.2103 + 1.0 + 9.0, abs=1e-3)  # log 1e4, the tangent's rise, -odds_l


def pair(chosen, rejected, ref=(0.0, 0.0), lengths=(1.0, 1.0), sums=False, **columns) -> SequenceLogprobs:
    """One pair with the log-ratios w and l (or, with sums, those sums)."""
    ref = torch.tensor(ref, dtype=torch.float64)[:, None]
    policy = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    return SequenceLogprobs(
        policy if sums else policy + ref, torch.tensor(lengths, dtype=torch.float64)[:, None], ref,
        {name: torch.tensor(value, dtype=torch.float64) for name, value in columns.items()}, Counts(1, 1, lengths[0]),
        torch.ones(1, dtype=torch.bool),
    )  # fmt: skip


def s(x):
    return 1 / (1 + math.exp(-x))


def nls(x):
    return math.log(1 + math.exp(-x))


# log-ratios 0.7 and -0.4, reference -3 and -5, lengths 2 and 4, hence policy -2.3 and -5.4, means -1.15 and -1.35
RW, RL, QW, QL = 0.7, -0.4, -1.15, -1.35
ODDS = QW - math.log(1 - math.exp(QW)) - QL + math.log(1 - math.exp(QL))
ANYWHERE = partial(pair, RW, RL, ref=(-3.0, -5.0), lengths=(2.0, 4.0))
BY_HAND = {
    "dpo": (make("dpo", beta=0.5), {}, nls(0.55), -0.5 * s(-0.55), 0.5 * s(-0.55)),
    "cdpo": (make("dpo", beta=0.5, label_smoothing=0.1), {}, 0.9 * nls(0.55) + 0.1 * nls(-0.55),
             0.5 * (-0.9 * s(-0.55) + 0.1 * s(0.55)), 0.5 * (0.9 * s(-0.55) - 0.1 * s(0.55))),
    "robust": (make("dpo", beta=0.5, label_smoothing=0.1, robust=True), {}, (0.9 * nls(0.55) - 0.1 * nls(-0.55)) / 0.8,
               0.5 * (-0.9 * s(-0.55) - 0.1 * s(0.55)) / 0.8, 0.5 * (0.9 * s(-0.55) + 0.1 * s(0.55)) / 0.8),
    "dpo-mean": (make("dpo", beta=2.0, logp_reduction="mean"), {}, nls(0.9), -1.0 * s(-0.9), 0.5 * s(-0.9)),
    "ipo": (make("ipo", beta=0.25), {}, (1.1 - 2) ** 2, 2 * (1.1 - 2), -2 * (1.1 - 2)),
    "ipo-mean": (make("ipo", tau=0.25, logp_reduction="mean"), {}, (0.45 - 2) ** 2, (0.45 - 2), -0.5 * (0.45 - 2)),
    "hinge": (make("gpo", shape="hinge", beta=0.5), {}, 0.45, -0.5, 0.5),
    "exponential": (make("gpo", shape="exponential", beta=0.5), {}, math.exp(-0.55), -0.5 * math.exp(-0.55),
                    0.5 * math.exp(-0.55)),
    "truncated": (make("gpo", shape="truncated_quadratic", beta=0.5), {}, 0.45**2, -0.45, 0.45),
    "savage": (make("gpo", shape="savage", beta=0.5), {}, s(-0.55) ** 2, -s(-0.55) ** 2 * s(0.55),
               s(-0.55) ** 2 * s(0.55)),
    "slic": (make("slic", delta=4.0, sft_weight=0.5), {}, 0.9 + 0.5 * 2.3, -1.5, 1.0),
    "js": (make("fdpo", divergence="js"), {}, nls(0.1 * (nls(RL) - nls(RW))),
           -0.1 * s(-0.1 * (nls(RL) - nls(RW))) * s(-RW), 0.1 * s(-0.1 * (nls(RL) - nls(RW))) * s(-RL)),
    "forward_kl": (make("fdpo", divergence="forward_kl", beta=1.0), {}, nls(math.exp(0.4) - math.exp(-0.7)),
                   -s(math.exp(-0.7) - math.exp(0.4)) * math.exp(-0.7),
                   s(math.exp(-0.7) - math.exp(0.4)) * math.exp(0.4)),
    "simpo": (make("simpo", beta=2.0, gamma=0.5), {}, nls(0.4 - 0.5), -s(0.1), 0.5 * s(0.1)),
    "orpo": (make("orpo", lam=0.5, sft_weight=1.0, sft_reduction="mean"), {}, 1.15 + 0.5 * nls(ODDS),
             -0.5 - 0.5 * s(-ODDS) / (1 - math.exp(QW)) / 2, 0.5 * s(-ODDS) / (1 - math.exp(QL)) / 4),
    "cpo": (make("cpo", beta=0.5), {}, nls(1.55) + 2.3 / 2, -0.5 * s(-1.55) - 0.5, 0.5 * s(-1.55)),
    "odpo": (make("odpo", beta=0.5), {"gap": [2.0]}, nls(0.55 - math.log(2)), -0.5 * s(math.log(2) - 0.55),
             0.5 * s(math.log(2) - 0.55)),
    "dpop": (make("dpop", beta=0.5, lam=5.0), {}, nls(0.55), -0.5 * s(-0.55), 0.5 * s(-0.55)),
    "rdpo": (make("rdpo", beta=0.5, alpha=0.1), {}, nls(0.35), -0.5 * s(-0.35), 0.5 * s(-0.35)),
    "caldpo": (make("caldpo", beta=0.5), {}, nls(1.1) + 0.3**2 + 0.6**2, -s(-1.1) - 0.6, s(-1.1) + 1.2),
    "lddpo": (make("lddpo", beta=0.5), {}, nls(0.55), -0.5 * s(-0.55), 0.5 * s(-0.55)),
    "adpo": (make("adpo", beta=0.5, temperature=2.0), {"reward": [[1.0], [0.0]]},
             s(0.5) * nls(0.55) + s(-0.5) * nls(-0.55), 0.5 * (s(0.55) - s(0.5)), -0.5 * (s(0.55) - s(0.5))),
    "distill": (make("distill", beta=0.5), {"gap": [2.0]}, (0.55 - 2) ** 2, 0.55 - 2, 2 - 0.55),
    "rpo": (make("rpo", beta=0.5, eta=0.5), {"gap": [2.0]},
            s(1) * math.log(s(1) / s(0.55)) + s(-1) * math.log(s(-1) / s(-0.55)), 0.5 * (s(0.55) - s(1)),
            -0.5 * (s(0.55) - s(1))),
    "irpo": (make("irpo", beta=0.5), {"gain": [[3.0], [1.0]]}, 3 * nls(0.55) + nls(-0.55) / math.log2(3),
             0.5 * (s(0.55) * (3 + 1 / math.log2(3)) - 3),
             0.5 * (s(-0.55) * (3 + 1 / math.log2(3)) - 1 / math.log2(3))),
    "infifpo": (make("infifpo", beta=2.0), {}, nls(0.9), -s(-0.9), 0.5 * s(-0.9)),
    "xpo": (make("xpo", beta=0.5), {}, nls(0.55), -0.5 * s(-0.55), 0.5 * s(-0.55)),
    "dpo and sft": (make("dpo", beta=0.5, sft_weight=0.2), {}, nls(0.55) + 0.2 * 2.3 / 2, -0.5 * s(-0.55) - 0.1,
                    0.5 * s(-0.55)),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand(name):
    objective, columns, loss, chosen, rejected = BY_HAND[name]
    terms = objective(ANYWHERE(**columns))
    assert float(terms.loss) == pytest.approx(loss)
    assert terms.coefficients[:, 0].tolist() == pytest.approx([chosen, rejected])


def test_the_chosen_response_below_the_reference_costs_dpop():
    terms = make("dpop", beta=0.5, lam=5.0)(pair(-0.2, -0.4))
    assert float(terms.margin) == pytest.approx(0.5 * (0.2 - 1.0))
    assert terms.coefficients[:, 0].tolist() == pytest.approx([-0.5 * s(0.4) * 6, 0.5 * s(0.4)])


def test_three_responses_by_hand():
    seen = ANYWHERE()
    ratios = torch.tensor([[0.3], [0.9], [-0.2]], dtype=torch.float64)
    seen = seen._replace(policy=ratios, reference=torch.zeros(3, 1, dtype=torch.float64), lengths=torch.ones(3, 1))
    terms = make("wrpo", beta=2.0, alpha=0.25)(seen)
    m = 2 * (0.25 * 0.3 + 0.75 * 0.9 + 0.2)
    assert float(terms.loss) == pytest.approx(nls(m))
    assert terms.coefficients[:, 0].tolist() == pytest.approx([-0.5 * s(-m), -1.5 * s(-m), 2 * s(-m)])


def test_kto_by_hand():
    """Reference points: the forward-only sequences' mean ratio 0.5, the batch's own, a column; never below 0."""
    policy, reference = torch.tensor([[0.7, -0.4]]).double(), torch.zeros(1, 2).double()
    others = ForwardOnly(
        torch.tensor([1.0, 0.0, 9.0]).double(), torch.zeros(3).double(), torch.tensor([1, 1, 0]).bool()
    )
    seen = SequenceLogprobs(
        policy, torch.ones(1, 2).double(), reference, {"desirable": torch.tensor([1.0, 0.0]).double()}, Counts(2, 1, 2),
        torch.ones(2, dtype=torch.bool), others,
    )  # fmt: skip

    def terms(z, given, **parameters):
        made = make("kto", beta=0.5, desirable_weight=2.0, **parameters)(given)
        x, y = 0.5 * (0.7 - z), 0.5 * (z + 0.4)
        assert made.loss.tolist() == pytest.approx([2 * s(-x), s(-y)])
        assert made.coefficients[0].tolist() == pytest.approx([-s(x) * s(-x), 0.5 * s(y) * s(-y)])

    terms(0.5, seen)
    terms(0.15, seen, reference_point="batch")
    column = {**seen.columns, "reference_point": torch.tensor([0.3, 0.3]).double()}
    terms(0.3, seen._replace(columns=column), reference_point="column")
    below = others._replace(policy=-others.policy)
    terms(0.0, seen._replace(forward_only=below))


def test_fused_references_by_hand():
    """Pivot (-3, -5); one source (-2, -6) pulls both the right way, the other (-9, -1) the wrong way and further."""
    seen = ANYWHERE()._replace(
        reference=torch.tensor([[-3.0, -5.0], [-2.0, -6.0], [-9.0, -1.0]], dtype=torch.float64)[..., None],
        policy=torch.tensor([[-2.3], [-5.4]], dtype=torch.float64),
    )

    def margin(**parameters):
        return float(make("infifpo", beta=1.0, logp_reduction="sum", **parameters)(seen).margin)

    assert margin() == pytest.approx(-2.3 + 2 - (-5.4 + 6))
    assert margin(clip=False) == pytest.approx(-2.3 + 9 - (-5.4 + 1))
    assert margin(fusion="mean") == pytest.approx(-2.3 + 2.5 - (-5.4 + 5.5))
    assert margin(fusion="mean", clip=False) == pytest.approx(-2.3 + 5.5 - (-5.4 + 3.5))


def agree(first, second, factor=1.0, **inputs):
    """Two objectives are one loss, up to a factor, at random places."""
    for seed in range(3):
        logps = random_inputs(first, seed=seed)._replace(**inputs)
        one, other = first(logps), second(logps)
        assert torch.allclose(one.loss, factor * other.loss, rtol=1e-12)
        assert torch.allclose(one.coefficients, factor * other.coefficients, rtol=1e-12, atol=1e-15)


DPO = make("dpo", beta=0.3)


def test_members_of_a_family_meet():
    agree(make("gpo", shape="logistic", beta=0.3), DPO)
    agree(make("fdpo", divergence="reverse_kl", beta=0.3), DPO)
    agree(make("gpo", shape="squared", beta=0.3), make("ipo", beta=0.15), factor=0.3**2)  # (beta g - 1)^2
    agree(make("dpop", beta=0.3, lam=0.0), DPO)
    agree(make("rdpo", beta=0.3, alpha=0.0), DPO)
    agree(make("infifpo", beta=0.3, logp_reduction="sum"), DPO, reference=random_inputs(DPO).reference)
    agree(make("expo_comp", lam=1.0, samples="anchors", temperature=1 / 0.3), make("cpo", beta=0.3, sft_weight=0.0))


def test_alpha_ends_at_forward_kl():
    near = make("fdpo", divergence="alpha", alpha=1 - 1e-12)
    for name in ("loss", "coefficients"):
        got, want = (getattr(o(ANYWHERE()), name) for o in (near, make("fdpo", divergence="forward_kl")))
        assert torch.allclose(got, want)
    near, dpo = make("fdpo", divergence="alpha", alpha=1e-9), make("dpo")
    assert torch.allclose(near(ANYWHERE()).coefficients, dpo(ANYWHERE()).coefficients)


def test_simpo_without_a_margin_is_dpo_with_means_and_a_constant_reference():
    constant = torch.full((2, 9), -7.0, dtype=torch.float64)
    lengths = torch.randint(1, 9, (2, 9)).double()
    agree(
        make("simpo", beta=0.3, margin=0.0), make("dpo", beta=0.3, logp_reduction="mean"), lengths=lengths,
        reference=constant * lengths,
    )  # fmt: skip


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_two_anchored_responses_are_one_loss(labels):
    """Listwise = pairwise for two, and with hard labels they are DPO towards the better one."""
    seen = ANYWHERE(reward=[[2.0], [1.0]])
    made = [make("adpo", beta=0.5, form=form, labels=labels)(seen) for form in ("listwise", "pairwise")]
    if labels == "hard":
        made.append(make("dpo", beta=0.5)(ANYWHERE()))
    for other in made[1:]:
        assert torch.allclose(made[0].loss, other.loss) and torch.allclose(made[0].coefficients, other.coefficients)


def test_rpo_with_a_certain_gap_is_dpo():
    certain = make("rpo", beta=0.3)(ANYWHERE(gap=[200.0]))
    assert torch.allclose(certain.loss, DPO(ANYWHERE()).loss)
    assert torch.allclose(certain.coefficients, DPO(ANYWHERE()).coefficients)


def test_regression_by_hand():
    for d, d_ref, lam in ((0.7, -0.4, 0.3), (-2.0, 1.0, 1.0), (3.0, 0.0, 0.0)):
        terms = make("expo_reg", lam=lam)(pair(d, 0.0, ref=(d_ref, 0.0), sums=True))
        p, target = s(d), lam * s(d_ref) + 1 - lam
        assert float(terms.loss) == pytest.approx((p - target) ** 2)
        assert float(terms.coefficients[0]) == pytest.approx(2 * (p - target) * p * (1 - p))
        assert float(terms.coefficients[1]) == pytest.approx(-float(terms.coefficients[0]))
        assert float(terms.margin) == d


def test_regression_at_the_reference_is_its_own_minimum_for_lam_one():
    terms = make("expo_reg", lam=1.0, offset=0.4)(pair(1.3, 0.0, ref=(1.3, 0.0), sums=True))
    assert float(terms.loss) == 0.0 and not terms.coefficients.any()


def test_composition_by_hand():
    seen = pair(0.7, 0.0, sums=True)
    terms = make("expo_comp", lam=0.4, samples="anchors")(seen)
    assert float(terms.loss) == pytest.approx(nls(0.7))
    assert float(terms.coefficients[0]) == pytest.approx(-s(-0.7))
    own = make("expo_comp", lam=0.4)(seen)
    assert float(own.loss) == pytest.approx(nls(0.7) - 0.2 * 0.7)
    assert own.coefficients[:, 0].tolist() == pytest.approx([-s(-0.7) - 0.2, s(-0.7) - 0.2])


@pytest.mark.parametrize("name", ["expo_reg", "expo_comp"])
def test_mean_temperature_and_offset_act_on_both_sides(name):
    """mean over 4 and 2 tokens at temperature 0.5 is a sum of policy / 2 and / 1, and of the reference likewise."""
    parameters = {"lam": 0.3} if name == "expo_reg" else {"lam": 0.3, "samples": "anchors"}
    seen = pair(6.0, 0.0, ref=(3.0, 0.0), lengths=(4.0, 2.0), sums=True)
    changed = make(name, logp_reduction="mean", temperature=0.5, offset=1.0, **parameters)(seen)
    plain = make(name, **parameters)(pair(2.0, 0.0, ref=(0.5, 0.0), sums=True))
    assert float(changed.margin) == pytest.approx(float(plain.margin)) == 2.0
    assert float(changed.loss) == pytest.approx(float(plain.loss))
    assert changed.rewards[:, 0].tolist() == pytest.approx([3.0, 0.0])


def test_the_two_regression_targets_have_equal_expected_gradients():
    """Prop. 4.1: regressing on lam p_ref + (1 - lam) p* and on sampled labels differ by a constant in theta."""
    lam, p_true, p_ref = 0.3, 0.8, 0.6
    d_ref = math.log(0.6 / 0.4)
    for d in (-1.0, 0.2, 2.0):
        first = ExpoReg(lam=lam)(pair(d, 0.0, ref=(d_ref, 0.0), sums=True))
        second = ExpoReg(lam=lam)(pair(-d, 0.0, ref=(-d_ref, 0.0), sums=True))
        expected = p_true * float(first.coefficients[0]) - (1 - p_true) * float(second.coefficients[0])
        p, target = s(d), lam * p_ref + (1 - lam) * p_true
        assert expected == pytest.approx(2 * (p - target) * p * (1 - p))


def test_interpolation_on_the_bandit():
    """Strong interpolation (Prop. 4.3): small lambda ends at the Bradley-Terry fit of the data, large at pi_ref."""
    pairs = bandit.draw_pairs(200, seed=1)
    optimum, reference = bandit.bradley_terry_fit(pairs), torch.tensor(bandit.REFERENCE, dtype=torch.float64)
    near = bandit.train(pairs, 1e-5, epochs=400)
    far = bandit.train(pairs, 100.0, epochs=200)
    assert float((near - optimum).abs().max()) < 2e-3 and float((far - reference).abs().max()) < 5e-3
    assert float((optimum - reference).abs().max()) > 0.1, "the two ends must differ for this to show anything"


def test_mixing():
    mixed = make("dpo", beta=0.5, sft_weight=0.2, sft_reduction="mean")
    assert isinstance(mixed, WithSFT) and mixed.objective == make("dpo", beta=0.5)
    assert mixed.needs == dataclasses.replace(mixed.objective.needs, lengths=True)
    assert make("dpo", sft_weight=0.2).needs.mixes_divisors
    assert make("lddpo", sft_weight=0.2).needs.token_weights


@pytest.mark.parametrize(("name", "parameters", "message"), [
    ("nothing", {}, "want one of adpo, caldpo, .* got 'nothing'"),
    ("dpo", {"betta": 1.0}, "dpo takes beta, label_smoothing, robust, logp_reduction, sft_weight, sft_reduction, got"),
    ("sft", {"sft_weight": 1.0}, "sft takes reduction, got 'sft_weight'"),
    ("gpo", {}, "gpo needs shape"),
    ("gpo", {"shape": "round"}, "want shape one of logistic, hinge"),
    ("simpo", {"gamma": 1.0, "margin": 1.0}, "got margin twice"),
    ("simpo", {"gamma_beta_ratio": 1.0, "margin": 1.0}, "want margin or gamma_beta_ratio, got both"),
    ("dpo", {"beta": 0.0}, r"want beta a number in \(0, inf\), got 0.0"),
    ("dpo", {"label_smoothing": 0.5}, r"want label_smoothing a number in \[0, 0.5\)"),
    ("dpo", {"robust": 1}, "want robust True or False, got 1"),
    ("dpo", {"sft_reduction": "mean"}, "sft_reduction without sft_weight"),
    ("dpo", {"sft_weight": -1.0}, r"want sft_weight a number in \[0, inf\)"),
    ("fdpo", {"divergence": "alpha"}, "want alpha a number in"),
    ("fdpo", {"divergence": "js", "alpha": 0.5}, 'want alpha for divergence "alpha" only'),
    ("expo_reg", {"lam": 1.1}, r"want lam a number in \[0, 1\]"),
    ("expo_comp", {"lam": math.inf}, r"want lam a number in \(0, inf\), got inf"),
    ("kto", {"reference_point": "none"}, "want reference_point one of mismatched, batch, column"),
])  # fmt: skip
def test_bad_parameters(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(name, **parameters)


def test_names_have_hints():
    with pytest.raises(ValueError, match=r"got 'DPO' \(did you mean 'dpo'\?\)"):
        make("DPO")


def of_shape(change):
    """DPO whose terms come out changed."""

    class Changed(type(DPO)):
        def __call__(self, logps):
            return change(super().__call__(logps))

    return Changed()


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda terms: terms.loss, TypeError, "want Terms from .*Changed.*got Tensor"),
    (lambda terms: terms._replace(loss=terms.loss.mean()), ValueError, r"want loss of shape \(9,\), got \(\)"),
    (lambda terms: terms._replace(coefficients=terms.coefficients[0]), ValueError,
     r"want coefficients of shape \(2, 9"),
    (lambda terms: terms._replace(loss=terms.loss.detach()), ValueError, "cannot differentiate"),
])  # fmt: skip
def test_what_check_objective_says_of_mistakes(change, error, message):
    with pytest.raises(error, match=message):
        check_objective(of_shape(change))


def test_names_of_columns_are_a_tuple():
    with pytest.raises(TypeError, match="want columns a tuple of names, got the string 'gap'"):
        Needs(columns="gap")


@pytest.mark.parametrize("lam", [0.1, 1 / 3, 0.7])
def test_coefficients_have_every_digit(lam):
    """No parameter passes through a narrower dtype on its way."""
    check_objective(make("dpop", lam=lam))
    check_objective(make("kto", desirable_weight=lam))
