"""The trainer's parts, each alone: who sees what, what a micro-batch holds, what is counted, whose folder it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from train_runs import write_model

from expo_kernels import LossOutput, LossTerms
from expo_kernels.objectives import make_objective
from toy.tokenizer import tokenizer
from train import checkpoints, corpora, metrics, resume
from train.batches import Collator, Corpus, Example
from train.data import Prepared, Report, Source
from train.layouts import Layout, pad_sequences
from train.metrics import Meter
from train.order import Anchors, StepOrder
from train.policy import check_vocabulary, load_tokenizer, pad_id, switch_dropout_off
from train.reference import fingerprint, kind
from train.settings import DataSettings, ModelSettings, ObjectiveSettings, OutputSettings, Settings, TrainingSettings
from train.stage import stage_of


def settings(model: str = "m", objective: str = "dpo", **groups: dict[str, object]) -> Settings:
    own = groups.get("objective_keys", {})
    return Settings(
        model=ModelSettings(model=model, **groups.get("model_keys", {})),
        objective=ObjectiveSettings(objective=objective, **own),
        data=DataSettings(train_data=(Source(path="x.jsonl"),), **groups.get("data_keys", {})),
        training=TrainingSettings(),
        output=OutputSettings(output_dir="out"),
    )


# which rank sees what


@pytest.mark.parametrize("count, per_rank", [(13, 2), (7, 2), (8, 4), (1, 3)])
def test_any_number_of_ranks_makes_the_same_global_batches(count, per_rank):
    one = StepOrder(count, per_rank=2 * per_rank, seed=5)
    two = [StepOrder(count, per_rank=per_rank, ranks=2, rank=r, seed=5) for r in (0, 1)]
    for order in (one, *two):
        order.set_epoch(3)
    joined = [a + b for a, b in zip(*two, strict=True)]
    assert joined == list(one) and len(one) == len(two[0]) == len(two[1])
    assert sorted(i for batch in joined for i in batch) == list(range(count))


def test_a_rank_may_have_none():
    assert [list(StepOrder(5, per_rank=2, ranks=2, rank=r)) for r in (0, 1)] == [[[0, 1], [4]], [[2, 3], []]]


def test_epochs_differ_and_repeat():
    order = StepOrder(50, per_rank=50, seed=1)
    first = next(iter(order))
    order.set_epoch(1)
    assert next(iter(order)) != first
    order.set_epoch(0)
    assert next(iter(order)) == first


def test_anchors_are_one_permutation_after_another_over_ranks_and_epochs():
    def drawn(ranks: int, per_rank: int) -> list[int]:
        orders = [
            StepOrder(8, per_rank=4 // ranks, ranks=ranks, rank=r, seed=2, anchors=Anchors(8, 6, per_rank, 2))
            for r in range(ranks)
        ]
        found: list[int] = []
        for epoch in (0, 1, 2):
            for order in orders:
                order.set_epoch(epoch)
            for micro in zip(*orders, strict=True):
                found += [i for part in micro for i in part if i >= 8]
        return found

    two, one = drawn(2, 2), drawn(1, 4)
    assert two == one and len(one) == 24
    for first in range(0, 24, 6):
        assert sorted(one[first : first + 6]) == [8, 9, 10, 11, 12, 13]
    assert one[:6] != one[6:12]


# what a micro-batch holds


def test_labels_stand_where_they_are_predicted():
    ids, mask, labels = pad_sequences([([7, 8], [1, 2, 3]), ([9], [4])], pad=0)
    assert ids.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert labels.tolist() == [[-100, 1, 2, 3, -100], [4, -100, -100, -100, -100]]


def test_the_padding_token_may_be_the_end_of_text():
    _, _, labels = pad_sequences([([7], [1, 0]), ([7], [0])], pad=0)
    assert labels.tolist() == [[1, 0, -100], [0, -100, -100]]


def groups(K: int = 2) -> Dataset:
    rows = [
        {"id": f"x:{i}", "prompt": [5, 6 + i // 2], "responses": [[i + 1, k, 9][: 1 + k + i % 2] for k in range(K)],
         "gap": 0.5 * i, "desirable": float(i % 2), "reward": [float(k) for k in range(K)]}
        for i in range(4)
    ]  # fmt: skip
    return Dataset.from_list(rows)


def test_role_by_role_with_columns_reference_and_anchors():
    stage = stage_of(make_objective("odpo"))
    anchors = Dataset.from_list([{"id": "a:0", "prompt": [3], "responses": [[4, 4]], "weight": 2.0}])
    corpus = Corpus(groups(), stage, anchors)
    corpus.reference = -torch.arange(8.0).view(4, 2)
    stage_with = stage._replace(objective=make_objective("xpo"))
    micro = Collator(stage_with, 2, Layout())([corpus[1], corpus[2], corpus[4]])
    host = micro.batch.host
    assert (host.roles, host.groups, host.anchors) == (2, 2, 1)
    assert host.lengths == (2, 1, 3, 2, 2) and micro.ids == ("x:1", "x:2")
    assert micro.reference.tolist() == [-2, -4, -3, -5, 0] and micro.batch.anchor_weights.tolist() == [2.0]
    assert micro.columns["gap"].tolist() == [0.5, 1.0]
    assert micro.tokens == 4 + 3 + 5 + 4 + 3 == int(micro.inputs.attention_mask.sum())


def test_a_rank_without_examples_gets_a_group_that_counts_for_nothing():
    for name in ("dpo", "odpo", "adpo", "kto"):
        stage = stage_of(make_objective(name))
        K = 1 if name == "kto" else 2
        micro = Collator(stage, K, Layout())([])
        assert micro.tokens == 0 and set(micro.batch.host.lengths) == {0} and micro.batch.host.groups == 1


def test_token_weights_are_made_where_the_batch_is():
    stage = stage_of(make_objective("lddpo", alpha=0.5))
    micro = Collator(stage, 2, Layout())([Corpus(groups(), stage)[1]])
    assert micro.batch.token_weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.5]


def test_other_prompts_responses_for_kto():
    stage = stage_of(make_objective("kto"))
    assert stage.name == "unpaired" and stage.point == "mismatched" and stage.columns == ("desirable",)
    corpus = Corpus(groups(1), stage)
    assert [corpus.mismatched(i) for i in range(4)] == [2, 2, 0, 0]  # 0, 1 and 2, 3 share a prompt
    corpus.reference = -torch.arange(8.0).view(4, 2)
    micro = Collator(stage, 1, Layout())([corpus[0], corpus[3]])
    assert micro.reference.tolist() == [0, -6] and micro.others.reference.tolist() == [-1, -7]
    assert micro.others.batch.labels.tolist() == [3, 1]  # the responses of 2 and of 0


def test_lists_have_their_numbers_role_by_role():
    stage = stage_of(make_objective("adpo"))
    assert stage.name == "lists" and stage.sequence_columns == ("reward",)
    corpus = Corpus(groups(3), stage)
    micro = Collator(stage, corpus.roles, Layout())([corpus[0], corpus[1]])
    assert micro.columns["reward"].tolist() == [0, 0, 1, 1, 2, 2] and micro.batch.host.roles == 3


def test_objectives_that_couple_a_batch_are_refused():
    from expo_kernels import Needs

    class Coupled:
        needs = Needs(whole_batch=True)

    with pytest.raises(ValueError, match="couples the groups"):
        stage_of(Coupled())  # type: ignore[arg-type]


# what is counted


def output(
    seq: list[float], rewards: list[float], c: list[float], lengths: list[int], margin: list[float]
) -> LossOutput:
    terms = LossTerms(torch.zeros(len(seq) // 2), torch.tensor(margin), torch.tensor(c))
    stats = {"entropy": torch.tensor([1.0, 2.0, 6.0]), "is_argmax": torch.tensor([True, False, False])}
    return LossOutput(
        loss=torch.tensor(0.0), seq_logps=torch.tensor(seq), lengths=torch.tensor(lengths),
        rewards=torch.tensor(rewards), terms=terms, empty=0, stats=stats, sparsity=None,
    )  # fmt: skip


def test_means_over_active_groups_and_quantiles_of_margins():
    stage = stage_of(make_objective("dpo"))
    rows = [Example(str(i), [1], [[2], [3, 4]], {}, {}, torch.tensor([-1.0, -2.0])) for i in range(2)]
    micro = Collator(stage, 2, Layout())([*rows, Example("empty", [1], [[], [2]], {}, {}, torch.zeros(2))])
    meter = Meter("preference", 8, torch.device("cpu"))
    out = output(
        [-1.5, -3.0, 0, -4.0, -5.0, -9.0], [0.1, 0.4, 9.0, 0.3, 0.2, 9.0], [-0.5, -0.004, 9.0, 0.5, 0.004, 9.0],
        [1, 1, 0, 2, 2, 1], [-0.2, 0.2, 9.0],
    )  # fmt: skip
    meter.add(micro, out, micro.reference)
    found = meter.read()
    assert found["logps/chosen"] == pytest.approx(-2.25) and found["logps/rejected"] == pytest.approx(-4.5)
    assert found["rewards/margins"] == pytest.approx(0.0, abs=1e-7) and found["rewards/accuracies"] == 0.5
    assert found["margins/q50"] == pytest.approx(0.0, abs=1e-7) and found["margins/q95"] == pytest.approx(0.18)
    assert found["saturated"] == 0.5 and found["kl"] == pytest.approx((0.5 + 2 + 2 + 3) / 4)
    assert found["entropy"] == 3.0 and found["mean_token_accuracy"] == pytest.approx(1 / 3)
    assert found["num_tokens"] == micro.tokens == 13
    meter.add(micro, out, micro.reference)
    assert meter.read()["num_tokens"] == 26  # tokens go on, means begin anew


def test_saturation_without_any_slope():
    assert metrics._saturated(torch.tensor([0.0, 0.0, math.nan])) == {}


# what is held out


def test_no_prompt_is_on_both_sides(tmp_path):
    own = settings(data_keys={"eval_fraction": 0.3})
    rows = Dataset.from_list([{"id": str(i), "prompt": [i // 3], "responses": [[1], [2]]} for i in range(30)])
    made = Prepared(rows, Report(), "f", 2)
    divided = corpora.divide(own, stage_of(own.make_objective()), corpora.Data(made, None, None))
    kept, out = (
        {row["prompt"][0] for row in each.groups} for each in (divided.train, divided.held_out) if each is not None
    )
    assert not kept & out and kept | out == set(range(10)) and len(out) == 3
    assert [name for _, name in divided.named] == ["f/0.3/42", "f/0.3/42/held out"]
    one = Prepared(rows.select(range(3)), Report(), "f", 2)
    with pytest.raises(ValueError, match="want at least two different prompts"):
        corpora.divide(own, stage_of(own.make_objective()), corpora.Data(one, None, None))


# models and tokenizers


def test_a_vocabulary_larger_than_the_head(tmp_path):
    folder = write_model(tmp_path / "m")
    words = load_tokenizer(settings(str(folder)))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    check_vocabulary(config, words)
    words.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"want a head with a row for each of the tokenizer's \d+ tokens"):
        check_vocabulary(config, words)


def test_tokenizers_without_an_end_or_a_padding_token(tmp_path):
    words = tokenizer()
    words.pad_token = None
    words.save_pretrained(tmp_path / "no pad")
    found = load_tokenizer(settings(str(tmp_path / "no pad")))
    assert found.pad_token_id is None and pad_id(found) == found.eos_token_id
    words.eos_token = None
    words.save_pretrained(tmp_path / "neither")
    with pytest.raises(ValueError, match="want a padding or an end-of-text token"):
        load_tokenizer(settings(str(tmp_path / "neither")))


def test_a_chat_template_from_a_file_or_as_it_is(tmp_path):
    tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "own.jinja").write_text("{{ 'from a file' }}")
    for given, want in ((str(tmp_path / "own.jinja"), "{{ 'from a file' }}"), ("{{ 'itself' }}", "{{ 'itself' }}")):
        found = load_tokenizer(settings(str(tmp_path / "t"), data_keys={"chat_template": given}))
        assert found.chat_template == want


def test_dropout_is_off_in_modules_and_in_numbers():
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    small = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2Config(**small, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)
    llama = LlamaConfig(
        **small, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, attention_dropout=0.3
    )
    ids = torch.arange(20)[None]
    for config in (gpt2, llama):
        model = AutoModelForCausalLM.from_config(config).train()
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        switch_dropout_off(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert llama.attention_dropout == 0.3  # what is saved says what it said


# the reference


@pytest.mark.parametrize(
    "objective, asked, lora_r, want",
    [
        ("dpo", "auto", 0, "cache"),
        ("dpo", "auto", 4, "adapter"),
        ("simpo", "auto", 0, "none"),
        ("dpo", "engine", 0, "engine"),
    ],
)
def test_what_auto_means(objective, asked, lora_r, want):
    own = settings(objective=objective, model_keys={"lora_r": lora_r}, objective_keys={"reference": asked})
    assert kind(own, stage_of(own.make_objective())) == want


def test_a_reference_that_is_missing_or_not_read():
    for objective, asked, message in (("dpo", "none", "dpo needs one"), ("simpo", "cache", "simpo uses none")):
        own = settings(objective=objective, objective_keys={"reference": asked})
        with pytest.raises(ValueError, match=message):
            kind(own, stage_of(own.make_objective()))


def test_a_model_is_known_by_its_bytes(tmp_path):
    a, b, c = (write_model(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert fingerprint(str(a)) == fingerprint(str(b)) != fingerprint(str(c))


# folders


def claim(output, resume=None, auto=False, overwrite=False):
    return checkpoints.claim(output, resume=resume, auto=auto, overwrite=overwrite)


def test_a_folder_with_another_run_is_refused_or_moved_aside_whole(tmp_path):
    output = tmp_path / "run"
    assert claim(output) is None and output.is_dir()
    (output / "settings.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match="want a folder without a run in it"):
        claim(output)
    assert claim(output, auto=True) is None  # killed before its first checkpoint: it starts anew where it was
    aside = claim(output, overwrite=True)
    assert (aside / "settings.yaml").read_text() == "mine" and not list(output.iterdir())


def test_resuming_does_not_open_folders_of_other_runs(tmp_path):
    done, other = tmp_path / "done", tmp_path / "other"
    for folder in (done, other):
        (folder / "checkpoint-2").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert claim(done, resume=done / "checkpoint-2") is None
    with pytest.raises(FileExistsError):
        claim(done, resume=other / "checkpoint-2")
    (done / "checkpoint-2").rmdir()
    with pytest.raises(FileExistsError):
        claim(done, auto=True)  # a final model, and no checkpoint to go on from


def test_checkpoints_of_a_branch_that_is_left_are_set_aside(tmp_path):
    for step in (3, 4, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
    moved = checkpoints.set_later_aside(tmp_path / "checkpoint-3")
    assert [step for step, _ in checkpoints.found(tmp_path)] == [3] and len(moved) == 2
    assert all(path.is_dir() for path in moved)


def test_the_newest_whole_checkpoint_and_what_rotation_leaves(tmp_path, monkeypatch):
    for step in (5, 10, 100, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".partial" / "checkpoint-200").mkdir(parents=True)
    (tmp_path / "checkpoint-old").mkdir()
    assert checkpoints.newest(tmp_path).name == "checkpoint-100"
    checkpoints.rotate(tmp_path, 2, best=tmp_path / "checkpoint-5")
    assert [step for step, _ in checkpoints.found(tmp_path)] == [5, 20, 100]
    monkeypatch.chdir(tmp_path)
    checkpoints.rotate(tmp_path, 1, best=Path("checkpoint-5"))
    assert [step for step, _ in checkpoints.found(tmp_path)] == [5, 100]
    checkpoints.rotate(tmp_path, None, best=None)
    assert len(checkpoints.found(tmp_path)) == 2


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, capsys):
    own, plain = {"model": "a", "data": "1", "ranks": 2}, settings()
    with pytest.raises(ValueError, match="want a checkpoint of this trainer"):
        resume.check(tmp_path, own, plain)
    checkpoints.write_identity(tmp_path, own)
    assert resume.check(tmp_path, own, plain) is False
    assert resume.check(tmp_path, {**own, "ranks": 1}, plain) is False  # without DeepSpeed any number reads it
    other = {**own, "model": "b", "data": "2"}
    with pytest.raises(ValueError, match="is of another run: data: '1' there, '2' here; model: 'a' there, 'b' here"):
        resume.check(tmp_path, other, plain)
    allowed = replace(plain, output=OutputSettings(output_dir="o", resume_from_checkpoint="auto", resume_changed=True))
    assert resume.check(tmp_path, other, allowed) is False
    assert "with changes: data: '1' there, '2' here" in capsys.readouterr().out


def test_other_ranks_under_deepspeed_want_a_flag(tmp_path):
    own = {"model": "a", "ranks": 2}
    checkpoints.write_identity(tmp_path, own)
    (tmp_path / "z.json").write_text("{}")
    sharded = replace(settings(), training=TrainingSettings(deepspeed=str(tmp_path / "z.json")))
    with pytest.raises(ValueError, match=r"ranks: 2 there, 4 here; .* resume_at_other_ranks: true"):
        resume.check(tmp_path, {**own, "ranks": 4}, sharded)
    output = OutputSettings(output_dir="o", resume_from_checkpoint="auto", resume_at_other_ranks=True)
    assert resume.check(tmp_path, {**own, "ranks": 4}, replace(sharded, output=output)) is True
    assert resume.deepspeed_config(str(tmp_path / "z.json"), True) == {"checkpoint": {"load_universal": True}}


def test_settling_replaces_only_by_a_rename(tmp_path):
    partial, final = tmp_path / ".partial" / "checkpoint-1", tmp_path / "checkpoint-1"
    partial.mkdir(parents=True)
    (partial / "x").write_text("new")
    final.mkdir()
    (final / "x").write_text("old")
    checkpoints.settle(partial, final)
    assert (final / "x").read_text() == "new" and not partial.exists()


def test_what_was_not_finite_is_written_down(tmp_path):
    path = checkpoints.write_not_finite(tmp_path, 1, 7, ["a:3"])
    assert json.loads(path.read_text()) == {"after_step": 7, "examples": ["a:3"]}
