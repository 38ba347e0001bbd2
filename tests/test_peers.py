"""The same losses as the peers compute: Liger's functions, TRL's losses, and a tiny model through TRL's trainers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from expo_kernels import SequenceLogprobs, sequence_logprob
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_padded, with_declared_weights
from expo_kernels.objectives import make_objective
from expo_kernels.types import Counts

make = make_objective
P = 6


@pytest.fixture(scope="module", autouse=True)
def _offline():
    """Nothing here may ask the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        yield


def random_pairs() -> SequenceLogprobs:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (2, P), generator=random).double()
    policy = -lengths * (0.2 + torch.rand(2, P, generator=random, dtype=torch.float64))
    reference = policy + torch.randn(2, P, generator=random, dtype=torch.float64)
    return SequenceLogprobs(policy, lengths, reference, {}, Counts(P, 1, P), torch.ones(P, dtype=torch.bool))


def mean_loss(objective, logps: SequenceLogprobs) -> float:
    return float(objective(logps).loss.mean())


def test_liger():
    from liger_kernel.chunked_loss.cpo_loss import LigerFusedLinearCPOFunction
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
    from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOFunction
    from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction
    from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOFunction

    logps = random_pairs()
    both = torch.empty(2 * P)  # they ask it for twice the number of pairs
    sums, refs, means = logps.policy, logps.reference, logps.policy / logps.lengths
    theirs = LigerFusedLinearDPOFunction.preference_loss_fn(*sums, both, *refs, beta=0.3)[0]
    assert float(theirs) == pytest.approx(mean_loss(make("dpo", beta=0.3), logps))
    theirs = LigerFusedLinearCPOFunction.preference_loss_fn(*sums, both, beta=0.3, label_smoothing=0.1)[0]
    assert float(theirs) == pytest.approx(mean_loss(make("cpo", beta=0.3, sft_weight=0.0, label_smoothing=0.1), logps))
    theirs = LigerFusedLinearSimPOFunction.preference_loss_fn(*means, both, beta=2.0, gamma=0.7)[0]
    assert float(theirs) == pytest.approx(mean_loss(make("simpo", beta=2.0, gamma=0.7), logps))
    theirs = LigerFusedLinearORPOFunction.preference_loss_fn(*means, both, beta=0.3)[0]
    assert float(theirs) == pytest.approx(mean_loss(make("orpo", beta=0.3, sft_weight=0.0), logps))
    desirable = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool)
    theirs = LigerFusedLinearKTOFunction.preference_loss_fn(sums[0], desirable, torch.empty(P), refs[0], 0.3, 0.4)[0]
    columns = {"desirable": desirable.float(), "reference_point": torch.full((P,), 0.4).double()}
    single = logps._replace(policy=sums[:1], lengths=logps.lengths[:1], reference=refs[:1], columns=columns)
    assert float(theirs) == pytest.approx(mean_loss(make("kto", beta=0.3, reference_point="column"), single))


@pytest.mark.parametrize("name", ["cpo", "orpo"])
def test_liger_fused_with_its_nll(name):
    """The whole loss, nll of the chosen responses included, and the gradients of hidden states and weight."""
    from liger_kernel.chunked_loss import LigerFusedLinearCPOLoss, LigerFusedLinearORPOLoss

    fused = {"cpo": LigerFusedLinearCPOLoss, "orpo": LigerFusedLinearORPOLoss}[name](beta=0.3, compiled=False)
    hidden, weight = torch.randn(6, 9, 16, requires_grad=True), torch.randn(31, 16, requires_grad=True)
    labels = torch.randint(0, 31, (6, 9)).masked_fill(torch.arange(9) < torch.arange(6)[:, None], -100)
    theirs = fused(weight, hidden, labels)[0]
    ours = preference_loss(hidden, weight, from_padded(labels), make(name, beta=0.3)).loss
    close_enough(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(x, [hidden, weight]) for x in (ours, theirs)), strict=True):
        assert float((mine - other).norm()) <= 1e-5 * float(other.norm())


@pytest.mark.parametrize(("kind", "ours", "means"), [
    ("sigmoid", make("cpo", beta=0.3, sft_weight=0.0, label_smoothing=0.1), False),
    ("simpo", make("simpo", beta=0.3, gamma=0.7, label_smoothing=0.1), True),
    ("hinge", make("slic", delta=1.0), False),
])  # fmt: skip
def test_trl_cpo_losses(kind, ours, means):
    from trl.experimental.cpo import CPOTrainer

    logps = random_pairs()
    beta = 1.0 if kind == "hinge" else 0.3
    trainer = SimpleNamespace(
        alpha=0.0, beta=beta, loss_type=kind, simpo_gamma=0.7, label_smoothing=0.1,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    seen = logps.policy / logps.lengths if means else logps.policy
    theirs, chosen, rejected = CPOTrainer.cpo_loss(trainer, *seen)
    made = ours(logps)
    assert torch.allclose(theirs, made.loss)
    assert torch.allclose(torch.stack([chosen, rejected]), made.rewards)


def test_trl_odds_ratio_loss():
    from trl.experimental.orpo import ORPOTrainer

    logps = random_pairs()
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    theirs = ORPOTrainer.odds_ratio_loss(trainer, *(logps.policy / logps.lengths))[0]  # of the other sign, in fp32
    assert torch.allclose(-theirs.double(), make("orpo", beta=0.3, sft_weight=0.0)(logps).loss, rtol=1e-5)


TEXT = "the cat sat on a mat and then it ran far away from us all"


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(["<pad>", "<eos>", *TEXT.split()])}
    inner = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def model(seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


PROMPTS = ["the cat", "on a mat", "it ran", "then it"]
CHOSEN = ["sat on a mat", "the cat sat", "far away from us all", "ran"]
REJECTED = ["ran far", "it sat and then it ran away", "on a mat", "sat far away"]


def arguments(cls, tmp_path):
    return cls(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False, beta=0.3, per_device_train_batch_size=4,
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip


def hidden_of(network, inputs, prefix=""):
    """-> hidden [S, T - 1, D] and the labels [S, T - 1] they predict."""
    ids, mask = inputs[f"{prefix}input_ids"], inputs[f"{prefix}completion_mask"]
    hidden = network.model(input_ids=ids, attention_mask=inputs[f"{prefix}attention_mask"]).last_hidden_state[:, :-1]
    return hidden, ids.masked_fill(mask == 0, -100)[:, 1:]


def close_enough(ours, theirs):
    """Both in fp32, of sums of some 30 nats: each carries 30 eps beta."""
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=2e-6, abs=2e-6)


def reference_sums(network, labels, hidden, objective, **layout):
    batch = with_declared_weights(objective, from_padded(labels, **layout))
    return sequence_logprob(hidden, network.lm_head.weight, batch)


# TRL's loss type, what it is set to beside, and ours
DPO_LOSSES = {
    "sigmoid": ({}, make("dpo", beta=0.3)),
    "hinge": ({}, make("gpo", shape="hinge", beta=0.3)),
    "robust": ({"label_smoothing": 0.1}, make("dpo", beta=0.3, label_smoothing=0.1, robust=True)),
    "ld": ({"loss_types": ["sigmoid"], "ld_alpha": 0.4}, make("lddpo", beta=0.3, alpha=0.4)),
    "forward_kl": ({"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"},
                   make("fdpo", divergence="forward_kl", beta=0.3)),
    "js": ({"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"}, make("fdpo", divergence="js", beta=0.3)),
    "alpha": ({"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.6},
              make("fdpo", divergence="alpha", alpha=0.4, beta=0.3)),
    "ipo": ({}, make("ipo", beta=0.3, logp_reduction="mean")),
}  # fmt: skip


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})
    return DPOTrainer(
        model=model(0), ref_model=model(1), args=arguments(DPOConfig, tmp_path_factory.mktemp("dpo")),
        train_dataset=data, processing_class=tokenizer(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", DPO_LOSSES)
def test_trl_dpo_trainer(dpo_trainer, kind, monkeypatch):
    """Loss and the gradient of every parameter, on the batch that TRL's own collator makes."""
    changed, objective = DPO_LOSSES[kind]
    for name, value in {"loss_types": [kind], "f_divergence_type": "reverse_kl", **changed}.items():
        monkeypatch.setattr(dpo_trainer, name, value)
    inputs = next(iter(dpo_trainer.get_train_dataloader()))
    network, anchor = dpo_trainer.model, dpo_trainer.ref_model

    def gradients(loss):
        network.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    theirs = dpo_trainer._compute_loss(network, dict(inputs), False)
    their_gradients = gradients(theirs)
    with torch.no_grad():
        hidden, labels = hidden_of(anchor, inputs)
        reference = reference_sums(anchor, labels, hidden, objective)
    hidden, labels = hidden_of(network, inputs)
    ours = preference_loss(hidden, network.lm_head.weight, from_padded(labels), objective, reference=reference).loss
    close_enough(ours, theirs)
    for name, gradient in gradients(ours).items():
        assert float((gradient - their_gradients[name]).norm()) <= 2e-5 * float(their_gradients[name].norm()), name


def test_trl_kto_trainer(tmp_path):
    """The reference point from prompts with other prompts' responses, our forward-only sequences."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    data = Dataset.from_dict({"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False, False, True]})
    trainer = KTOTrainer(
        model=model(1), ref_model=model(0), args=arguments(KTOConfig, tmp_path), train_dataset=data,
        processing_class=tokenizer(),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    objective = make("kto", beta=0.3)

    def everything(network):
        """The responses, and behind them, padded to one length, the mismatched ones."""
        pieces = [hidden_of(network, inputs), hidden_of(network, inputs, "KL_")]
        T = max(labels.shape[1] for _, labels in pieces)
        hidden = [torch.nn.functional.pad(h, (0, 0, 0, T - h.shape[1])) for h, _ in pieces]
        labels = [torch.nn.functional.pad(y, (0, T - y.shape[1]), value=-100) for _, y in pieces]
        batch = from_padded(torch.cat(labels), roles=1, forward_only=len(labels[1]))
        return torch.cat(hidden), batch, network.lm_head.weight

    with torch.no_grad():
        hidden, batch, weight = everything(trainer.ref_model)
        reference = sequence_logprob(hidden, weight, batch)
    hidden, batch, weight = everything(trainer.model)
    columns = {"desirable": torch.as_tensor(inputs["label"]).float()}
    ours = preference_loss(hidden, weight, batch, objective, reference=reference, columns=columns).loss
    theirs = trainer._compute_loss(trainer.model, dict(inputs), False)
    close_enough(ours, theirs)
    assert trainer._metrics["train"]["kl"][-1] > 0, "a reference point of 0 would show nothing"
    (mine,) = torch.autograd.grad(ours, trainer.model.lm_head.weight)
    (other,) = torch.autograd.grad(theirs, trainer.model.lm_head.weight)
    assert float((mine - other).norm()) <= 2e-5 * float(other.norm())
