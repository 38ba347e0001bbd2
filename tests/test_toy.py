"""The small worlds: a tokenizer with a chat template, a language that can be listed, preferences of a known reward."""

from __future__ import annotations

import pytest
import torch

from toy.bandit import bradley_terry_fit
from toy.language import Language
from toy.model import distribution, hidden_states, small_lm
from toy.preferences import bradley_terry_optimum, draw_pairs
from toy.tokenizer import tokenizer

SMALL = Language(letters="ab", longest=2, prompts=("0", "1"))


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
