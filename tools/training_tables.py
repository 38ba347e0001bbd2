"""python -m tools.training_tables --write renews what docs/keys.md and docs/training.md say by the code itself.

The keys are read off the settings, the memory off the recipes in train/configs, as --dry_run computes it.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from tools import marked, models
from train import memory
from train.arguments import GROUPS, KEYS, parse, told
from train.dry_run import memory_run, trained_shape
from train.settings import Settings

CONFIGS = Path("train") / "configs"
PAGES = {"keys": marked.DOCS / "keys.md", "memory by part": marked.DOCS / "training.md"}
MODELS = {"llama3_8b": "llama3-8b", "pythia_hh": "pythia-2.8b"}  # of tools.models, by how a recipe's name begins
RECIPES = {  # of the page: recipe, ranks
    "llama3_8b_expo_reg": 8,
    "llama3_8b_expo_reg_40gb": 8,
    "llama3_8b_expo_reg_lora": 8,
    "llama3_8b_expo_reg_lora_h200": 1,
    "pythia_hh_expo_comp": 8,
}


def generated() -> dict[str, str]:
    """Marker -> text."""
    return {"keys": keys(), "memory by part": by_part()}


def keys() -> str:
    return "\n\n".join(_group(name) for name in GROUPS)


def _group(name: str) -> str:
    found = [(key, told(described)) for key, described in KEYS.items() if described.group == name]
    rows = [(f"`{key}`", f"`{of.kind}`", of.meaning.replace("|", "\\|"), _default(of.default)) for key, of in found]
    return f"## {name}\n\n{inspect.getdoc(GROUPS[name])}\n\n" + marked.table(
        ("key", "value", "meaning", "default"), rows
    )


def _default(text: str) -> str:
    return text if text == "required" else f"`{text.removeprefix('default: ')}`"


def by_part() -> str:
    """GiB of one rank: a column a recipe."""
    found = {name: recipe_estimate(name, ranks) for name, ranks in RECIPES.items()}
    parts = [name for name, _ in next(iter(found.values())).parts]
    rows = [(part, *(_gib(dict(of.parts)[part]) for of in found.values())) for part in parts]
    rows.append(("one layer made again, after the head", *(_gib(of.layer) for of in found.values())))
    rows.append(
        ("loss head, fused (naive)", *(f"{_gib(of.head_ours)} ({_gib(of.head_naive)})" for of in found.values()))
    )
    rows.append(
        ("**total, fused (naive)**", *(f"{_gib(of.total_ours)} ({_gib(of.total_naive)})" for of in found.values()))
    )
    return marked.table(("GiB", *(f"`{name}`, {_ranks(ranks)}" for name, ranks in RECIPES.items())), rows)


def recipe_estimate(name: str, ranks: int) -> memory.Estimate:
    """Of a recipe's heaviest micro-batch: every sequence max_length long and, but for a token, scored."""
    settings = parse(["--config", str(CONFIGS / f"{name}.yaml"), "--dry_run", "--dry_run_ranks", str(ranks)])
    shape = trained_shape(settings, models.config(MODELS["_".join(name.split("_")[:2])]))
    return memory.estimate(shape, memory_run(settings, shape.hidden, *_heaviest(settings)))


def _heaviest(settings: Settings) -> tuple[int, int, int]:
    """Sequences, length, scored."""
    sequences = 2 * settings.training.per_device_train_batch_size + settings.data.per_device_anchors
    length = settings.data.max_length
    return sequences, length, sequences * (length - 1)


def _ranks(ranks: int) -> str:
    return f"{ranks} rank" + "s" * (ranks > 1)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


if __name__ == "__main__":
    marked.command(__doc__, PAGES, generated)
