"""The reference's log-probs: computed once and kept in a file, or asked of a frozen model at every step.

cache     a table [n, K] made before training by a frozen model, in a file that other runs and machines can use
engine    the frozen model stays beside the policy (sharded likewise) and scores every micro-batch
adapter   the policy with its adapter switched off
none      for objectives that need none
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from expo_kernels.head import Scoring
from expo_kernels.types import Execution
from train.attention import Packing
from train.batches import Collator, Corpus, MicroBatch
from train.launch import barrier, rank, say, world
from train.order import StepOrder
from train.policy import load_model
from train.settings import Settings
from train.stage import Stage

FORMAT = 2


def kind(settings: Settings, stage: Stage) -> str:
    """What `reference: auto` means."""
    asked = settings.objective.reference
    name = settings.objective.objective
    if not stage.reference:
        if asked not in ("auto", "none"):
            raise ValueError(f"reference: {name} uses none, got reference: {asked}")
        return "none"
    if asked == "none":
        raise ValueError(f"reference: {name} needs one, got reference: none")
    if asked == "auto":
        return "adapter" if settings.model.lora_r and settings.objective.reference_model is None else "cache"
    return asked


@contextmanager
def frozen(settings: Settings, packing: Packing, device: torch.device) -> Iterator[nn.Module]:
    """The reference model, ready to be called on every rank; sharded as the policy is."""
    sharded = settings.training.deepspeed is not None
    path = settings.objective.reference_model
    model = load_model(settings.model, path, packing=packing, sharded=sharded).eval().requires_grad_(False)
    if not sharded:
        model.to(device)
        yield _UnderAutocast(model) if settings.model.bf16 else model
        return
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, config=_inference(settings))
    engine.eval()
    try:
        yield engine
    finally:
        engine.destroy()
        del engine, model
        gc.collect()


class _UnderAutocast(nn.Module):
    """What accelerate does to a policy in bf16 without DeepSpeed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16):
            return self.model(*args, **kwargs)


def _inference(settings: Settings) -> dict[str, Any]:
    """The policy's DeepSpeed configuration without what trains; numbers that were "auto" get DeepSpeed's defaults."""
    own = json.loads(Path(str(settings.training.deepspeed)).read_text())
    zero = {
        key: value
        for key, value in own.get("zero_optimization", {}).items()
        if value != "auto" and key != "offload_optimizer"
    }
    if zero.get("stage") != 3:
        zero = {"stage": 0}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": settings.model.bf16},
        "steps_per_print": 1 << 30,
    }


@torch.no_grad()
def score(model: nn.Module, micro: MicroBatch, packing: Packing, execution: Execution) -> Tensor:
    """-> [S] summed log-probs, with the batch's token weights."""
    return model(**packing.model_inputs(micro.inputs), scoring=Scoring(batch=micro.batch, execution=execution)).float()


class Table:
    """Log-probs of a whole corpus [n, K] (and, for KTO, of other prompts' responses: [n, K + 1]), in a file."""

    def __init__(self, folder: Path, settings: Settings, stage: Stage, packing: Packing) -> None:
        self.folder, self.settings, self.stage, self.packing = folder, settings, stage, packing

    def fill(self, corpora: list[tuple[Corpus, str]], collator: Collator, device: torch.device) -> None:
        """corpora: each with its data's fingerprint. The model is loaded only if a table is missing."""
        base = self._model_key()
        paths = [self.folder / f"{self._key(base, fingerprint)}.safetensors" for _, fingerprint in corpora]
        missing = _agree([i for i, path in enumerate(paths) if not path.is_file()])
        if missing:
            say(f"reference log-probs: computing {sum(len(corpora[i][0]) for i in missing)} groups, to {self.folder}")
            with frozen(self.settings, self.packing, device) as model:
                for i in missing:
                    values = self._compute(model, corpora[i][0], collator, device)
                    _check(values, len(corpora[i][0]), str(paths[i]))
                    if rank() == 0:
                        self._write(paths[i], values, base, corpora[i][1])
                del model
            gc.collect()  # before the policy is loaded
            if device.type == "cuda":
                torch.cuda.empty_cache()
            barrier()
        else:
            say(f"reference log-probs: found in {self.folder}")
        for path, (corpus, _) in zip(paths, corpora, strict=True):
            corpus.reference = _read(path, len(corpus))

    def _compute(self, model: nn.Module, corpus: Corpus, collator: Collator, device: torch.device) -> Tensor:
        """Every rank scores its share; all get the whole."""
        K = corpus.roles
        order = StepOrder(
            len(corpus), per_rank=self.settings.training.per_device_eval_batch_size, ranks=world(), rank=rank()
        )
        values = torch.zeros(len(corpus), K + (self.stage.point == "mismatched"), dtype=torch.float64, device=device)
        execution = Execution(
            backend=self.settings.model.backend, workspace_bytes=self.settings.model.workspace_mb << 20
        )
        loader = DataLoader(corpus, batch_sampler=order, collate_fn=collator)
        bar = tqdm(loader, "reference", disable=True if rank() or self.settings.output.disable_tqdm else None)
        for at, micro in zip(order, bar, strict=True):
            micro = micro.to(device)
            found = score(model, micro, self.packing, execution).view(K, -1).T  # [P, K]
            if micro.others is not None:
                found = torch.cat([found, score(model, micro.others, self.packing, execution)[:, None]], 1)
            if at:
                values[at] = found.double()
        if world() > 1:
            dist.all_reduce(values)
        return values.float().cpu()

    def _model_key(self) -> dict[str, Any]:
        """What the log-probs depend on, beside the tokens themselves."""
        own, other = self.settings.model, self.settings.objective.reference_model
        name, revision = (own.model, own.model_revision) if other is None else (other, None)
        found = [fingerprint(name, revision, own.trust_remote_code) if rank() == 0 else None]
        if dist.is_initialized():
            dist.broadcast_object_list(found)
        precision = ("weights" if self.settings.training.deepspeed else "autocast") if own.bf16 else "fp32"
        weighted = repr(self.stage.objective) if self.stage.objective.needs.token_weights else None
        return {"format": FORMAT, "model": found[0], "precision": precision, "token_weights": weighted,
                "others": self.stage.point == "mismatched"}  # fmt: skip

    def _key(self, base: dict[str, Any], data: str) -> str:
        return hashlib.sha256(json.dumps({**base, "data": data}, sort_keys=True).encode()).hexdigest()[:32]

    def _write(self, path: Path, values: Tensor, base: dict[str, Any], data: str) -> None:
        """Under another name first: two runs may fill one folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        model = self.settings.objective.reference_model or self.settings.model.model
        about = {"key": json.dumps({**base, "data": data}), "model": model}
        save_file({"logps": values}, partial, metadata=about)
        os.replace(partial, path)


def _agree(missing: list[int]) -> list[int]:
    """What the first rank found: a folder may reach the others' view later."""
    found = [missing]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]


def _read(path: Path, count: int) -> Tensor:
    with safe_open(path, "pt") as file:
        values = file.get_tensor("logps")
    _check(values, count, str(path))
    return values


def _check(values: Tensor, count: int, where: str) -> None:
    if len(values) != count or not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).any(1).sum())
        raise ValueError(
            f"reference: want {count} rows of finite log-probs for {where}, got {len(values)}, {bad} of them not finite"
        )


def fingerprint(model: str, revision: str | None = None, trust_remote_code: bool = False) -> str:
    """Of a folder: its weights and configuration, byte by byte. Of a hub name: the commit it stands for."""
    folder = Path(model)
    if not folder.is_dir():
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
        commit = getattr(config, "_commit_hash", None)
        return f"{model}@{commit or revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".py") or path.name in ("config.json", "adapter_config.json"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()
