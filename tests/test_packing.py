"""Sequences in one row: laid out as they are read, kept apart, and worth the same as padded ones."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_head import CONFIGS, V
from test_head import small as small_of
from torch.nn.attention import varlen

from expo_kernels.head import Scoring, attach
from expo_kernels.objectives import make_objective
from train import attention
from train.attention import Packing, block_mask, check_packing, check_windows, choose
from train.layouts import Group, Layout
from train.order import Anchors, TokenOrder, balanced
from train.settings import ModelSettings

PADDED = Packing("padded", "sdpa", False, "")
MASK = Packing("mask", "sdpa", False, "")
SHARED = Packing("mask", "sdpa", True, "")
CPU = torch.device("cpu")


def small(name: str) -> torch.nn.Module:
    return small_of(copy.deepcopy(CONFIGS[name]))  # the attention's code is written into it


# the row


def test_sequences_stand_one_after_the_other_and_begin_anew():
    inputs, batch = Layout(packed=True)([Group([7, 8], [[1, 2], [3]]), Group([9], [[4], [5, 6]])])
    assert inputs.input_ids.tolist() == [[7, 8, 1, 2, 7, 8, 3, 9, 4, 9, 5, 6]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 2]]
    assert inputs.ends.tolist() == [0, 4, 7, 9, 12] and inputs.longest == 4 and inputs.attention_mask is None
    # role by role: both chosen, then both rejected; each token's row is the one before it
    assert batch.labels.tolist() == [1, 2, 4, 3, 5, 6] and batch.lengths.tolist() == [2, 1, 1, 2]
    assert batch.rows.tolist() == [1, 2, 7, 5, 9, 10]


def test_a_shared_prompt_stands_once_and_its_last_row_predicts_every_response():
    inputs, batch = Layout(packed=True, shared_prompts=True)([Group([7, 8], [[1, 2], [3]])], [Group([9], [[4]])])
    assert inputs.input_ids.tolist() == [[7, 8, 1, 2, 3, 9, 4]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert inputs.parts.tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 0, 1]]
    assert batch.labels.tolist() == [1, 2, 3, 4] and batch.rows.tolist() == [1, 2, 1, 5]
    assert batch.host.anchors == 1 and batch.host.repeated_rows


def test_who_sees_whom():
    parts = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 1, 1, 2, 0, 1]])
    assert block_mask(parts).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],  # the second response sees the prompt and itself
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_an_empty_group_is_laid_out_as_well():
    for shared in (False, True):
        inputs, batch = Layout(packed=True, shared_prompts=shared)([Group([0], [[], []])])
        assert batch.lengths.tolist() == [0, 0] and inputs.input_ids.numel() == (1 if shared else 2)


# worth the same


def groups(seed: int = 0) -> list[Group]:
    random = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(1, V, (n,), generator=random).tolist()

    return [Group(ids(n), [ids(a), ids(b)]) for n, a, b in ((4, 3, 5), (1, 1, 2), (6, 4, 1))]


def run(model: torch.nn.Module, packing: Packing, some: list[Group]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-> summed log-probs [S], and the gradient of a loss on them."""
    inputs, batch = Layout(packing.packed, packing.shared_prompts)(some)
    model.zero_grad()
    out = model(**packing.model_inputs(inputs), scoring=Scoring(batch=batch, objective=make_objective("cpo")))
    out.loss.backward()
    return out.seq_logps, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("packing", [MASK, SHARED, Packing("mask", "eager", True, "")], ids=["mask", "shared", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_padded(name, packing):
    if name == "gemma2":
        packing = packing._replace(implementation="eager")  # sdpa has no soft cap, and transformers refuses it
    model = small(name).double()
    model.config._attn_implementation = packing.implementation
    attach(model)
    want, gradients = run(model, PADDED._replace(implementation=packing.implementation), groups())
    got, own = run(model, packing, groups())
    assert torch.allclose(got, want, rtol=1e-6)  # Gemma's and others' norms go through fp32
    for key in gradients:
        assert (own[key] - gradients[key]).norm() <= 1e-5 * gradients[key].norm() + 1e-9, key


def standing_in(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What varlen_attn computes, sequence by sequence; it has no kernel for a CPU."""
    assert window_size == (-1, 0) and max_q == int(cu_q.diff().max()) and torch.equal(cu_q, cu_k)
    parts = []
    for a, b in itertools.pairwise(cu_q.tolist()):
        one = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        )
    return torch.cat([part[0].transpose(0, 1) for part in parts])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_torchs_varlen_attention_is_told_the_lengths(name, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", standing_in)
    attention.register_varlen()
    model = attach(small(name).double())
    want, gradients = run(model, PADDED, groups())
    model.config._attn_implementation = attention.VARLEN
    got, own = run(model, Packing("varlen", attention.VARLEN, False, ""), groups())
    assert torch.allclose(got, want, rtol=1e-6)
    for key in gradients:
        assert (own[key] - gradients[key]).norm() <= 1e-5 * gradients[key].norm() + 1e-9, key
    ids = torch.tensor([groups()[0].prompt])  # whole sequences without lengths are plain causal ones
    assert model(input_ids=ids, use_cache=False).logits.isfinite().all()


@pytest.mark.parametrize("packing", [MASK, SHARED], ids=["mask", "shared"])
def test_no_token_reaches_another_sequence(packing):
    """Bit by bit: with another first group, the other groups' log-probs stay what they were."""
    model, some = attach(small("llama")), groups()
    changed = [Group([x % (V - 1) + 1 for x in some[0].prompt], some[0].responses), *some[1:]]
    before, after = (run(model, packing, each)[0] for each in (some, changed))
    assert not torch.equal(before[0], after[0]) and not torch.equal(before[3], after[3])
    for s in (1, 2, 4, 5):
        assert torch.equal(before[s], after[s])
    rejected = [
        Group(some[0].prompt, [some[0].responses[0], [x % (V - 1) + 1 for x in some[0].responses[1]]]),
        *some[1:],
    ]
    after = run(model, packing, rejected)[0]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[3], after[3])


@pytest.mark.parametrize("packing", [PADDED, MASK, SHARED], ids=["padded", "mask", "shared"])
def test_the_check_passes_what_keeps_sequences_apart(packing):
    for name in ("llama", "gpt2"):
        check_packing(attach(small(name)).eval(), packing, V, CPU, torch.float32)


def test_the_check_sees_a_model_that_reads_neither_mask_nor_positions():
    model = attach(small("llama")).eval()
    forward = model.model.forward
    model.model.forward = lambda **keys: forward(**{k: v for k, v in keys.items() if k in ("input_ids", "use_cache")})
    with pytest.raises(ValueError, match=r"a sequence in a packed row \(mask\) scores up to .* other than alone"):
        check_packing(model, MASK, V, CPU, torch.float32)


# the choice


def test_what_auto_comes_to(monkeypatch):
    auto = ModelSettings(model="m", packing="auto")
    assert choose(ModelSettings(model="m"), CPU).kind == "padded"
    assert choose(auto, CPU)[:3] == ("mask", "sdpa", False)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name if name != "flash_attn" else None)
    cuda = torch.device("cuda")
    assert choose(auto, cuda)[:2] == ("varlen", attention.VARLEN)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name)
    assert choose(auto, cuda)[:2] == ("flash", "flash_attention_2")
    third = ModelSettings(model="m", packing="auto", attn_implementation="flash_attention_3")
    assert choose(third, cuda).implementation == "flash_attention_3"
    shared = choose(ModelSettings(model="m", packing="auto", shared_prompts=True), cuda)
    assert shared.kind == "mask" and "flash cannot express" in shared.why


def test_what_is_refused():
    with pytest.raises(ValueError, match="shared_prompts: want packing mask, which can express it, got flash"):
        choose(ModelSettings(model="m", packing="flash", shared_prompts=True), CPU)
    with pytest.raises(ValueError, match="want attn_implementation sdpa or eager for a mask, got flash_attention_2"):
        choose(ModelSettings(model="m", packing="mask", attn_implementation="flash_attention_2"), CPU)
    config = copy.deepcopy(CONFIGS["mistral"])
    config.sliding_window = 8
    check_windows(config, MASK, 8)
    check_windows(config, PADDED, 9)
    with pytest.raises(ValueError, match="want sequences of at most the model's sliding window of 8 tokens, got 9"):
        check_windows(config, MASK, 9)


# steps of so many tokens

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(20, 50), st.integers(1, 3), st.integers(1, 3))
def test_every_group_once_an_epoch_within_the_budget_and_alike_on_any_ranks(lengths, budget, micros, ranks):
    orders = [TokenOrder(lengths, budget=budget, micros=micros, ranks=ranks, rank=r, seed=3) for r in range(ranks)]
    one = TokenOrder(lengths, budget=budget, micros=micros * ranks, seed=3)
    for epoch in (0, 1):
        for order in (*orders, one):
            order.set_epoch(epoch)
        drawn = [list(order) for order in orders]
        assert len({len(each) for each in drawn}) == 1 and len(drawn[0]) == len(orders[0])
        assert sorted(i for each in drawn for micro in each for i in micro) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in micro) <= budget for each in drawn for micro in each)
        assert all(len(micro) <= order.most for order, each in zip(orders, drawn, strict=True) for micro in each)
        steps = [
            sorted(i for each in drawn for micro in each[s * micros : (s + 1) * micros] for i in micro)
            for s in range(len(drawn[0]) // micros)
        ]
        alone = list(one)
        bins = micros * ranks
        assert steps == [sorted(i for m in alone[s * bins : (s + 1) * bins] for i in m) for s in range(len(steps))]


def test_loads_are_balanced_and_heavy_ones_side_by_side():
    made = balanced([9, 1, 8, 2, 7, 3], range(6), 3)
    assert [sum([9, 1, 8, 2, 7, 3][i] for i in part) for part in made] == [10, 10, 10]
    lengths = torch.randint(1, 400, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    order = TokenOrder(lengths, budget=4096, micros=2, ranks=4, rank=0)
    for step in order.steps[:-1]:
        loads = [sum(lengths[i] for i in part) for part in step]
        assert loads == sorted(loads, reverse=True) and min(loads) > 0.9 * 4096
    assert list(order) != list(TokenOrder(lengths, budget=4096, micros=2, ranks=4, rank=1))


def test_a_group_that_fits_no_micro_batch():
    with pytest.raises(
        ValueError, match=r"want at least the longest group's 9 tokens .*, got 8 \(1 groups are longer\)"
    ):
        TokenOrder([1, 9, 3], budget=8)


def test_anchors_beside_steps_of_tokens():
    order = TokenOrder([2, 2, 2], budget=4, seed=0, anchors=Anchors(3, 5, 2, 0))
    drawn = [i for micro in order for i in micro if i >= 3]
    assert len(drawn) == 2 * len(order) and set(drawn) <= set(range(3, 8))
