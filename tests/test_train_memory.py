"""The memory estimate: counts against real models and optimizers, activations and peaks against torch's own account."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MambaConfig

from benchmarks.measure import allocated
from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.layout import from_padded
from toy.language import Language
from toy.model import small_lm
from train.memory import Estimate, Run, Shape, estimate, table

S, T, V = 4, 64, 2000
BODY = "activations of the body"


def run(**changes: Any) -> Run:
    plain: dict[str, Any] = {
        "ranks": 1, "stage": 0, "bf16": False, "offload_optimizer": False, "offload_param": False,
        "checkpointing": False, "sequences": S, "length": T, "scored": S * (T - 1), "workspace_bytes": 1 << 30,
        "reference_engine": False,
    }  # fmt: skip
    return Run(**{**plain, **changes})


def shape(**changes: Any) -> Shape:
    plain: dict[str, Any] = {
        "parameters": 1001, "trained": 101, "head_parameters": 60, "largest_layer": 300, "layers": 3, "hidden": 6,
        "heads": 2, "intermediate": 12, "vocabulary": 10, "tied": False,
    }  # fmt: skip
    return Shape(**{**plain, **changes})


def llama(layers: int = 3, attention: str = "sdpa", kv_heads: int = 4, vocabulary: int = V) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, tie_word_embeddings=False,
        attn_implementation=attention,  # type: ignore[call-arg]
    )  # fmt: skip


LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


def model_of(config: LlamaConfig, bf16: bool, checkpointing: bool) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.bfloat16() if bf16 else model


def bytes_of(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.nbytes for x in tensors if x is not None)


def test_counts_are_those_of_a_real_model():
    model = small_lm(Language().tokenizer)
    found = Shape.of(model.config)
    assert found.parameters == found.trained == sum(p.numel() for p in model.parameters())
    assert found.largest_layer == sum(p.numel() for p in model.model.layers[0].parameters())
    assert found.head_parameters == model.lm_head.weight.numel() == found.vocabulary * 64
    assert (found.layers, found.hidden, found.heads, found.intermediate) == (2, 64, 4, 128)
    assert not found.tied and found.head_trained
    model.config.tie_word_embeddings = True
    assert Shape.of(model.config).tied and Shape.of(model.config).parameters == found.parameters - found.head_parameters


def test_other_architectures_are_counted_or_refused():
    found = Shape.of(GPT2Config())
    assert (found.parameters, found.layers, found.hidden, found.tied) == (124_439_808, 12, 768, True)
    assert found.intermediate == 4 * 768  # not in the config: the widest weight of a block
    with pytest.raises(ValueError, match="want a config with the number num_attention_heads, got MambaConfig"):
        Shape.of(MambaConfig())


def test_counting_takes_no_random_numbers_and_leaves_the_config_alone():
    config, before = llama(), torch.get_rng_state()
    written = config.to_json_string(use_diff=False)
    Shape.of(config)
    assert torch.equal(before, torch.get_rng_state()) and config.to_json_string(use_diff=False) == written


@pytest.mark.parametrize(("optimizer", "states"), [(torch.optim.AdamW, 2), (torch.optim.SGD, 0)])
@pytest.mark.parametrize("bf16", [False, True])
def test_weights_gradients_and_states_are_those_of_a_real_step(bf16, optimizer, states):
    """bf16: the optimizer has fp32 copies, as under DeepSpeed."""
    model = small_lm(Language().tokenizer)
    model = model.bfloat16() if bf16 else model
    model(input_ids=torch.arange(12)[None]).logits.float().logsumexp(-1).sum().backward()
    params = list(model.parameters())
    masters = [torch.nn.Parameter(p.detach().float()) for p in params] if bf16 else params
    for master, p in zip(masters, params, strict=True):
        master.grad = p.grad.float() if bf16 and p.grad is not None else p.grad
    stepped = optimizer(masters, lr=0.1)
    stepped.step()
    moments = [x for state in stepped.state.values() for x in state.values() if torch.is_tensor(x) and x.ndim]
    found = dict(estimate(Shape.of(model.config), run(bf16=bf16, optimizer_states=states)).parts)
    assert found["weights"] == bytes_of(params)
    assert found["gradients"] == bytes_of(p.grad for p in params)
    assert found["optimizer states"] == bytes_of(moments) + (bytes_of(masters) if bf16 else 0)


# 1001 parameters, 101 of them trained, on 4 ranks: 251 and 26 each
@pytest.mark.parametrize(
    ("changes", "weights", "gradients", "states", "layer"),
    [
        ({"stage": 0, "bf16": True}, 2 * 1001, 2 * 101, 12 * 101, 0),
        ({"stage": 1, "bf16": True}, 2 * 1001, 2 * 101, 12 * 26, 0),
        ({"stage": 3, "bf16": True}, 2 * 251, 2 * 26, 12 * 26, 2 * 300),
        ({"stage": 2, "bf16": False}, 4 * 1001, 4 * 26, 12 * 26, 0),
        ({"stage": 3, "bf16": False}, 4 * 251, 4 * 26, 8 * 26, 4 * 300),
        ({"stage": 1, "offload_optimizer": True}, 4 * 1001, 4 * 101, 0, 0),
        ({"stage": 3, "offload_optimizer": True}, 4 * 251, 0, 0, 4 * 300),
        ({"stage": 3, "offload_optimizer": True, "offload_param": True}, 0, 0, 0, 4 * 300),
    ],
    ids=str,
)
def test_what_each_stage_shares_and_offloads(changes, weights, gradients, states, layer):
    found = estimate(shape(), run(ranks=4, reference_engine=True, buffer_bytes=77, **changes)).parts
    assert [size for name, size in found if name != BODY] == [weights, gradients, states, weights, layer, 77]


def saved_bytes(model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> int:
    """What autograd keeps of the body, and its output: storages that are no parameter's, each once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        pack(model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
    return sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in own)


@pytest.mark.parametrize(
    ("bf16", "attention", "kv_heads", "padded"),
    [(False, "sdpa", 4, False), (True, "sdpa", 2, True), (False, "eager", 4, True), (True, "eager", 4, False)],
)
def test_activations_are_what_autograd_saves(bf16, attention, kv_heads, padded):
    ids, mask = torch.randint(0, V, (S, T)), torch.ones(S, T, dtype=torch.long)
    mask[1:, T // 2 :] -= int(padded)

    def kept(layers: int, checkpointing: bool) -> int:
        return saved_bytes(model_of(llama(layers, attention, kv_heads), bf16, checkpointing), ids, mask)

    how = {"bf16": bf16, "eager": attention == "eager", "sdpa_mask": padded and attention == "sdpa"}
    whole, part = (estimate(Shape.of(llama()), run(checkpointing=on, **how)) for on in (False, True))
    all_of_three = kept(3, False)
    assert dict(whole.parts)[BODY] == pytest.approx(all_of_three, rel=0.02) and whole.layer == 0
    assert dict(part.parts)[BODY] == pytest.approx(kept(3, True), rel=0.02)
    assert part.layer == all_of_three - kept(2, False)


def test_shared_key_heads_make_it_an_upper_bound():
    """Without a mask sdpa keeps k and v of two heads in place of four."""
    ids = torch.randint(0, V, (S, T))
    kept = saved_bytes(model_of(llama(kv_heads=2), False, False), ids, torch.ones_like(ids))
    assert kept < dict(estimate(Shape.of(llama()), run()).parts)[BODY] < 1.1 * kept


def loss(head: str, hidden: Tensor, weight: Tensor, ids: Tensor, workspace: int = 1 << 30) -> Tensor:
    """ids [S, T]; naive: logits in the input's dtype, then fp32, as in expo_kernels/reference.py and benchmarks/."""
    labels = pad(ids[:, 1:], (0, 1), value=-100)
    if head == "ours":
        batch = from_padded(labels)
        return expo_loss(hidden, weight, batch, variant="comp", lam=0.1, workspace_bytes=workspace).loss
    logits = hidden @ weight.T
    logp = torch.log_softmax(logits.float(), -1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (logp * (labels != -100)).sum()


@pytest.mark.parametrize(
    ("head", "bf16", "D", "length", "workspace", "trained"),
    [
        ("naive", False, 64, T, 1, True), ("naive", True, 64, T, 1, True), ("naive", True, 64, T, 1, False),
        ("naive", False, 512, 8, 1, True), ("naive", True, 512, 4, 1, False),  # few positions: dh and dw are the peak
        ("ours", False, 64, T, 4 << 20, True), ("ours", True, 64, T, 1 << 30, True),
        ("ours", True, 64, T, 1 << 30, False), ("ours", False, 64, T, 1 << 20, True),
    ],
)  # fmt: skip
def test_the_peak_of_each_head(head, bf16, D, length, workspace, trained):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    hidden = torch.randn(S, length, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=trained)
    ids = torch.randint(0, V, (S, length))
    of = shape(head_parameters=V * D, vocabulary=V, hidden=D, head_trained=trained)
    found = estimate(of, run(bf16=bf16, length=length, scored=S * (length - 1), workspace_bytes=workspace))
    peak = allocated(lambda: loss(head, hidden, weight, ids, workspace).backward())
    estimated, within = (found.head_naive, 0.05) if head == "naive" else (found.head_ours, 0.2)
    assert estimated == pytest.approx(peak, rel=within)


@pytest.mark.parametrize(
    ("head", "bf16", "vocabulary", "checkpointing"),
    [("ours", True, 200, True), ("ours", False, 4000, False), ("naive", False, 200, True), ("naive", True, 4000, True)],
)
def test_the_peak_of_a_whole_step(head, bf16, vocabulary, checkpointing):
    """Gradients in place. With checkpointing and 200 words a layer is the peak, with 4000 the head, never their sum."""
    model = model_of(llama(vocabulary=vocabulary), bf16, checkpointing)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    ids = torch.randint(0, vocabulary, (S, T))

    def step() -> None:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        loss(head, hidden, model.lm_head.weight, ids).backward()

    found = estimate(Shape.of(model.config), run(bf16=bf16, checkpointing=checkpointing))
    total = found.total_ours if head == "ours" else found.total_naive
    peak = allocated(step)
    assert total - sum(size for name, size in found.parts if name != BODY) == pytest.approx(peak, rel=0.15)


def test_llama_3_8b():
    of = Shape.of(LLAMA_8B)
    found = estimate(of, run(ranks=8, stage=3, bf16=True, checkpointing=True, sequences=8, length=4096, scored=20_000))
    assert of.parameters == 8_030_261_248
    assert of.largest_layer == 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096 == 218_112_000
    # weights and gradients 8,030,261,248 x 2 / 8, states x 12 / 8, a layer x 2; 32,768 positions, in each 32 inputs of
    # 2 x 4096, and the last norm: 4 x 4097 + 2 x 2 x 4096
    sizes = [2_007_565_312, 2_007_565_312, 12_045_391_872, 0, 436_224_000, 0, 32_768 * (32 * 8192 + 32_772)]
    assert [size for _, size in found.parts] == sizes
    # two norms, q, k, v and output, log-sum-exp, mlp
    assert found.layer == 32_768 * (2 * 32_772 + 4 * 8192 + 4 * 32 + 4 * 2 * 14_336) == 6_983_778_304
    # the gathered head, 128,256 x 4096 x 2; 12 bytes for each of 32,768 x 128,256 logits
    assert found.head_naive == 1_050_673_152 + 12 * 4_202_692_608 == 51_482_984_448
    # fp32 dw, dh, 64 a token; handing out dw and dh, with 4096 rows in fp32, takes more than the workspace
    handed_out = 1_050_673_152 + 268_435_456 + 67_108_864
    assert found.head_ours == 1_050_673_152 + 2_101_346_304 + 268_435_456 + 1_280_000 + handed_out == 4_807_952_384
    assert found.total_naive == sum(sizes) + 51_482_984_448
    assert found.total_ours == sum(sizes) + 6_983_778_304  # a layer takes more than our head


def test_an_adapter_on_llama_3_8b():
    """Rank 16 on every linear: 41,943,040 trained, the head frozen."""
    of = Shape.of(LLAMA_8B, trained=41_943_040)
    found = estimate(of, run(ranks=8, stage=3, bf16=True, sequences=8, length=4096, scored=20_000))
    assert [size for _, size in found.parts[:3]] == [2_007_565_312, 10_485_760, 62_914_560]
    assert found.head_ours == 1_050_673_152 + 268_435_456 + 1_280_000 + (1 << 30)  # no dw
    assert found.head_naive == 51_482_984_448


def test_the_table_has_every_part_both_heads_and_both_totals():
    parts = (("weights", 1 << 30), ("gradients", 1 << 29))
    made = Estimate(parts, head_ours=1 << 30, head_naive=5 << 30, layer=2 << 30)
    sizes = {"weights": 1.0, "gradients": 0.5, "one layer made again, after the head": 2.0, "loss head, fused": 1.0,
             "loss head, naive": 5.0, "total, fused": 3.5, "total, naive": 6.5}  # fmt: skip
    assert table(made) == [f"{name:<36} {size:>10.3f} GiB" for name, size in sizes.items()]
    assert len(table(made._replace(layer=0))) == 6


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (run, {"ranks": 0}, "Run: want ranks an integer >= 1, got 0"),
        (run, {"stage": 4}, "want stage an integer from 0 to 3, got 4"),
        (run, {"scored": S * T + 1}, f"want scored an integer from 0 to {S * T}"),
        (run, {"buffer_bytes": -1}, "want buffer_bytes"),
        (run, {"offload_param": True, "stage": 2}, "want stage 3 for offload_param, got stage 2"),
        (run, {"offload_optimizer": True}, "from 1 to 3 for offload_optimizer, got stage 0"),
        (run, {"eager": True, "sdpa_mask": True}, "want sdpa_mask or eager, got both"),
        (shape, {"trained": 1002}, "Shape: want trained an integer from 0 to 1001, got 1002"),
        (shape, {"head_parameters": 61}, "want head_parameters a multiple of vocabulary 10, got 61"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bad_input_is_refused(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
