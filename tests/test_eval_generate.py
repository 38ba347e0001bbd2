"""evaluation.generate: draws against a loop of our own, independence of batches and stops, anchors, refusals."""

from __future__ import annotations

import json
import shutil
import sys
import types

import pytest
import torch
from filelock import FileLock
from tokenizers import decoders
from transformers import AutoModelForCausalLM

from evaluation import generate, responses
from evaluation.generating.hf_engine import HFEngine, drawn, ended, left_padded, processors
from evaluation.generating.plan import make_plan
from evaluation.generating.prompts import Codec, Prompt
from evaluation.generating.sampling import PRESETS, Sampling, row_seed, uniforms
from evaluation.measuring.entropy import Scorer
from evaluation.responses import read
from toy.model import small_lm
from toy.tokenizer import tokenizer
from train.data import Source, TokenOptions, prepare

PLAIN = ["hi ", "a longer one, ", "so", "what is it that you say ", "b. "]
LAST = 1.0 - 2.0**-53  # the largest of the numbers that are drawn


def words():
    made = tokenizer()
    made.backend_tokenizer.decoder = decoders.Fuse()
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder: a random model whose next tokens are far from equally likely."""
    folder = tmp_path_factory.mktemp("model")
    made = small_lm(words(), width=16, layers=2)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(6.0) if weight.ndim == 2 else None
    made.save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PLAIN))
    return path


def command(model, prompts, out, *more):
    given = ["--model", model, "--prompts", prompts, "--out", out, "--max-tokens", 12, "--dtype", "float32", *more]
    return [str(part) for part in given]


def ran(model, prompts, out, *more):
    """-> what --out says, by prompt and sample."""
    assert generate.main(command(model, prompts, out, *more)) == 0
    return {row.key: row for row in read(out)}


def refused(capsys, model, prompts, out, *more):
    assert generate.main(command(model, prompts, out, *more)) == 2
    return capsys.readouterr().err


@pytest.fixture
def unloadable(monkeypatch):
    """What is refused is refused before a model is loaded."""
    monkeypatch.setattr(HFEngine, "__init__", lambda *_: pytest.fail("the model was loaded"))


# settings


def test_the_paper_s_settings():
    assert PRESETS["hh"] == Sampling(
        samples=1, temperature=1.0, top_k=60, top_p=0.8, max_tokens=256, repetition_penalty=1.1
    )
    assert PRESETS["diversity"] == Sampling(
        samples=25, temperature=1.0, top_k=0, top_p=0.95, max_tokens=256, repetition_penalty=1.0
    )
    assert PRESETS["alpaca"] == Sampling(
        samples=1, temperature=0.9, top_k=0, top_p=1.0, max_tokens=4096, repetition_penalty=1.0
    )
    assert PRESETS["hh"].changed == ("top_k 60", "top_p 0.8", "repetition_penalty 1.1") and Sampling().changed == ()


def test_a_preset_and_what_is_given_beside_it(model, prompts, tmp_path):
    (tmp_path / "out.jsonl").touch()
    args = generate._arguments(command(model, prompts, tmp_path / "out.jsonl", "--preset", "hh", "--top-k", 0))
    assert make_plan(args).sampling == Sampling(top_p=0.8, max_tokens=12, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"samples": 0}, "samples: want an integer >= 1, got 0"),
        ({"top_k": True}, "top_k: want an integer >= 0, got True"),
        ({"temperature": float("nan")}, "temperature: want a finite number, got nan"),
        ({"temperature": -1.0}, "temperature: want >= 0, got -1.0"),
        ({"top_p": 0.0}, "top_p: want more than 0 and at most 1, got 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: want > 0, got 0.0"),
        ({"temperature": 0.0, "samples": 2}, "samples: want 1 at temperature 0, where all are the same, got 2"),
    ],
)
def test_settings_that_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**given)


def test_the_random_numbers_of_a_response():
    assert row_seed(0, "p", 1) == 4964149083281246134  # sha256 of [0, "p", 1], 63 bits
    assert len({row_seed(seed, name, k) for seed in (0, 1) for name in ("p", "q") for k in (0, 1)}) == 8
    assert uniforms(1, 1) == [0.13436424411240122] and uniforms(5, 3) == uniforms(5, 9)[:3]


# a draw


def test_a_draw_by_hand():
    scores = torch.tensor([0.1, 0.2, 0.7]).log().expand(6, 3)
    numbers = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, LAST], dtype=torch.float64)
    assert drawn(scores, numbers).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_without_probability_is_never_drawn():
    scores = torch.randn(1000, 7)
    scores[:, [0, 6]] = -torch.inf
    for number in (0.0, LAST):
        picked = drawn(scores, torch.full((1000,), number, dtype=torch.float64))
        assert set(picked.tolist()) == {1 if number == 0 else 5}


def test_draws_are_as_frequent_as_their_probabilities():
    scores, count = torch.randn(9), 20000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = torch.bincount(drawn(scores.expand(count, 9), numbers), minlength=9)
    assert (found - scores.double().softmax(0) * count).abs().max() <= 1


def test_a_penalty_is_on_what_a_row_has_said_and_not_on_its_padding():
    """Two rows of tokens 5 and 2, 3, 5, the first padded with 1, which is the eos token."""
    ids, mask = left_padded([[5], [2, 3, 5]], pad=1)
    assert ids.tolist() == [[1, 1, 5], [2, 3, 5]] and mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    (penalty,) = processors(Sampling(temperature=0.0, repetition_penalty=2.0), [0, 0], mask)
    scores = torch.tensor([1.0, 2.0, -3.0, 4.0, 5.0, -6.0]).repeat(2, 1)
    assert penalty(ids, scores.clone()).tolist() == [
        [1.0, 2.0, -3.0, 4.0, 5.0, -12.0], [1.0, 2.0, -6.0, 2.0, 5.0, -12.0],
    ]  # fmt: skip


def test_the_end_of_a_response():
    assert ended([5, 6, 1, 0, 0], (1, 2)) == ([5, 6], "stop")
    assert ended([2], (1, 2)) == ([], "stop")
    assert ended([5, 6], (1, 2)) == ([5, 6], "length")


# whole responses


def by_hand(model, text, sampling, seed):
    """Token by token, without a cache, a batch or generate: temperature, top_k, top_p and the draw in plain torch."""
    ids, numbers = words()(text)["input_ids"], uniforms(seed, sampling.max_tokens)
    start = len(ids)
    for number in numbers:
        with torch.no_grad():
            z = model(torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        factor = torch.where(z[seen] > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        z[seen] = z[seen] * factor
        if sampling.greedy:
            token = int(z.argmax())
        else:
            p = (z / sampling.temperature).softmax(0)
            order = p.argsort(descending=True)
            kept = order[: sampling.top_k or len(p)]
            before = (p[kept] / p[kept].sum()).cumsum(0) - p[kept] / p[kept].sum()
            kept = kept[before < sampling.top_p].sort().values
            sums = (p[kept].double() / p[kept].double().sum()).cumsum(0)
            token = int(kept[int((sums <= number).sum())])
        if token == words().eos_token_id:
            break
        ids.append(token)
    return words().decode(ids[start:]), len(ids) - start


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.5}, {},
        {"temperature": 1.3, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.2},
    ],
)  # fmt: skip
def test_responses_are_those_of_a_loop_by_hand(model, prompts, tmp_path, settings):
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = ran(model, prompts, tmp_path / "out.jsonl", "--batch-size", 4, *flags)
    sampling, loaded = Sampling(max_tokens=12, **settings), AutoModelForCausalLM.from_pretrained(model)
    for row in found.values():
        text, count = by_hand(loaded, row.prompt, sampling, row_seed(0, row.prompt_id, 0))
        assert (row.response, row.tokens) == (text, count)
        assert row.finish == ("stop" if count < 12 else "length")
    assert len(found) == 5 and len({row.response for row in found.values()}) > 2


def test_batch_size_and_order_change_nothing(model, prompts, tmp_path):
    more = ("--samples", 3, "--top-p", 0.9, "--repetition-penalty", 1.3)
    one = ran(model, prompts, tmp_path / "one.jsonl", "--batch-size", 1, *more)
    ran(model, prompts, tmp_path / "four.jsonl", "--batch-size", 4, *more)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "four.jsonl").read_bytes()
    lines = prompts.read_text().splitlines()
    prompts.write_text("\n".join(reversed(lines[:3])) + "\n")
    other = ran(model, prompts, tmp_path / "other.jsonl", "--batch-size", 2, *more)
    assert len(one) == 15 and len(other) == 9 and all(one[key] == row for key, row in other.items())
    assert len({row.response for row in one.values()}) > 10
    assert ran(model, prompts, tmp_path / "seed.jsonl", "--seed", 1, *more) != other


def test_a_model_s_own_settings_do_not_leak_but_its_ends_do(model, prompts, tmp_path):
    """generation_config.json of chat models has a temperature, a penalty and several eos tokens."""
    copy = tmp_path / "copy"
    made = AutoModelForCausalLM.from_pretrained(model)
    made.generation_config.update(
        do_sample=True, top_k=1, temperature=0.1, repetition_penalty=5.0, eos_token_id=[1, words().vocab["7"]]
    )
    made.save_pretrained(copy)
    words().save_pretrained(copy)
    plain = ran(model, prompts, tmp_path / "plain.jsonl", "--samples", 4)
    leaky = ran(copy, prompts, tmp_path / "leaky.jsonl", "--samples", 4)
    assert any("7" in row.response for row in plain.values())
    assert {key: row.response for key, row in leaky.items()} == {
        key: row.response.split("7")[0] for key, row in plain.items()
    }


# resuming


def stopped(monkeypatch, after, error=KeyboardInterrupt):
    """The engine works for `after` batches."""
    real, calls = HFEngine.__call__, []

    def stops(self, requests, sampling):
        calls.append(len(requests))
        if len(calls) > after:
            raise error
        return real(self, requests, sampling)

    monkeypatch.setattr(HFEngine, "__call__", stops)
    return calls


def test_a_stopped_run_goes_on_where_it_was(model, prompts, tmp_path, monkeypatch):
    out, more = tmp_path / "out.jsonl", ("--samples", 2, "--batch-size", 3)
    ran(model, prompts, tmp_path / "whole.jsonl", *more)
    with monkeypatch.context() as patch:
        stopped(patch, after=2)
        assert generate.main(command(model, prompts, out, *more)) == 130
    assert len(read(out)) == 6
    with out.open("ab") as file:
        file.write(b'{"prompt": "torn')
    with monkeypatch.context() as patch:
        calls = stopped(patch, after=9)
        ran(model, prompts, out, *more)
    assert calls == [3, 1] and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    monkeypatch.setattr(HFEngine, "__init__", lambda *_: pytest.fail("nothing is missing"))
    ran(model, prompts, out, *more)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_more_samples_keep_the_first_and_fewer_drop_none(model, prompts, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    first = ran(model, prompts, out)
    three = ran(model, prompts, out, "--samples", 3)
    assert len(three) == 15 and all(three[key] == row for key, row in first.items())
    assert (
        ran(model, prompts, out) == three and "10 responses of other prompts or samples stay" in capsys.readouterr().out
    )


def test_other_settings_or_another_model_are_refused(model, prompts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.jsonl"
    ran(model, prompts, out)
    before = out.read_bytes()
    monkeypatch.setattr(HFEngine, "__init__", lambda *_: pytest.fail("the model was loaded"))
    said = refused(capsys, model, prompts, out, "--top-p", 0.5, "--seed", 3)
    assert "seed: 0 there, 3 here; top_p: 1.0 there, 0.5 here" in said
    assert "dtype: 'float32' there, 'bfloat16' here" in refused(capsys, model, prompts, out, "--dtype", "bfloat16")
    small_lm(words(), width=16, layers=2, seed=1).save_pretrained(tmp_path / "trained")
    words().save_pretrained(tmp_path / "trained")
    said = refused(capsys, tmp_path / "trained", prompts, out)
    assert f"model: {str(model)!r} there" in said and "content: " in said
    assert out.read_bytes() == before


def test_training_into_the_same_folder_makes_another_model(prompts, tmp_path, capsys):
    for seed in (0, 1):
        small_lm(words(), width=16, layers=1, seed=seed).save_pretrained(tmp_path / "model")
        words().save_pretrained(tmp_path / "model")
        if seed == 0:
            ran(tmp_path / "model", prompts, tmp_path / "out.jsonl")
    assert "got content: " in refused(capsys, tmp_path / "model", prompts, tmp_path / "out.jsonl")


def test_an_id_that_has_become_another_prompt(model, prompts, tmp_path, capsys):
    prompts.write_text('{"prompt": "hi", "id": 1}\n')
    ran(model, prompts, tmp_path / "out.jsonl")
    prompts.write_text('{"prompt": "so", "id": 1}\n')
    said = refused(capsys, model, prompts, tmp_path / "out.jsonl")
    assert "prompt 1: want the same prompt, with the same tools and chat_template_kwargs, got another" in said


TEMPLATE = (
    "{{ mood }}{% for tool in tools or [] %}{{ tool.name }}{% endfor %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_tools_and_template_arguments_of_a_row_stay_with_its_responses(model, prompts, tmp_path, capsys):
    """What is scored later is in the context that it was sampled in."""
    row = {"prompt": [{"role": "user", "content": "hi"}], "tools": [{"name": "f"}], "chat_template_kwargs": {"mood": 8}}
    prompts.write_text(json.dumps(row) + "\n")
    out, more = tmp_path / "out.jsonl", ("--chat-template", TEMPLATE)
    (found,) = ran(model, prompts, out, *more).values()
    assert found.tools == [{"name": "f"}] and found.template_args == {"mood": 8}
    names = words().convert_ids_to_tokens
    scored = Scorer(str(model), chat_template=TEMPLATE).continuation(found)
    assert "".join(names(list(scored.prompt))) == "8f<user>hi<assistant>"
    for changed in ({"tools": [{"name": "g"}]}, {"chat_template_kwargs": {"mood": 7}}, {"tools": []}):
        prompts.write_text(json.dumps(row | changed) + "\n")
        assert "want the same prompt, with the same tools" in refused(capsys, model, prompts, out, *more)
    prompts.write_text(json.dumps(row) + "\n")
    ran(model, prompts, out, *more)


# a sweep over temperatures


def test_a_sweep_is_a_run_a_temperature_with_one_loaded_model(model, prompts, tmp_path, monkeypatch):
    load, loaded = HFEngine.__init__, []
    monkeypatch.setattr(HFEngine, "__init__", lambda *args: loaded.append(1) or load(*args))
    more = ("--samples", 2, "--temperatures", 0.5, 2)
    assert generate.main(command(model, prompts, tmp_path / "t{temperature}" / "out.jsonl", *more)) == 0
    assert len(loaded) == 1
    for temperature in ("0.5", "2"):
        ran(model, prompts, tmp_path / "alone.jsonl", "--samples", 2, "--temperature", temperature)
        alone = (tmp_path / "alone.jsonl").read_bytes()
        assert (tmp_path / f"t{temperature}" / "out.jsonl").read_bytes() == alone
        (tmp_path / "alone.jsonl").unlink()


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("out.jsonl", (), "--out: want {temperature} in it and different --temperatures"),
        ("{temperature}", ("--temperatures", 1, 1.0), "--out: want {temperature} in it and different --temperatures"),
        ("{temperature}", ("--temperature", 1), "--temperatures: want it without --temperature, --anchors"),
        ("{temperature}", ("--anchors", "a.jsonl"), "--temperatures: want it without --temperature, --anchors"),
        ("{temperature}", ("--temperatures", 1, -1), "temperature: want >= 0, got -1"),
    ],
)
def test_a_sweep_that_is_refused(model, prompts, tmp_path, capsys, unloadable, out, more, said):
    assert said in refused(capsys, model, prompts, tmp_path / out, "--temperatures", 0.5, 1, *more)


# other outputs


@pytest.mark.parametrize("chat", [False, True])
def test_the_trainer_reads_the_anchors_as_they_were_drawn(model, prompts, tmp_path, chat, capsys):
    """Token for token, but for responses that were cut (which it closes) or are blank (which it drops and counts)."""
    more = ["--samples", 4, "--anchors", tmp_path / "anchors.jsonl", *(["--chat"] if chat else [])]
    found = ran(model, prompts, tmp_path / "out.jsonl", *more)
    made = prepare(
        [Source(path=str(tmp_path / "anchors.jsonl"))], "anchors", words(), TokenOptions(), tmp_path / "made"
    )
    kept = [row for row in found.values() if row.response.strip()]
    assert made.report.kept == len(kept) > 10 and sum(made.report.dropped.values()) == 20 - len(kept)
    codec = Codec(words())
    for row, anchor in zip(kept, made.dataset, strict=True):
        assert anchor["prompt"] == codec.ids(Prompt("", "", row.prompt))
        assert anchor["responses"] == [[*words()(row.response)["input_ids"], 1]] and anchor["weight"] == 1.0
        assert len(anchor["responses"][0]) - 1 == row.tokens or chat
    said = capsys.readouterr().out
    cut = sum(row.finish == "length" for row in found.values())
    assert f"{cut} of them were cut" in said and "no samples of the model itself" not in said
    assert chat or "another number of tokens" not in said
    ran(model, prompts, tmp_path / "top.jsonl", "--top-k", 5, *more)
    assert "no samples of the model itself, which the loss wants: top_k 5" in capsys.readouterr().out


def test_anchors_that_a_tokenizer_does_not_give_back_are_counted(model, prompts, tmp_path, capsys):
    """A tokenizer without a decoder writes spaces between the tokens."""
    spaced = tmp_path / "spaced"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(spaced)
    bare = words()
    bare.backend_tokenizer.decoder = None
    bare.save_pretrained(spaced)
    found = ran(spaced, prompts, tmp_path / "out.jsonl", "--anchors", tmp_path / "anchors.jsonl")
    spoilt = sum(row.tokens > 1 for row in found.values())
    assert f"{spoilt} of them are another number of tokens" in capsys.readouterr().out and spoilt


def test_the_data_s_own_answers(model, tmp_path, capsys):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"prompt": "hi", "chosen": " a", "rejected": " b"}\n')
    found = ran(model, path, out, "--answers", tmp_path / "answers.jsonl")
    (row,) = read(tmp_path / "answers.jsonl")
    assert (row.prompt, row.response, row.model) == ("hi", " a", "data") and row.key in found
    path.write_text('{"prompt": "hi"}\n')
    assert "want a row with an answer of its own" in refused(capsys, model, path, tmp_path / "b", "--answers", "c")


# refusals


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--top-p", "1.5"], "top_p: want more than 0 and at most 1, got 1.5"),
        (["--batch-size", "0"], "--batch-size: want >= 1, got 0"),
        (["--prompts", "absent.jsonl"], "source absent.jsonl: want a file or a folder"),
        (["--model", "./absent"], "model: want the folder of a model or a name on the hub, got ./absent"),
        (["--model", "toy"], "model: want the folder of a model, got toy without config.json"),
        (["--device", "nowhere"], "--device: want one that is here, got 'nowhere'"),
        (["--max-tokens", "60"], "row 1: want prompt and max_tokens within the model's 64 positions, got 14 and 60"),
        (["--chat-template", "absent.jinja"], "chat_template: want a file or a template, got 'absent.jinja'"),
        (["--chat-template-args", "[1]"], "--chat-template-args: want a JSON object, got '[1]'"),
        (["--anchors", "toy"], "toy: want a file to write, got a folder"),
        (["--engine", "vllm"], "engine vllm: want the package vllm"),
        (["--temperature", "0", "--preset", "diversity"], "samples: want 1 at temperature 0"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    model, prompts, tmp_path, capsys, unloadable, monkeypatch, more, said
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert said in refused(capsys, model, prompts, tmp_path / "out.jsonl", *more)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_is_an_input_or_is_being_written(model, prompts, tmp_path, capsys, unloadable):
    for more in ((), ("--anchors", prompts), ("--anchors", tmp_path / "a", "--answers", tmp_path / "a")):
        out = tmp_path / "out.jsonl" if more else prompts
        assert "want an output that is neither an input nor" in refused(capsys, model, prompts, out, *more)
    assert "want an output that is neither an input" in refused(capsys, model, tmp_path, tmp_path / "out.jsonl")
    assert len(prompts.read_text().splitlines()) == 5
    with FileLock(tmp_path / ".out.jsonl.lock"):
        said = refused(capsys, model, prompts, tmp_path / "out.jsonl")
        assert "want a file that no other process is writing, got one that is" in said


def test_stopped_or_failing_before_anything_is_generated(model, prompts, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generate, "make_plan", lambda args: stop())
        assert generate.main(command(model, prompts, tmp_path / "out.jsonl")) == 130
    assert "evaluation.generate: stopped before anything was generated" in capsys.readouterr().err
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    said = refused(capsys, tmp_path / "model", prompts, tmp_path / "out.jsonl")
    assert "evaluation.generate: " in said and "model.safetensors" in said and "Traceback" not in said


def stop():
    raise KeyboardInterrupt


def test_a_disk_that_is_full_is_told_of(model, prompts, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(responses, "append", full)
    assert generate.main(command(model, prompts, tmp_path / "out.jsonl")) == 1
    assert "No space left on device; the same command goes on from what" in capsys.readouterr().err


def test_an_output_of_something_else_stays_as_it_is(model, prompts, tmp_path, capsys, unloadable):
    (tmp_path / "notes.txt").write_text("mine")
    assert "line 1: want a JSON object" in refused(capsys, model, prompts, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_of_another_hand_is_not_continued(model, prompts, tmp_path, capsys, unloadable):
    (tmp_path / "out.jsonl").write_text('{"prompt": "hi ", "response": "yo"}\n')
    said = refused(capsys, model, prompts, tmp_path / "out.jsonl")
    assert "want the same model and settings, got model: '' there" in said


def test_an_adapter_is_no_model(prompts, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "got an adapter in" in refused(capsys, tmp_path, prompts, tmp_path / "out.jsonl")


def test_logits_that_are_not_numbers_name_their_prompts(model, prompts, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[words().vocab["w"]] = torch.nan  # of "what is it" alone
    broken.save_pretrained(tmp_path / "broken")
    words().save_pretrained(tmp_path / "broken")
    with pytest.raises(FloatingPointError, match=r"^prompts.jsonl row 3: want logits that are numbers, got NaN$"):
        generate.main(command(tmp_path / "broken", prompts, tmp_path / "out.jsonl", "--top-k", 1, "--max-tokens", 1))


# vllm


@pytest.fixture
def vllm(monkeypatch):
    """The names of vLLM that are used, with their arguments and no others; it says the digits of a seed. -> what it
    was told: its model first, then prompts and parameters of each call."""
    told: list = []

    class SamplingParams:
        def __init__(
            self, *, n, temperature, top_p, top_k, max_tokens, repetition_penalty, seed, stop_token_ids, detokenize
        ):
            self.draw = (n, temperature, top_p, top_k, max_tokens, repetition_penalty)
            self.seed, self.most, self.stop, self.text = seed, max_tokens, stop_token_ids, detokenize

    class LLM:
        def __init__(
            self, *, model, revision, tokenizer_revision, trust_remote_code, dtype, seed, generation_config
        ):  # fmt: skip
            told.append((model, revision, tokenizer_revision, trust_remote_code, dtype, seed, generation_config))

        def generate(self, prompts, params, *, use_tqdm):
            told.append((prompts, params))
            return [self._said(param) for param in params]

        def _said(self, param):
            short = param.seed % 2 == 1
            ids = words()(str(param.seed)[: 3 if short else param.most])["input_ids"]
            ids = [*ids, param.stop[0]] if short else ids
            said = types.SimpleNamespace(token_ids=tuple(ids), finish_reason="stop" if short else "length")
            return types.SimpleNamespace(outputs=[said])

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams))
    return told


def test_the_same_requests_through_a_stand_in_for_vllm(model, prompts, tmp_path, vllm):
    found = ran(model, prompts, tmp_path / "out.jsonl", "--engine", "vllm", "--preset", "hh", "--samples", 2)
    loaded, (given, params) = vllm
    assert loaded == (str(model), None, None, False, "float32", 0, "vllm")
    assert len(given) == 10 and words().decode(given[0]["prompt_token_ids"]) == PLAIN[3]
    assert {param.draw for param in params} == {(1, 1.0, 0.8, 60, 12, 1.1)}
    for row in found.values():
        seed = row_seed(0, row.prompt_id, row.sample)
        size = 3 if seed % 2 else 12
        assert (row.response, row.finish) == (str(seed)[:size], "stop" if seed % 2 else "length")
        assert row.tokens == size and row.sampling["engine"] == "vllm"
    assert len({row.finish for row in found.values()}) == 2


def test_all_tokens_have_a_name_of_their_own_in_vllm(model, prompts, tmp_path, vllm):
    ran(model, prompts, tmp_path / "out.jsonl", "--engine", "vllm", "--batch-size", 2)
    assert [len(given) for given, _ in vllm[1:]] == [2, 2, 1] and vllm[1][1][0].draw[3] == -1
