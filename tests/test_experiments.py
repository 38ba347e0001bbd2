"""The paper's synthetic experiments on a shortened run: what Section 5 claims, asserted."""

from __future__ import annotations

import csv

import pytest
import torch

from experiments import bandits, synthetic, tabular
from experiments.bandits import QUICK
from experiments.language import Settings, train
from experiments.tabular import INTERPOLATION, METHODS, PRESERVATION, draw_pairs, total_variation, world
from expo_kernels.objectives import make_objective
from toy.language import Language
from toy.task import distances, make_task

EXPO = ("expo_comp", "expo_reg")


@pytest.mark.slow
def test_interpolation():
    """At a small lambda EXPO's losses are within 0.02, in every probability and for every seed, of the Bradley-Terry
    fit of their data under their own proper score; the others put more than 0.95 on the mode in the median."""
    ends = bandits.interpolation(QUICK, ends_only=True)
    for runs in ends.runs:
        low = runs.final[0, :, 0]
        assert float(runs.lambdas[0]) == pytest.approx(1e-5)
        if runs.method.name in EXPO:
            fit = ends.fits["brier" if runs.method.name == "expo_reg" else "log"][:, 0]
            assert float((low - fit).abs().max()) < 0.02
            assert float((low.mean(0) - INTERPOLATION.best[0]).abs().max()) < 0.06, "the truth, up to six samples"
        else:
            assert float(low[:, 0].median()) > 0.95
    for runs in ends.runs:  # at the upper end of lambda everything stays at the reference
        assert float((runs.final[-1] - INTERPOLATION.reference).abs().max()) < 0.01, runs.method.title


def test_only_expo_preserves_the_good_prompt_and_improves_the_bad_one():
    """Exact preferences: on the good prompt, where pi_ref = pi*, EXPO stays for every lambda."""
    start = float(total_variation(PRESERVATION.reference[1], PRESERVATION.best[1]))
    lambdas = torch.tensor([-5.0, -3.0, -2.0, -1.0, 0.0, 2.0, 5.0], dtype=torch.float64).exp()
    for method in QUICK.methods:
        runs = tabular.train_exact(method, PRESERVATION, lambdas[lambdas <= method.highest], steps=3000)
        good, bad = (total_variation(runs.final[:, 0, x], PRESERVATION.best[x]) for x in (0, 1))
        preserved, improved = float(good.max()) < 1e-3, int((bad < 0.9 * start).sum())
        if runs.method.name in EXPO:
            assert preserved and improved >= len(bad) // 2 and float(bad.min()) < 0.02
        else:
            assert not preserved and not (improved and bool((good[bad < 0.9 * start] < 1e-3).any()))


def test_with_sampled_preferences_expo_is_no_further_than_the_fit():
    expo = tuple(method for method in QUICK.methods if method.name in EXPO)
    pairs = draw_pairs(PRESERVATION, 200, 2)
    for method in expo:
        lambdas = torch.tensor([1e-3, 0.1, 1.0], dtype=torch.float64)
        runs = tabular.train_sampled(method, PRESERVATION, pairs, lambdas, epochs=500)
        fit = tabular.fits(PRESERVATION, pairs, "brier" if method.name == "expo_reg" else "log")[:, 0]
        off = total_variation(runs.final[:, :, 0], PRESERVATION.best[0])
        assert bool((off <= total_variation(fit, PRESERVATION.best[0]) + 2e-3).all())


def test_the_gradient_of_the_tables_is_autograds():
    """One step of every method against autograd of the objective's own loss, clipped the same way."""
    pairs = draw_pairs(PRESERVATION, 20, 1)
    for method in METHODS[:5]:
        value = torch.tensor([0.5], dtype=torch.float64)
        trainer = tabular._Trainer(method, PRESERVATION, value, pairs.shape[1])
        theta = (PRESERVATION.reference.log() + 0.3 * torch.randn(2, 3, dtype=torch.float64)).requires_grad_()
        trainer.theta.data = theta.detach()[None].clone()
        trainer.step(pairs, None)
        logp = torch.log_softmax(theta, -1)
        policy, reference = logp.flatten()[pairs[0].T], PRESERVATION.reference.log().flatten()[pairs[0].T]
        objective = make_objective(method.name, **{method.parameter: 0.5}, **dict(method.fixed))
        seen = tabular.SequenceLogprobs(
            policy, torch.ones_like(policy), reference, {}, tabular.Counts(1, 1, 1), torch.ones_like(policy[0]).bool()
        )
        loss = objective(seen).loss.mean()
        if objective.needs.anchor_scale is not None:
            loss = loss + objective.needs.anchor_scale * (PRESERVATION.reference * logp).sum() / 2
        (exact,) = torch.autograd.grad(loss, theta)
        assert torch.allclose(trainer.theta.grad[0], exact * min(1.0, 10.0 / float(exact.norm())), rtol=1e-9)


def test_runs_do_not_depend_on_their_neighbours():
    """A lambda trained beside others is trained as alone: clipping and Adam see each run by itself."""
    pairs, lambdas = draw_pairs(INTERPOLATION, 60, 3), torch.tensor([1e-3, 50.0], dtype=torch.float64)
    for method in (METHODS[0], METHODS[3]):
        both = tabular.train_sampled(method, INTERPOLATION, pairs, lambdas, epochs=20)
        alone = tabular.train_sampled(method, INTERPOLATION, pairs, lambdas[1:], epochs=20)
        assert torch.allclose(both.final[1], alone.final[0], rtol=1e-12)
        assert both.epochs.tolist() == alone.epochs.tolist() and both.policies.shape == (21, 2, 3, 1, 3)


def test_preferences_of_a_world():
    p = world([[0.6, 0.3, 0.1]], [[0.4, 0.4, 0.2]]).preferences()[0]
    assert p[0, 1] == pytest.approx(2 / 3) and p[1, 0] == pytest.approx(1 / 3) and p[0, 2] == pytest.approx(6 / 7)


def test_the_command_writes_figures_and_tables(tmp_path, monkeypatch, capsys):
    tiny = QUICK._replace(epochs=0.01, seeds=2, preservation_seeds=1, sweep=2, preservation_sweep=2)
    monkeypatch.setattr(bandits, "QUICK", tiny)
    for name in ("figure3", "figure4", "figure5", "figure8"):
        synthetic.main([name, "--quick", "--out", str(tmp_path)])
        for kind in ("png", "pdf", "csv", "md"):
            assert (tmp_path / f"{name}.{kind}").stat().st_size > 100
    rows = list(csv.DictReader((tmp_path / "figure4.csv").open()))
    assert {row["method"] for row in rows} == {method.title for method in tiny.methods}
    assert all(abs(sum(float(row[y]) for y in "abc") - 1) < 1e-5 for row in rows)
    assert (tmp_path / "figure5.md").read_text().strip() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        synthetic.main(["figure6"])


@pytest.mark.slow
def test_the_transformer_interpolates_too():
    """Shortened: the compositional loss moves towards pi* at a small lambda and stays at pi_ref at a large one."""
    settings = Settings(steps=150, pairs=48, anchors=48)
    task = make_task(Language(letters="abc", longest=3, prompts=("0", "1")), steps=150, batch=192)
    start = distances(task.reference, task)
    near = distances(train(task, make_objective("expo_comp", lam=0.05, samples="anchors"), settings), task)
    far = distances(train(task, make_objective("expo_comp", lam=30.0, samples="anchors"), settings), task)
    assert near["tv_best_inside"] < 0.6 * start["tv_best"] and near["kl_best"] < 0.5 * start["kl_best"]
    assert far["tv_reference"] < 0.15 and far["tv_reference"] < 0.5 * near["tv_reference"]
