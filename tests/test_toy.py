"""The small worlds: a tokenizer with a chat template, a language that can be listed, preferences of a known reward."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from toy.bandit import bradley_terry_fit
from toy.files import load_policy, read_truth, write_anchors, write_model, write_pairs, write_truth
from toy.language import Language
from toy.model import distribution, hidden_states, small_lm
from toy.preferences import bradley_terry_optimum, draw_pairs
from toy.task import Task, Truth, accuracy, distances, make_task
from toy.tokenizer import tokenizer
from train import demo

SMALL = Language(letters="ab", longest=2, prompts=("0", "1"))


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(SMALL, steps=20, batch=32)


def rows_of(path: Path) -> list[dict[str, list[dict[str, str]]]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_tokenizer_makes_a_token_of_each_character():
    words = tokenizer()
    ids = words("ab 7.")["input_ids"]
    assert words.convert_ids_to_tokens(ids) == ["a", "b", " ", "7", "."]
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = words.apply_chat_template(chat, tokenize=False)
    assert text == "<user>hi<assistant>yo<eos>"
    assert words.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True) == "<user>hi<assistant>"
    ids = words.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert words.convert_ids_to_tokens(ids) == ["<user>", "h", "i", "<assistant>", "y", "o", "<eos>"]
    assert words.decode(ids, skip_special_tokens=True).replace(" ", "") == "hiyo"


def test_a_language_is_listed_with_its_labels():
    assert SMALL.responses == ("a", "b", "aa", "ab", "ba", "bb")
    ids, labels = SMALL.tokens
    assert ids.shape == (2, 6, 6) and labels.shape == (2, 6, 5)
    names = SMALL.tokenizer.convert_ids_to_tokens
    assert names(ids[1, 3].tolist()) == ["<user>", "1", "<assistant>", "a", "b", "<eos>"]
    scored = labels[1, 3] != -100
    assert names(labels[1, 3][scored].tolist()) == ["a", "b", "<eos>"]
    assert torch.equal(labels[1, 3][scored], ids[1, 3, 1:][scored])
    assert len(Language().responses) == 340
    assert torch.equal(SMALL.features(3), SMALL.features(3)) and not torch.equal(SMALL.features(3), SMALL.features(4))


def test_the_distribution_is_the_models_own():
    """Against log_softmax of HF's logits, response by response, and what is left over for everything else."""
    model = small_lm(SMALL.tokenizer, width=16, layers=1)
    p = distribution(model, SMALL)
    assert torch.allclose(p.sum(1), torch.ones(2, dtype=torch.float64)) and bool((p[:, -1] > 0.1).all())
    ids, labels = SMALL.tokens
    with torch.no_grad():
        logp = model(input_ids=ids[1]).logits[:, :-1].double().log_softmax(-1)
    scored = labels[1] != -100
    exact = (logp.gather(2, labels[1].clamp(min=0)[..., None])[..., 0] * scored).sum(1).exp()
    assert torch.allclose(p[1, :-1], exact, rtol=1e-5)
    assert hidden_states(model, ids[0]).shape == (6, 5, 16)


def test_labels_are_drawn_by_bradley_terry():
    """p*(y1 > y2) = pi*(y1) / (pi*(y1) + pi*(y2)), and two different responses of the sampler."""
    reward = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    best = bradley_terry_optimum(reward)[0]
    pairs = draw_pairs(torch.tensor([[0.2, 0.2, 0.6]]), reward, 20_000, torch.Generator().manual_seed(0))
    assert bool((pairs.chosen != pairs.rejected).all())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        wins = int(((pairs.chosen == a) & (pairs.rejected == b)).sum())
        losses = int(((pairs.chosen == b) & (pairs.rejected == a)).sum())
        assert wins / (wins + losses) == pytest.approx(float(best[a] / (best[a] + best[b])), abs=0.02)


@pytest.mark.parametrize("score", ["log", "brier"])
def test_the_bradley_terry_fit(score):
    """Of 900 pairs in exact proportion the fit is the truth, whatever the score."""
    best = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    counts = {(0, 1): (200, 100), (0, 2): (300, 50), (1, 2): (225, 75)}  # 2 : 1, 6 : 1, 3 : 1
    pairs = [[a, b] for (a, b), (wins, _) in counts.items() for _ in range(wins)]
    pairs += [[b, a] for (a, b), (_, losses) in counts.items() for _ in range(losses)]
    assert torch.allclose(bradley_terry_fit(torch.tensor(pairs), score), best)


def one_prompt(reference: list[float], best: list[float]) -> Truth:
    """Two responses, and everything else."""
    return Truth(Language("ab", 1, ("0",)), *(torch.tensor([p], dtype=torch.float64) for p in (reference, best)))


def test_distances_of_two_responses():
    truth = one_prompt([0.5, 0.4, 0.1], [0.75, 0.25, 0.0])
    found = distances(torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64), truth)
    assert found["tv_best"] == pytest.approx((0.15 + 0.05 + 0.2) / 2)
    assert found["tv_best_inside"] == pytest.approx(0.0)
    assert found["kl_best"] == pytest.approx(0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.2))
    assert found["tv_reference"] == pytest.approx((0.1 + 0.2 + 0.1) / 2)
    assert found["outside"] == pytest.approx(0.2) and found["tv_mode"] == pytest.approx(0.4)


def test_accuracy_of_two_responses():
    """The one pair there is: the first is preferred with probability .75."""
    truth = one_prompt([0.5, 0.4, 0.1], [0.75, 0.25, 0.0])
    for policy, right in (([0.6, 0.2, 0.2], 0.75), ([0.2, 0.6, 0.2], 0.25), ([0.4, 0.4, 0.2], 0.5)):
        assert accuracy(torch.tensor([policy], dtype=torch.float64), truth) == pytest.approx(right)


def test_accuracy_is_the_mean_over_drawn_pairs(task):
    pairs = draw_pairs(task.sampler, task.reward, 40_000, torch.Generator().manual_seed(0))
    for p in (task.reference, task.best):
        right = (p[pairs.prompt, pairs.chosen] > p[pairs.prompt, pairs.rejected]).double().mean()
        assert accuracy(p, task) == pytest.approx(float(right), abs=0.01)
    assert accuracy(task.best, task) > accuracy(task.reference, task)


def test_a_model_goes_to_a_folder_and_back(task, tmp_path):
    write_model(task, tmp_path / "reference")
    assert (tmp_path / "reference" / "model.safetensors").is_file()
    found = load_policy(tmp_path / "reference", SMALL)
    assert float((found.distribution - task.reference).abs().max()) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), task.model.parameters(), strict=True))


def test_what_is_no_policy_of_the_language_is_refused(task, tmp_path):
    write_model(task, tmp_path / "reference")
    with pytest.raises(ValueError, match=r"want the folder of a model, got .*policy without config.json"):
        load_policy(tmp_path / "policy", SMALL)
    with pytest.raises(ValueError, match=r"want the language's tokenizer"):
        load_policy(tmp_path / "reference", Language(letters="abc", longest=2, prompts=("0", "1")))


def test_the_truth_goes_to_a_file_and_back(task, tmp_path):
    write_truth(task, tmp_path / "truth.safetensors")
    found = read_truth(tmp_path / "truth.safetensors")
    assert found.language == SMALL
    assert torch.equal(found.reference, task.reference) and torch.equal(found.best, task.best)


def test_written_pairs_win_by_bradley_terry(task, tmp_path):
    """Each two responses meet as often as pi_ref draws them, and win by pi*(y1) / (pi*(y1) + pi*(y2))."""
    count = 20_000
    write_pairs(task, tmp_path / "pairs.jsonl", count, seed=1)
    met: Counter[tuple[str, str, str]] = Counter()
    for row in rows_of(tmp_path / "pairs.jsonl"):
        (prompt,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert list(row) == ["prompt", "chosen", "rejected"] and prompt["role"] == "user"
        assert chosen["role"] == rejected["role"] == "assistant"
        met[prompt["content"], chosen["content"], rejected["content"]] += 1
    assert met.total() == count
    q = task.sampler / task.sampler.sum(1, keepdim=True)
    for x, prompt in enumerate(SMALL.prompts):
        for i, first in enumerate(SMALL.responses):
            assert not met[prompt, first, first]
            for j, second in enumerate(SMALL.responses[:i]):
                wins, losses = met[prompt, first, second], met[prompt, second, first]
                share = float(q[x, i] * q[x, j] * (1 / (1 - q[x, i]) + 1 / (1 - q[x, j]))) / len(SMALL.prompts)
                assert (wins + losses) / count == pytest.approx(share, abs=4 * (share / count) ** 0.5)
                p = float(task.best[x, i] / (task.best[x, i] + task.best[x, j]))
                assert wins / (wins + losses) == pytest.approx(p, abs=2 / (wins + losses) ** 0.5)


def test_written_anchors_are_samples_of_the_reference(task, tmp_path):
    write_anchors(task, tmp_path / "anchors.jsonl", 20_000, seed=1)
    said: Counter[tuple[str, str]] = Counter()
    for row in rows_of(tmp_path / "anchors.jsonl"):
        assert list(row) == ["prompt", "response"] and row["response"][0]["role"] == "assistant"
        said[row["prompt"][0]["content"], row["response"][0]["content"]] += 1
    q = task.sampler / task.sampler.sum(1, keepdim=True)
    for x, prompt in enumerate(SMALL.prompts):
        for y, response in enumerate(SMALL.responses):
            assert said[prompt, response] / 20_000 == pytest.approx(float(q[x, y]) / 2, abs=0.012)


def test_written_data_follow_the_seed(task, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_pairs(task, tmp_path / name, 50, seed)
    a, b, c = ((tmp_path / name).read_text() for name in "abc")
    assert a == b != c
    with pytest.raises(ValueError, match="want a count >= 1, got 0"):
        write_anchors(task, tmp_path / "d", 0, seed=1)


def test_the_demo_judges_and_draws(task, tmp_path, capsys):
    before, best = demo.score(task.reference, task), demo.score(task.best, task)
    halfway = demo.score((task.reference + task.best) / 2, task)
    assert best.tv == best.outside == 0 and halfway.tv == pytest.approx(before.tv / 2)
    assert demo.verdict(before, halfway) == 0 and "0.50 of the distance" in capsys.readouterr().out
    assert demo.verdict(before, before) == 1 and "want less than 0.6" in capsys.readouterr().out
    assert f"{before.tv:10.4f}{halfway.tv:10.4f}{0:10.4f}" in demo.report(before, halfway, best)
    demo.draw(task.reference, task, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_the_demo_says_where_a_failed_training_left_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "make_task", lambda: make_task(SMALL, steps=1, batch=4))
    monkeypatch.setattr(demo, "command", lambda out, ranks: ["python", "-c", "raise SystemExit(3)"])
    assert demo.main(["--out", str(tmp_path), "--ranks", "2"]) == 1
    assert f"got 3; its output is above, its files are in {tmp_path}" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "pairs.jsonl")) == demo.PAIRS


def test_the_demos_step_is_divided_among_the_ranks(tmp_path):
    for ranks, share in ((1, "128"), (2, "64")):
        words = demo.command(tmp_path, ranks)
        assert words[words.index("--num_gpus") + 1] == str(ranks)
        for name in ("--per_device_train_batch_size", "--per_device_anchors"):
            assert words[words.index(name) + 1] == share
    with pytest.raises(SystemExit):
        demo.main(["--ranks", "3"])
