"""Our settings -> transformers.TrainingArguments. What the Trainer would do on its own that we do ourselves is off."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from train.resume import deepspeed_config
from train.settings import Settings


def training_arguments(settings: Settings, universal: bool = False) -> TrainingArguments:
    """universal: a checkpoint of other ranks is read (train/resume.py)."""
    model, training, output = settings.model, settings.training, settings.output
    best: dict[str, Any] = {}
    if output.load_best_model_at_end:
        best = {"load_best_model_at_end": True, "metric_for_best_model": output.metric_for_best_model or "loss"}
        best["greater_is_better"] = output.greater_is_better
    made = TrainingArguments(
        output_dir=output.output_dir,
        run_name=output.run_name,
        seed=training.seed,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=dict(training.lr_scheduler_kwargs) or None,
        warmup_steps=training.warmup_steps,
        optim=training.optim,
        optim_args=training.optim_args,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        bf16=model.bf16,
        activation_checkpointing=model.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if model.gradient_checkpointing else None,
        deepspeed=None if training.deepspeed is None else deepspeed_config(training.deepspeed, universal),
        use_cpu=training.use_cpu or _no_gpu(),
        ddp_timeout=training.ddp_timeout,
        ddp_find_unused_parameters=False,
        logging_steps=output.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=[name for name in output.report_to if name in ("tensorboard", "wandb")] or "none",
        disable_tqdm=True,  # the bar is ours
        eval_strategy="steps" if output.eval_steps else "no",
        eval_steps=output.eval_steps or None,
        save_strategy="steps" if output.save_steps else "no",
        save_steps=output.save_steps or 500,
        save_total_limit=None,  # rotation is ours
        save_only_model=output.save_only_model,
        dataloader_num_workers=settings.data.dataloader_num_workers,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        **best,
    )
    made._n_gpu = min(made.n_gpu, 1)  # one process has one GPU: nn.DataParallel would split what it does not know
    return made


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()
