"""evaluation.diversity: its measures against others written here, what is the same for everybody, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from evaluation import diversity, generate
from evaluation.generating.prompts import template_digest
from evaluation.measuring.entropy import Continuation, Scorer, predictive_entropy, token_batches
from evaluation.measuring.measures import distinct, draw, self_bleu
from evaluation.measuring.table import MEASURES, figure_of
from evaluation.responses import Response
from expo_kernels.head import attach
from toy.language import Language
from toy.model import small_lm

SMALL = Language(letters="ab", longest=2, prompts=("0", "1"))
CORPUS = (
    ("the cat sat on the mat", "the cat sat on a red mat", "a dog ran over the red mat today"),
    ("yes", "yes yes yes", "no no yes", "maybe it is so and maybe it is not"),
    ("one two three four five", "one two three four five", "six seven eight nine ten"),
    ("to be or not to be that is the question", "to be or to do that was the one question"),
)


def grams(words: list[str], n: int) -> Counter[str]:
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypothesis: str, references: list[str]) -> float:
    """Papineni et al. 2002: clipped counts, closest length; NIST's smoothing; orders that the sentence has."""
    words, others = hypothesis.split(), [reference.split() for reference in references]
    logs, halvings, matched = [], 0, False
    for n in range(1, min(4, len(words)) + 1):
        own = grams(words, n)
        hits = sum(min(count, max(grams(other, n)[gram] for other in others)) for gram, count in own.items())
        matched = matched or hits > 0
        halvings += hits == 0
        logs.append(math.log((hits or 0.5**halvings) / sum(own.values())))
    closest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    brevity = min(1.0, math.exp(1 - closest / len(words)))
    return brevity * math.exp(sum(logs) / len(logs)) if matched else 0.0


@pytest.mark.parametrize("responses", CORPUS)
def test_self_bleu_is_the_one_written_here(responses):
    want = [bleu(one, [*responses[:i], *responses[i + 1 :]]) for i, one in enumerate(responses)]
    assert self_bleu(responses) == pytest.approx(sum(want) / len(want), rel=1e-9)


def test_self_bleu_by_hand():
    assert self_bleu(["a b c d e", "a b c d e"]) == pytest.approx(1.0)
    assert self_bleu(["a b", "c d"]) == 0.0
    assert self_bleu(["a b c", "a b d"]) == pytest.approx((2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3))  # the third halved
    assert self_bleu(["abc", "abd"], "char") == self_bleu(["a b c", "a b d"])


def test_self_bleu_of_one_response_is_refused():
    with pytest.raises(ValueError, match="want at least 2 responses of a prompt, got 1"):
        self_bleu(["alone"])


@pytest.mark.parametrize("responses", CORPUS)
def test_distinct_n_of_all_tokens_is_the_one_written_here(responses):
    split = [response.split() for response in responses]
    want = []
    for n in (1, 2, 3):
        every = sum((grams(words, n) for words in split), Counter())
        want.append(len(every) / every.total())
    assert distinct(split, sum(map(len, split)), seed="any") == pytest.approx(want, rel=1e-12)


def test_distinct_n_by_hand():
    assert distinct([list("aab"), list("ab")], 5, seed="0") == (2 / 5, 2 / 3, 1.0)
    one, two, three = distinct([["a"], ["b"]], 2, seed="0")
    assert one == 1.0 and math.isnan(two) and math.isnan(three)


@pytest.mark.parametrize("budget", [0, 6])
def test_distinct_n_wants_a_budget_that_is_there(budget):
    with pytest.raises(ValueError, match=rf"want a budget of 1 to the prompt's 5 tokens, got {budget}"):
        distinct([list("aab"), list("ab")], budget, seed="0")


def test_a_draw_has_the_budget_and_no_favourites():
    """Windows of four tokens' response begin anywhere alike, and any response comes first alike."""
    responses = [list("abcd"), list("ef"), list("ghi")]
    random, rounds = Random(0), 6000
    drawn = [draw(responses, 2, random) for _ in range(rounds)]
    assert {sum(map(len, parts)) for parts in drawn} == {2}
    seen = Counter("".join(parts[0]) for parts in drawn)
    want = {"ab": 1 / 9, "bc": 1 / 9, "cd": 1 / 9, "ef": 1 / 3, "gh": 1 / 6, "hi": 1 / 6}
    assert seen.keys() == want.keys()
    for window, share in want.items():
        assert abs(seen[window] / rounds - share) < 4 * math.sqrt(share * (1 - share) / rounds), window
    assert {sum(map(len, draw(responses, 7, random))) for _ in range(50)} == {7}


def test_at_one_budget_longer_responses_are_not_less_diverse():
    random = Random(1)
    short, long = ([[random.randrange(50) for _ in range(length)] for _ in range(20)] for length in (20, 80))
    whole = [distinct(each, sum(map(len, each)), seed="0")[0] for each in (short, long)]
    fixed = [distinct(each, 200, seed="0", draws=64)[0] for each in (short, long)]
    assert whole[1] < 0.5 * whole[0]
    assert fixed[1] == pytest.approx(fixed[0], rel=0.03)


def by_logits(model, prompt: list[int], response: list[int]) -> tuple[float, float]:
    """Entropy and surprisal from torch's logits of the sequence alone, in float64."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1).mean()
    return float(entropy), -float(logp.gather(1, torch.tensor(response)[:, None]).mean())


@torch.no_grad()
def test_the_entropy_is_torchs_over_the_responses_tokens():
    model = small_lm(SMALL.tokenizer, seed=3).eval()
    model.lm_head.weight.mul_(30)  # far from uniform
    random = Random(0)
    V = len(SMALL.tokenizer)
    sequences = [
        Continuation([random.randrange(V) for _ in range(p)], [random.randrange(V) for _ in range(r)])
        for p, r in ((1, 1), (3, 9), (7, 2), (2, 5), (12, 4))
    ]
    want = [by_logits(model, list(s.prompt), list(s.response)) for s in sequences]
    assert max(w[0] for w in want) - min(w[0] for w in want) > 0.01
    attach(model)
    for batch_tokens in (1, 24, 10_000):
        got = predictive_entropy(model, sequences, batch_tokens=batch_tokens, pad=0)
        assert [s.tokens for s in got] == [1, 9, 2, 5, 4]
        for scored, (entropy, surprisal) in zip(got, want, strict=True):
            assert (scored.entropy, scored.surprisal) == pytest.approx((entropy, surprisal), rel=2e-5)


def test_batches_fit_the_limit_and_hold_everything_once():
    lengths = [5, 1, 9, 3, 3, 12, 2]
    batches = list(token_batches(lengths, 10))
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert batches[0] == [5]  # longer than the limit: alone
    assert all(len(batch) * max(lengths[i] for i in batch) <= 10 for batch in batches[1:])
    assert any(len(batch) > 1 for batch in batches)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    small_lm(SMALL.tokenizer, seed=1).save_pretrained(path)
    SMALL.tokenizer.save_pretrained(path)
    return path


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@pytest.mark.parametrize(("finish", "want"), [("stop", "ab<eos>"), (None, "ab<eos>"), ("length", "ab")])
@pytest.mark.parametrize("prompt", ["0", chat("0")])
def test_the_end_is_scored_where_the_model_said_it(folder, finish, want, prompt):
    made = Scorer(str(folder)).continuation(Response(prompt=prompt, response="ab", finish=finish))
    names = SMALL.tokenizer.convert_ids_to_tokens
    assert "".join(names(list(made.response))) == want
    assert "".join(names(list(made.prompt))) == ("0" if prompt == "0" else "<user>0<assistant>")


def write(path: Path, said: dict[str, list[str]], **more: object) -> Path:
    rows = [
        {"prompt_id": prompt, "prompt": chat(prompt), "response": response, "sample": i, **more}
        for prompt, responses in said.items()
        for i, response in enumerate(responses)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SAID = {"0": ["a b", "b a", "a a"], "1": ["a a", "a a", "b b"]}


def run(*args: object) -> int:
    return diversity.main([str(arg) for arg in args])


def cells(text: str) -> list[list[str]]:
    """Of the table's rows, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_command_measures_a_file(tmp_path, folder, capsys):
    path = write(tmp_path / "said.jsonl", SAID, model="small", sampling={"temperature": 0.5})
    assert run(path, "--model", folder, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    (row,) = cells(printed)
    assert row[:5] == ["said", "small", "0.5", "3", "2.0"]
    scorer = Scorer(str(folder))
    plain = small_lm(SMALL.tokenizer, seed=1).eval()
    with torch.no_grad():
        every = [
            by_logits(plain, *map(list, scorer.continuation(Response(prompt=chat(prompt), response=said))))
            for prompt, responses in SAID.items()
            for said in responses
        ]
    assert float(row[5].split()[0]) == pytest.approx(sum(e for e, _ in every) / 6, abs=6e-4)
    assert float(row[6].split()[0]) == pytest.approx(sum(s for _, s in every) / 6, abs=6e-4)
    want = sum(bleu(r, rs[:i] + rs[i + 1 :]) for rs in SAID.values() for i, r in enumerate(rs)) / 6
    assert float(row[7].split()[0]) == pytest.approx(want, abs=6e-4)
    assert [cell.split()[0] for cell in row[8:10]] == [f"{2 / 6:.3f}", f"{(3 / 3 + 2 / 3) / 2:.3f}"]
    assert row[10] == "-", "no response has three words"
    assert "distinct-n: 6 words a prompt, the same for every file, drawn 8 times (seed 0)." in printed
    lines = [json.loads(line) for line in (tmp_path / "out" / "diversity_per_prompt.jsonl").read_text().splitlines()]
    assert [line["prompt_id"] for line in lines] == ["0", "1"] and lines[0]["distinct"] == [2 / 6, 1.0, None]
    assert (tmp_path / "out" / "diversity.png").read_bytes().startswith(b"\x89PNG")
    assert printed.splitlines()[2] in (tmp_path / "out" / "diversity.md").read_text()


def test_files_are_compared_over_the_same_prompts_tokens_and_responses(tmp_path, capsys):
    few = write(
        tmp_path / "few.jsonl", {"0": ["a b", "b a"], "1": ["a", " "], "3": ["a"]}, sampling={"temperature": 0.5}
    )
    many = write(tmp_path / "many.jsonl", SAID, model="x", sampling={"temperature": 1})
    assert run(few, many, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert [row[:5] for row in cells(printed)] == [["few", "", "0.5", "1 to 2", "1.7"], ["many", "x", "1", "3", "2.0"]]
    assert [row[7].endswith("(1 prompts)") for row in cells(printed)] == [True, True], "prompt 1 has no siblings in few"
    assert "- 2 prompts, those with a response in every file." in printed
    assert "few: left out 1 prompts without a response in another file, 1 blank responses." in printed
    assert "each of 2 responses against the others; left out 1 prompts that have fewer in some file" in printed
    assert "distinct-n: 1 words a prompt" in printed
    assert "differ in temperature" in printed and "not measured, want --model" in printed


def test_a_budget_leaves_out_the_prompts_that_have_less_in_any_file(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", {"0": ["a b", "b a"], "1": ["a"]})
    many = write(tmp_path / "many.jsonl", SAID)
    assert run(few, many, "--budget", 4) == 0
    printed = capsys.readouterr().out
    assert "(seed 0); left out 1 prompts that have fewer in some file" in printed
    assert [row[8].endswith("(1 prompts)") for row in cells(printed)] == [True, True]
    assert run(few, many, "--budget", 5) == 2
    assert "--budget: want 1 to 4 tokens, the most of any prompt, got 5" in capsys.readouterr().err


def test_one_short_prompt_decides_neither_budget_nor_siblings(tmp_path, capsys):
    """Of 40 prompts two are left out at most; of 19 none, whatever they have."""
    for count, budget, siblings, short in ((40, 12, 3, 2), (19, 2, 2, 0)):
        said = {str(i): ["a b c d"] * 3 for i in range(count)} | {"0": ["a", "b"], "1": ["a b c", "b"]}
        assert run(write(tmp_path / "said.jsonl", said)) == 0
        printed = capsys.readouterr().out
        left = f"; left out {short} prompts that have fewer in some file." if short else "."
        assert f"distinct-n: {budget} words a prompt, the same for every file, drawn 8 times (seed 0){left}" in printed
        assert f"each of {siblings} responses against the others{left}" in printed
    assert run(tmp_path / "said.jsonl", "--siblings", 3) == 0
    assert "each of 3 responses against the others; left out 2 prompts" in capsys.readouterr().out
    assert run(tmp_path / "said.jsonl", "--siblings", 4) == 2
    assert "--siblings: want 2 to 3, the most of any prompt, got 4" in capsys.readouterr().err


def test_inputs_in_the_folder_of_the_table_stay(tmp_path, capsys):
    path = write(tmp_path / "diversity.jsonl", SAID)
    before = path.read_bytes()
    assert run(path, "--out", tmp_path) == 0 and path.read_bytes() == before
    path = write(tmp_path / "diversity_per_prompt.jsonl", SAID)
    assert run(path, "--out", tmp_path) == 2 and path.read_bytes() == before
    assert "want an output that is neither an input nor" in capsys.readouterr().err


def test_a_file_under_two_models_stands_twice(tmp_path, folder, capsys):
    other = tmp_path / "other"
    small_lm(SMALL.tokenizer, seed=2).save_pretrained(other)
    SMALL.tokenizer.save_pretrained(other)
    path = write(tmp_path / "said.jsonl", SAID)
    assert run(path, path, "--model", folder, "--model", other) == 0
    one, two = cells(capsys.readouterr().out)
    assert (one[0], two[0]) == ("said 1", "said 2") and one[5] != two[5] and one[7:] == two[7:]


def test_another_chat_template_than_was_sampled_with_is_told_of(tmp_path, folder, capsys):
    words = SMALL.tokenizer
    path = write(tmp_path / "said.jsonl", SAID, sampling={"template": template_digest(words, {})})
    told = "said: 6 responses were sampled with another chat template"
    assert run(path, "--model", folder) == 0
    assert told not in capsys.readouterr().out
    for more in (("--chat-template", words.chat_template + " "), ("--chat-template-args", '{"mood": 1}')):
        assert run(path, "--model", folder, *more) == 0
        assert told in capsys.readouterr().out
    write(path, SAID, sampling={"template": template_digest(words, {"mood": 1})})
    assert run(path, "--model", folder, "--chat-template-args", '{"mood": 1}') == 0
    assert told not in capsys.readouterr().out
    assert run(path, "--model", folder, "--chat-template-args", '{"tools": []}') == 2
    assert "--chat-template-args: want names that the chat template reads, got tools" in capsys.readouterr().err


def test_the_context_of_a_response_is_the_one_it_was_sampled_in(folder):
    template = "{% for tool in tools or [] %}{{ tool.name }}{% endfor %}{{ mood }}" + SMALL.tokenizer.chat_template
    row = Response(prompt=chat("0"), response="ab", tools=[{"name": "b"}], template_args={"mood": "a"})
    scorer = Scorer(str(folder), chat_template=template, template_args={"mood": "b"})
    names = SMALL.tokenizer.convert_ids_to_tokens
    assert "".join(names(list(scorer.continuation(row).prompt))) == "ba<user>0<assistant>"
    plain = dataclasses.replace(row, tools=None, template_args={})
    assert "".join(names(list(scorer.continuation(plain).prompt))) == "b<user>0<assistant>"


def test_a_sweep_over_temperatures_is_sampled_measured_and_drawn(tmp_path):
    """The hotter, the more different, at one budget; the model's entropy is measured at temperature 1 throughout."""
    model = small_lm(SMALL.tokenizer, seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.save_pretrained(tmp_path / "model")
    SMALL.tokenizer.save_pretrained(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": chat(p)}) + "\n" for p in ("0", "1", "01", "10", "11")))
    temperatures = ("0.3", "1", "3")
    assert generate.main([
        "--model", str(tmp_path / "model"), "--prompts", str(prompts), "--samples", "8", "--max-tokens", "8",
        "--temperatures", *temperatures, "--out", str(tmp_path / "t{temperature}.jsonl"),
    ]) == 0  # fmt: skip
    paths = [str(tmp_path / f"t{temperature}.jsonl") for temperature in reversed(temperatures)]
    more = ["--model", str(tmp_path / "model"), "--tokens", "model", "--bleu-tokenize", "char"]
    table = diversity.compare(diversity._arguments([*paths, *more]))
    assert [row.temperature for row in table.rows] == [3.0, 1.0, 0.3]
    hot, warm, cold = (row.estimates for row in table.rows)
    assert hot["distinct-2"].mean > warm["distinct-2"].mean > cold["distinct-2"].mean
    assert hot["self-BLEU"].mean < warm["self-BLEU"].mean < cold["self-BLEU"].mean
    assert any("differ in temperature" in note for note in table.notes)
    axes = figure_of(table).axes
    assert [ax.get_title() for ax in axes] == list(MEASURES)
    for ax in axes:
        (line,) = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert list(line.get_xdata()) == [0.3, 1.0, 3.0] and ax.get_xlabel() == "temperature"
        assert list(line.get_ydata()) == [row[ax.get_title()].mean for row in (cold, warm, hot)]


def test_self_bleu_of_single_responses_is_refused_with_a_reason(tmp_path, capsys):
    assert run(write(tmp_path / "one.jsonl", {"0": ["a b"], "1": ["b"]})) == 0
    printed = capsys.readouterr().out
    assert cells(printed)[0][7] == "-"
    assert "self-BLEU: refused, it compares responses to one prompt, and no prompt has two in every file." in printed


def test_the_result_depends_on_the_seed_alone(tmp_path, capsys):
    random = Random(0)
    said = {str(p): [" ".join(random.choices("abcdefgh", k=random.randint(3, 9))) for _ in range(6)] for p in range(8)}
    path = write(tmp_path / "said.jsonl", said)
    lines = path.read_text().splitlines(keepends=True)
    turned = tmp_path / "turned" / "said.jsonl"
    turned.parent.mkdir()
    turned.write_text("".join(reversed(lines)))
    printed = []
    for args in ((path, "--budget", 12), (turned, "--budget", 12), (path, "--budget", 12, "--seed", 1)):
        assert run(*args) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0] != printed[2]


def test_tokens_of_a_model_count_where_words_do_not(tmp_path, folder, capsys):
    path = write(tmp_path / "said.jsonl", {"0": ["ab", "aa"], "1": ["bb", "ba"]})
    assert run(path, "--model", folder, "--tokens", "model", "--bleu-tokenize", "char") == 0
    printed = capsys.readouterr().out
    assert f"distinct-n: 4 tokens of {folder} a prompt" in printed
    assert cells(printed)[0][8].split()[0] == "0.500"


def test_responses_that_are_other_tokens_than_were_sampled_are_counted(tmp_path, folder, capsys):
    """One token a character, and the end's, which a file does not count."""
    rows = [("ab", 2, "stop"), ("a", 2, "stop"), ("ba", 2, "length"), ("b", 0, "length"), ("bb", None, "stop")]
    path = tmp_path / "said.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": chat("0"), "response": r, "tokens": n, "finish": f}) + "\n" for r, n, f in rows)
    )
    assert run(path, "--model", folder) == 0
    assert "said: the text of 2 responses makes another number of tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "./nowhere"], "want the folder of a model or a name on the hub, got ./nowhere"),
        (["--model", "a", "--model", "b", "--model", "c"], "want one for all files or one for each of the 2, got 3"),
    ],
)
def test_a_wrong_model_is_refused(tmp_path, capsys, more, message):
    path = write(tmp_path / "said.jsonl", SAID)
    assert run(path, path, *more) == 2
    assert message in capsys.readouterr().err


def test_files_without_a_prompt_in_common_are_refused(tmp_path, capsys):
    one, other = write(tmp_path / "a.jsonl", {"0": ["a"]}), write(tmp_path / "b.jsonl", {"1": ["a"]})
    assert run(one, other) == 2
    assert "want a prompt with a response that is not blank in every file, got none" in capsys.readouterr().err


def test_a_prompts_id_that_means_two_prompts_is_refused(tmp_path, capsys):
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, prompt in ((one, "0"), (other, "1")):
        path.write_text(json.dumps({"prompt_id": "x", "prompt": prompt, "response": "a"}) + "\n")
    assert run(one, other) == 2
    assert "prompt x: want one prompt of this id, got '0' and '1'" in capsys.readouterr().err


def test_a_response_past_the_models_positions_is_refused(tmp_path, folder, capsys):
    path = write(tmp_path / "said.jsonl", {"0": ["a" * 70]})
    assert run(path, "--model", folder) == 2
    assert "sample 0: want at most the model's 64 positions, got 74 tokens" in capsys.readouterr().err
