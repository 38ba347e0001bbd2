"""What a run can be told: one flat namespace of keys, as frozen dataclasses grouped by owner.

Every key has a line of help and either a default or is required. A group checks its own keys; Settings what crosses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train.data.sources import Source
from train.keys import (
    COUNT,
    FRACTION,
    NATURAL,
    POSITIVE,
    REQUIRED,
    SOME_SOURCES,
    SOURCES,
    STEPS,
    WARMUP,
    Group,
    check_json,
    key,
    one_of,
    some_of,
)

if TYPE_CHECKING:
    from expo_kernels.types import Objective

INSTEAD = {"num_train_epochs": "max_steps", "per_device_train_batch_size": "max_tokens"}  # a key: what rules it
PACKING = ("none", "auto", "mask", "varlen", "flash")
SPARSITY = ("none", "certified", "unbiased")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Group):
    """The model, its adapter, and the fused loss at its head."""

    model: str = key(REQUIRED, "the policy to start from: a folder or a name on the hub")
    model_revision: str | None = key(None, "branch, tag or commit of a model on the hub")
    tokenizer: str | None = key(None, "a folder or a name on the hub; none: the model's own")
    trust_remote_code: bool = key(False, "run Python code that comes with the model")
    attn_implementation: str = key("sdpa", "code of the attention", one_of(*ATTENTION))
    bf16: bool = key(False, "compute in bfloat16; without it in float32")
    gradient_checkpointing: bool = key(False, "keep fewer activations and compute them again in backward")
    lora_r: int = key(0, "rank of the LoRA adapter; 0: train the whole model", NATURAL)
    lora_alpha: float = key(16.0, "LoRA's scale, divided by lora_r", POSITIVE)
    lora_dropout: float = key(0.0, "dropout in front of the adapter", FRACTION)
    lora_target_modules: tuple[str, ...] | Literal["all-linear"] | None = key(
        None, "modules with an adapter; none: all-linear, every linear layer but the head"
    )
    lora_modules_to_save: tuple[str, ...] | None = key(None, "modules trained in full and saved beside the adapter")
    lora_merge: bool = key(False, "merge the adapter into the final model")
    router_aux_loss_coef: float = key(0.0, "weight of the balancing loss of a mixture of experts; 0: none", NATURAL)
    packing: str = key("none", "no padding, all sequences in one row; auto: what is fastest here", one_of(*PACKING))
    shared_prompts: bool = key(False, "compute a group's prompt once for all its responses, where packing is by mask")
    backend: str = key("auto", "of the fused loss", one_of("auto", "plain", "triton", "native"))
    workspace_mb: int = key(1024, "workspace of the fused loss in MiB", COUNT)
    sparsity: str = key("none", "columns of the vocabulary left out of the head's gradient", one_of(*SPARSITY))
    sparsity_tau: float = key(0.01, "certified: mass of the softmax that every row may lose", FRACTION)
    sparsity_theta: float = key(0.004, "unbiased: norm from which on a column is certain to be kept", POSITIVE)

    def contradictions(self) -> Iterator[str]:
        for field in dataclasses.fields(self):
            of_lora = field.name.startswith("lora_") and field.name != "lora_r"
            if of_lora and not self.lora_r and getattr(self, field.name) != field.default:
                yield f"{field.name} and lora_r: want lora_r above 0 with {field.name}, got lora_r 0"
        if self.shared_prompts and self.packing == "none":
            yield "shared_prompts and packing: want packing other than none with shared_prompts, got none"
        for name, owner in (("sparsity_tau", "certified"), ("sparsity_theta", "unbiased")):
            default = next(field.default for field in dataclasses.fields(self) if field.name == name)
            if getattr(self, name) != default and self.sparsity != owner:
                yield f"{name} and sparsity: want sparsity {owner} with {name}, got {self.sparsity}"
        names = self.lora_target_modules
        if isinstance(names, tuple) and (not names or "all-linear" in names):
            yield f"lora_target_modules: want names of modules or all-linear alone, got {list(names)}"


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Group):
    """The loss, and the reference that it compares with."""

    objective: str = key(REQUIRED, "name of the loss (docs/objectives.md)")
    objective_args: Mapping[str, Any] = key({}, "parameters of the loss")
    reference: str = key("auto", "source of its log-probs", one_of("auto", "none", "cache", "engine", "adapter"))
    reference_model: str | None = key(None, "the reference: a folder or a name on the hub; none: the policy's start")
    reference_cache: str | None = key(None, "folder of the reference's log-probs; none: beside the output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make()

    def make(self) -> Objective:
        from expo_kernels.objectives import make_objective  # it brings torch, which --help can do without

        return make_objective(self.objective, **self.objective_args)

    def contradictions(self) -> Iterator[str]:
        if self.reference_model is not None and self.reference in ("none", "adapter"):
            yield f"reference_model and reference: want no reference_model with reference {self.reference}"
        if self.reference_cache is not None and self.reference not in ("auto", "cache"):
            yield f"reference_cache and reference: want no reference_cache with reference {self.reference}"


@dataclass(frozen=True, kw_only=True)
class DataSettings(Group):
    """What is read, and how it becomes tokens."""

    train_data: tuple[Source, ...] = key(REQUIRED, "what is trained on", SOME_SOURCES)
    eval_data: tuple[Source, ...] = key((), "what is evaluated on", SOURCES)
    eval_fraction: float = key(0.0, "share of train_data that is held out and evaluated on", FRACTION)
    anchor_data: tuple[Source, ...] = key((), "responses sampled from the reference, without labels", SOURCES)
    per_device_anchors: int = key(0, "anchors of a micro-batch on each device", NATURAL)
    columns: Mapping[str, str] = key({}, "the objective's column: the data's column")
    max_length: int = key(1024, "most tokens of prompt and response together", COUNT)
    truncation_mode: str = key("keep_start", "of longer ones", one_of("keep_start", "keep_end", "drop"))
    chat_template: str | None = key(None, "a file with a chat template, or the template; none: the tokenizer's")
    chat_template_args: Mapping[str, Any] = key({}, "variables of the chat template")
    data_cache: str | None = key(None, "folder of tokenised data; none: data in output_dir")
    dataloader_num_workers: int = key(0, "processes that make batches; 0: the trainer's own", NATURAL)

    @property
    def has_eval(self) -> bool:
        return bool(self.eval_data) or self.eval_fraction > 0

    def contradictions(self) -> Iterator[str]:
        if self.eval_data and self.eval_fraction:
            yield "eval_fraction and eval_data: want one of them, got both"
        if bool(self.anchor_data) != bool(self.per_device_anchors):
            given = "per_device_anchors 0" if self.anchor_data else "no anchor_data"
            yield f"anchor_data and per_device_anchors: want both or neither, got {given}"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Group):
    """Steps, batches and the optimizer."""

    num_train_epochs: float = key(1.0, "passes over the data", POSITIVE)
    max_steps: int = key(-1, "optimizer steps, in place of num_train_epochs; -1: as many as the epochs have", STEPS)
    per_device_train_batch_size: int = key(4, "groups (pairs, lists or single responses) of a micro-batch", COUNT)
    max_tokens: int | None = key(
        None, "tokens of a micro-batch on a device, in place of per_device_train_batch_size; wants packing", COUNT
    )
    per_device_eval_batch_size: int = key(8, "groups of a batch in evaluation", COUNT)
    gradient_accumulation_steps: int = key(1, "micro-batches of a step", COUNT)
    learning_rate: float = key(1e-6, "the highest", POSITIVE)
    lr_scheduler_type: str = key("cosine", "a name in transformers.SchedulerType")
    lr_scheduler_kwargs: Mapping[str, Any] = key({}, "further arguments of the scheduler")
    warmup_steps: float = key(0.0, "steps of linear warmup; below 1: a share of all steps", WARMUP)
    optim: str = key("adamw_torch", "a name in transformers.training_args.OptimizerNames")
    optim_args: str | None = key(None, "further arguments of the optimizer, as a=1,b=2")
    weight_decay: float = key(0.0, "decoupled weight decay", NATURAL)
    adam_beta1: float = key(0.9, "decay of Adam's first moment", FRACTION)
    adam_beta2: float = key(0.999, "decay of Adam's second moment", FRACTION)
    adam_epsilon: float = key(1e-8, "what Adam adds to its denominator", POSITIVE)
    max_grad_norm: float = key(1.0, "the gradient is clipped to this norm; 0: never", NATURAL)
    seed: int = key(42, "of the order of the data, of dropout and of new weights", NATURAL)
    deepspeed: str | None = key(None, "JSON file with DeepSpeed's configuration")
    use_cpu: bool = key(False, "train on the CPU even where there is a GPU")
    ddp_timeout: int = key(1800, "seconds that one process waits for another", COUNT)

    def contradictions(self) -> Iterator[str]:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for ruled, ruler in INSTEAD.items():
            if rules(getattr(self, ruler)) and getattr(self, ruled) != defaults[ruled]:
                yield f"{ruler} and {ruled}: want one of them, got both"

    def __post_init__(self) -> None:
        super().__post_init__()
        # slow to import: only for who has settings, not for --help
        from transformers.trainer_utils import SchedulerType
        from transformers.training_args import OptimizerNames

        for name, known in (("lr_scheduler_type", SchedulerType), ("optim", OptimizerNames)):
            limit = one_of(*(member.value for member in known))
            if not limit.holds(getattr(self, name)):
                raise ValueError(f"{name}: want {limit.want}, got {getattr(self, name)!r}")
        if self.deepspeed is not None:
            check_json("deepspeed", Path(self.deepspeed))


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Group):
    """What is written, when, and what a run starts again from."""

    output_dir: str = key(REQUIRED, "folder of everything that the run writes")
    run_name: str | None = key(None, "name of the run in the reports")
    logging_steps: int = key(10, "steps from one report to the next", COUNT)
    report_to: tuple[str, ...] = key(("jsonl",), "where reports go", some_of("jsonl", "tensorboard", "wandb"))
    eval_steps: int = key(0, "steps from one evaluation to the next; 0: at the end only", NATURAL)
    save_steps: int = key(0, "steps from one checkpoint to the next; 0: only the final model", NATURAL)
    save_total_limit: int = key(3, "checkpoints that are kept; 0: all", NATURAL)
    metric_for_best_model: str | None = key(None, "what load_best_model_at_end goes by; none: loss")
    greater_is_better: bool | None = key(None, "whether the metric should be high; none: unless its name ends in loss")
    load_best_model_at_end: bool = key(False, "the final model is the best of the checkpoints")
    resume_from_checkpoint: str | None = key(None, "a checkpoint's folder; auto: the newest complete one, if any")
    resume_changed: bool = key(False, "resume although data, objective or settings are others; what differs is said")
    resume_at_other_ranks: bool = key(False, "resume DeepSpeed's checkpoint of other ranks, converted first")
    overwrite_output_dir: bool = key(False, "move the run that output_dir has aside, and start anew")
    save_only_model: bool = key(False, "checkpoints without the optimizer; such a run cannot be resumed")
    token_stats: bool = key(
        False, "entropy and mean_token_accuracy of training batches too (evaluation always has them)"
    )
    disable_tqdm: bool = key(False, "no progress bars")
    dry_run: bool = key(False, "show data, first example and expected memory, and stop")
    dry_run_ranks: int = key(0, "ranks that dry_run reckons with; 0: those that run", NATURAL)

    def contradictions(self) -> Iterator[str]:
        best = self.load_best_model_at_end
        if best and not self.eval_steps:
            yield "load_best_model_at_end and eval_steps: want eval_steps above 0, got 0"
        elif best and self.save_steps != self.eval_steps:  # the best is one that was saved
            yield f"load_best_model_at_end and save_steps: want {self.eval_steps}, eval_steps, got {self.save_steps}"
        if self.metric_for_best_model is not None and not best:
            yield "metric_for_best_model and load_best_model_at_end: want both, got only the metric"
        if self.dry_run_ranks and not self.dry_run:
            yield "dry_run_ranks and dry_run: want both, got only dry_run_ranks"
        if self.greater_is_better is not None and self.metric_for_best_model is None:
            yield "greater_is_better and metric_for_best_model: want both, got only greater_is_better"
        for flag in ("resume_changed", "resume_at_other_ranks"):
            if getattr(self, flag) and self.resume_from_checkpoint is None:
                yield f"{flag} and resume_from_checkpoint: want both, got only {flag}"
        for one, other in (
            ("resume_from_checkpoint", "overwrite_output_dir"),
            ("save_only_model", "load_best_model_at_end"),
            ("save_only_model", "resume_from_checkpoint"),
        ):
            if getattr(self, one) and getattr(self, other):
                yield f"{one} and {other}: want one of them, got both"


@dataclass(frozen=True, kw_only=True)
class Settings(Group):
    """Everything that one run is told."""

    model: ModelSettings
    data: DataSettings
    objective: ObjectiveSettings
    training: TrainingSettings
    output: OutputSettings

    def contradictions(self) -> Iterator[str]:
        if self.training.max_tokens is not None and self.model.packing == "none":
            yield "max_tokens and packing: want packing other than none with max_tokens, got none"
        if self.objective.reference == "adapter" and not self.model.lora_r:
            yield "reference and lora_r: want lora_r above 0 with reference adapter, got 0"
        for name in ("eval_steps", "load_best_model_at_end"):
            if getattr(self.output, name) and not self.data.has_eval:
                yield f"{name} and eval_data: want eval_data or eval_fraction with {name}, got neither"

    def make_objective(self) -> Objective:
        return self.objective.make()

    def to_dict(self) -> dict[str, Any]:
        """All keys with plain values, for YAML: read again they give equal settings.

        A key that another rules is left out: both together are a contradiction.
        """
        groups = (vars(getattr(self, group.name)) for group in dataclasses.fields(self))
        flat = {name: _plain(value) for group in groups for name, value in group.items()}
        return {name: value for name, value in flat.items() if not rules(flat.get(INSTEAD.get(name, "")))}


def rules(value: Any) -> bool:
    """Whether a key of INSTEAD with this value is given."""
    return value is not None and value > 0


def _plain(value: Any) -> Any:
    if isinstance(value, Source):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
