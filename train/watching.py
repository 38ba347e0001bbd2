"""What a person sees of a run: the bar on the first rank, and a line of JSON for every log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.held import held
from train.launch import rank

SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "tokens_per_second": "tokens/s", "eval_loss": "eval loss",
         "eval_rewards/accuracies": "eval accuracy"}  # fmt: skip


class Progress(TrainerCallback):
    """Steps done, time left, and beside them loss, accuracy and speed."""

    def __init__(self, disable: bool) -> None:
        self.disable = True if disable or rank() else None  # None: where there is no terminal
        self.bar: tqdm[Any] | None = None
        self.values: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=self.disable,
            dynamic_ncols=True,
        )  # fmt: skip

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self.bar is None or not logs or rank():
            return
        now = {short: f"{logs[name]:.4g}" for name, short in SHOWN.items() if name in logs}
        self.values |= now
        self.bar.set_postfix(self.values)
        if self.bar.disable and now:
            what = "evaluation at step" if "eval_loss" in logs else "step"
            shown = ", ".join(f"{name} {value}" for name, value in now.items())
            print(f"{what} {state.global_step} of {state.max_steps}: {shown}", flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


class JsonLines(TrainerCallback):
    """output_dir/log.jsonl: a line a log, and one a save, appended; a run that goes on appends to its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs:
            self._write({"step": state.global_step, **logs})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The moment to look for a leak: what a save took has just been given back."""
        self._write({"step": state.global_step, **held(args.device)})

    def _write(self, line: dict[str, Any]) -> None:
        if rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
