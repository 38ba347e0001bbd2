"""The fused head in Hugging Face models: nothing else about the model changes, and what it cannot do it refuses."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from expo_kernels import LossOutput, reference
from expo_kernels.head import Scoring, attach, check_head, detach
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from expo_kernels.types import HeadOptions

V = 97
SIZES = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
SMALL = {**SIZES, **IDS, "max_position_embeddings": 32}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "llama tied": LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=32, **IDS),
    "phi": PhiConfig(**SMALL),
    "cohere": CohereConfig(**SMALL, num_key_value_heads=2),
    "granite": GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=8.0),
}


def small(config: PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    """-> ids [4, 10], labels [4, 10] of two pairs with prompts of three tokens."""
    ids = torch.randint(0, V, (4, 10), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, -100)
    labels[:, 2:-1] = ids[:, 3:]
    return ids, labels


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_has_the_gradient_of_its_own_logits(name):
    model, (ids, labels) = small(CONFIGS[name]), sequences()
    objective, batch = make_objective("cpo"), from_padded(labels)
    logits = model(input_ids=ids).logits
    seq = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0].mul(labels != -100).sum(1)
    want = reference.objective_loss(seq, batch, objective)
    want.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()

    attach(model)
    check_head(model, V)
    out = model(input_ids=ids, scoring=Scoring(batch=batch, objective=objective))
    assert isinstance(out, LossOutput)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(want.item(), rel=1e-5)
    for key, p in model.named_parameters():
        assert (p.grad - gradients[key]).norm() <= 2e-5 * gradients[key].norm() + 1e-7, key


def test_attach_changes_no_key_no_name_no_logits_and_detach_undoes_it():
    model, (ids, _) = small(CONFIGS["llama"]), sequences()
    keys, cls, before = list(model.state_dict()), type(model), model(input_ids=ids).logits
    weight = model.lm_head.weight
    assert attach(model) is model and attach(model) is model
    assert list(model.state_dict()) == keys and model.lm_head.weight is weight
    assert type(model).__name__ == cls.__name__ and isinstance(model, cls)
    assert torch.equal(model(input_ids=ids).logits, before)
    made = model.generate(ids[:1], max_new_tokens=3, do_sample=False)
    detach(model)
    assert type(model) is cls and type(model.lm_head) is torch.nn.Linear
    assert torch.equal(model.generate(ids[:1], max_new_tokens=3, do_sample=False), made)


def test_saved_and_loaded_as_what_it_was(tmp_path):
    model, (ids, _) = attach(small(CONFIGS["llama tied"])), sequences()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    assert torch.equal(loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


def test_without_an_objective_summed_log_probs():
    model, (ids, labels) = attach(small(CONFIGS["llama"])), sequences()
    batch = from_padded(labels, roles=1)
    got = model(input_ids=ids, scoring=Scoring(batch=batch))
    want = reference.sequence_logprob(model.model(input_ids=ids).last_hidden_state, model.lm_head.weight, batch)
    assert torch.allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name, options", [("gemma2", HeadOptions()), ("cohere", HeadOptions(logit_scale=1.0)),
                                           ("granite", HeadOptions(logit_scale=0.25))])  # fmt: skip
def test_the_check_sees_a_soft_cap_or_a_scale_that_was_not_known(name, options):
    model = attach(small(CONFIGS[name]))
    check_head(model, V)
    model.get_output_embeddings().logit_options = options
    with pytest.raises(ValueError, match=r"check_head: the model's own log-probs differ"):
        check_head(model, V)


def test_the_check_sees_something_between_body_and_head():
    model = attach(small(CONFIGS["llama"]))
    own = type(model).__mro__[2].forward

    def doubled(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        out.logits = 1.1 * out.logits
        return out

    type(model).__mro__[2].forward = doubled
    try:
        with pytest.raises(ValueError, match="changes its logits"):
            check_head(model, V)
    finally:
        type(model).__mro__[2].forward = own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_check_allows_for_rounding(dtype):
    for name in ("llama", "gemma2", "granite"):
        check_head(attach(small(CONFIGS[name]).to(dtype)), V, dtype=dtype)


EXPERTS = {
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_a_mixture_of_experts_has_its_own_balancing_loss(name):
    model, (ids, labels) = small(EXPERTS[name]), sequences()
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    labels[2, 6:] = -100
    objective, batch = make_objective("cpo"), from_padded(labels)
    out = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    seq = out.logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0].mul(labels != -100).sum(1)
    want = reference.objective_loss(seq, batch, objective) + 0.3 * out.aux_loss
    want.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    attach(model)
    check_head(model, V)
    scoring = Scoring(batch=batch, objective=objective, router_weight=0.3)
    got = model(input_ids=ids, attention_mask=mask, scoring=scoring)
    got.loss.backward()
    assert got.loss.item() == pytest.approx(want.item(), rel=1e-5)
    for key, p in model.named_parameters():
        assert (p.grad - gradients[key]).norm() <= 2e-5 * gradients[key].norm() + 1e-7, key


def test_refused():
    model, (ids, labels) = attach(small(CONFIGS["llama"])), sequences()
    scoring = Scoring(batch=from_padded(labels), objective=make_objective("cpo"), router_weight=0.1)
    with pytest.raises(ValueError, match="want a mixture of experts with router logits, got LlamaForCausalLM"):
        model(input_ids=ids, scoring=scoring)
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=V))
    with pytest.raises(ValueError, match="want a decoder"):
        attach(t5)
    model = small(CONFIGS["llama"])
    with pytest.raises(ValueError, match="found no body"):
        attach(model.model)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="want a plain linear output head, got Sequential"):
        attach(model)
    model, (ids, labels) = attach(small(CONFIGS["llama"])), sequences()
    with pytest.raises(ValueError, match=r"want the labels in scoring\.batch"):
        model(input_ids=ids, labels=ids, scoring=Scoring(batch=from_padded(labels)))


def test_adapters_on_the_body_on_the_head_and_the_head_trained_whole():
    from peft import LoraConfig, get_peft_model

    ids, labels = sequences()
    scoring = Scoring(batch=from_padded(labels), objective=make_objective("cpo"))

    body = get_peft_model(small(CONFIGS["llama"]), LoraConfig(r=2, target_modules="all-linear"))
    attach(body.get_base_model())
    body(input_ids=ids, scoring=scoring).loss.backward()
    assert body.get_base_model().lm_head.weight.grad is None
    assert all(p.grad is not None for p in body.parameters() if p.requires_grad)

    low_rank = get_peft_model(small(CONFIGS["llama"]), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="the output head has a low-rank adapter"):
        attach(low_rank.get_base_model())

    whole = get_peft_model(
        small(CONFIGS["llama"]), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    attach(whole.get_base_model())
    head = whole.get_base_model().lm_head
    with torch.no_grad():
        head.modules_to_save["default"].weight.mul_(1.5)
    changed = whole(input_ids=ids, scoring=scoring)
    changed.loss.backward()
    assert head.original_module.weight.grad is None and head.modules_to_save["default"].weight.grad is not None
    with whole.disable_adapter():
        off = whole(input_ids=ids, scoring=Scoring(batch=scoring.batch))
    plain = attach(small(CONFIGS["llama"]))(input_ids=ids, scoring=Scoring(batch=scoring.batch))
    assert torch.equal(off, plain) and not torch.allclose(changed.seq_logps, off)
