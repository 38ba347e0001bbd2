"""Objectives on their own: coefficients against autograd in float64, values by hand, and what the paper proves."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import pytest
import small_objectives
import torch

from expo_kernels import Objective, SequenceLogprobs
from expo_kernels.objectives import OBJECTIVES, ExpoComp, ExpoReg, check_objective, make_objective
from expo_kernels.types import Counts
from toy import bandit

SHIPPED = {
    "expo_reg": [ExpoReg(lam=0.3), ExpoReg(lam=0.0), ExpoReg(lam=1.0), ExpoReg(lam=0.2, logp_reduction="mean")],
    "expo_comp": [
        ExpoComp(lam=0.3),
        ExpoComp(lam=2.0, samples="anchors"),
        ExpoComp(lam=0.3, logp_reduction="mean", temperature=0.5),
    ],
}
SMALL_ONES = [cls() for _, cls in inspect.getmembers(small_objectives, inspect.isclass) if hasattr(cls, "needs")]
EVERY = [*(o for group in SHIPPED.values() for o in group), *SMALL_ONES]


def test_every_registered_objective_is_tested_here():
    assert set(SHIPPED) == set(OBJECTIVES)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_coefficients_are_the_gradient_of_the_loss(objective):
    """At margins to 1e4 and beyond; test_not_finite.test_large_differences has values by hand there."""
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


def at(d: float, d_ref: float = 0.0, lengths=(1.0, 1.0)) -> SequenceLogprobs:
    def pair(x):
        return torch.tensor([[x], [0.0]], dtype=torch.float64)

    return SequenceLogprobs(
        pair(d), torch.tensor(lengths, dtype=torch.float64)[:, None], pair(d_ref), {}, Counts(1, 1, 1),
        torch.ones(1, dtype=torch.bool),
    )  # fmt: skip


def test_regression_by_hand():
    def s(x):
        return 1 / (1 + math.exp(-x))

    for d, d_ref, lam in ((0.7, -0.4, 0.3), (-2.0, 1.0, 1.0), (3.0, 0.0, 0.0)):
        terms = ExpoReg(lam=lam)(at(d, d_ref))
        p, target = s(d), lam * s(d_ref) + 1 - lam
        assert float(terms.loss) == pytest.approx((p - target) ** 2)
        assert float(terms.coefficients[0]) == pytest.approx(2 * (p - target) * p * (1 - p))
        assert float(terms.coefficients[1]) == pytest.approx(-float(terms.coefficients[0]))
        assert float(terms.margin) == d


def test_regression_at_the_reference_is_its_own_minimum_for_lam_one():
    terms = ExpoReg(lam=1.0)(at(1.3, 1.3))
    assert float(terms.loss) == 0.0 and not terms.coefficients.any()


def test_composition_by_hand():
    terms = ExpoComp(lam=0.4, samples="anchors")(at(0.7))
    assert float(terms.loss) == pytest.approx(math.log(1 + math.exp(-0.7)))
    assert float(terms.coefficients[0]) == pytest.approx(-1 / (1 + math.exp(0.7)))
    pair = ExpoComp(lam=0.4)(at(0.7))
    assert float(pair.loss) == pytest.approx(math.log(1 + math.exp(-0.7)) - 0.2 * 0.7)
    assert float(pair.coefficients[0]) == pytest.approx(-1 / (1 + math.exp(0.7)) - 0.2)
    assert float(pair.coefficients[1]) == pytest.approx(1 / (1 + math.exp(0.7)) - 0.2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_mean_and_temperature_act_on_both_sides(name):
    """mean over 4 and 2 tokens at temperature 0.5 is a sum of policy / 2 and / 1, and of the reference likewise."""
    seen = at(6.0, 3.0, lengths=(4.0, 2.0))
    changed = make_objective(name, lam=0.3, logp_reduction="mean", temperature=0.5)(seen)
    plain = make_objective(name, lam=0.3)(at(3.0, 1.5))
    assert float(changed.margin) == pytest.approx(float(plain.margin))
    if name == "expo_reg":
        assert float(changed.loss) == pytest.approx(float(plain.loss))
    assert changed.rewards[:, 0].tolist() == pytest.approx([3.0, 0.0])


def test_the_two_regression_targets_have_equal_expected_gradients():
    """Prop. 4.1: regressing on lam p_ref + (1 - lam) p* and on sampled labels differ by a constant in theta."""
    lam, p_true, d_ref = 0.3, 0.8, math.log(0.6 / 0.4)
    p_ref = 0.6
    for d in (-1.0, 0.2, 2.0):
        first, second = ExpoReg(lam=lam)(at(d, d_ref)), ExpoReg(lam=lam)(at(-d, -d_ref))
        expected = p_true * float(first.coefficients[0]) - (1 - p_true) * float(second.coefficients[0])
        p = 1 / (1 + math.exp(-d))
        target = lam * p_ref + (1 - lam) * p_true
        assert expected == pytest.approx(2 * (p - target) * p * (1 - p))


def test_interpolation_on_the_bandit():
    """Strong interpolation (Prop. 4.3): small lambda ends at the Bradley-Terry fit of the data, large at pi_ref."""
    pairs = bandit.draw_pairs(200, seed=1)
    optimum, reference = bandit.bradley_terry_fit(pairs), torch.tensor(bandit.REFERENCE, dtype=torch.float64)
    near = bandit.train(pairs, 1e-5, epochs=400)
    far = bandit.train(pairs, 100.0, epochs=200)
    assert float((near - optimum).abs().max()) < 2e-3 and float((far - reference).abs().max()) < 5e-3
    assert float((optimum - reference).abs().max()) > 0.1, "the two ends must differ for this to show anything"
