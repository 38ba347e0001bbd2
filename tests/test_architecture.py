"""Imports point down only, files and functions stay small, and the public names stay where they are."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import expo_kernels
from expo_kernels import fused_expo_loss, layout, objectives

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "expo_kernels"
MAY_IMPORT = {  # layer: the layers below it
    "sparsity": set(),
    "types": {"sparsity"},
    "layout": {"types"},
    "objectives": {"types"},
    "reference": {"types", "layout"},
    "kernels": {"types", "sparsity"},
    "ops": {"kernels", "layout", "types", "sparsity"},
    "inputs": {"ops", "kernels", "layout", "types", "sparsity"},
    "logprob": {"inputs", "ops", "layout", "types"},
    "fused_expo_loss": {"inputs", "ops", "objectives", "layout", "types", "sparsity"},
    "head": {"fused_expo_loss", "logprob", "layout", "types"},
    "__init__": {"fused_expo_loss", "logprob", "types", "sparsity"},
    "__main__": {"kernels"},
}
# what the folders beside us may import
OUTSIDE = {"reference", "fused_expo_loss", "head", "layout", "objectives", "sparsity", "types"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, as expo_kernels.x.y."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "expo_kernels"}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = layer(path)
    for name in imported(path):
        target = [*name.split("."), ""][1]
        inside = (PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").is_file()
        if target and inside:
            assert target == own or target in MAY_IMPORT[own], f"{own} must not import {name}"


def test_every_layer_is_ruled():
    assert {layer(path) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", ["benchmarks", "evaluation", "toy", "train"])
def test_the_folders_beside_us_use_public_names(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path):
            target = name.split(".")[1:]
            assert not target or target[0] in OUTSIDE or target[0] in expo_kernels.__all__, f"{path}: {name}"


BESIDE = [
    path
    for name in ("train", "toy", "experiments", "benchmarks", "evaluation")
    for path in sorted((ROOT / name).rglob("*.py"))
]


@pytest.mark.parametrize("path", [*MODULES, *sorted(BESIDE)], ids=lambda p: str(p.relative_to(ROOT)))
def test_small_files_and_functions(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.body[0].lineno + 1
            assert body <= 60, f"{node.name} has {body} lines"


def test_no_exported_name_hides_a_module():
    for name in expo_kernels.__all__:
        assert not (PACKAGE / f"{name}.py").exists() and not (PACKAGE / name).is_dir()
    assert inspect.ismodule(fused_expo_loss)


def test_public_signatures():
    assert list(inspect.signature(fused_expo_loss.preference_loss).parameters) == [
        "hidden", "weight", "batch", "objective", "reference", "columns", "divisor", "head", "execution", "stats",
    ]  # fmt: skip
    assert list(inspect.signature(fused_expo_loss.expo_loss).parameters) == [
        "hidden", "weight", "batch", "variant", "lam", "logp_reduction", "temperature", "offset", "reference",
        "columns", "divisor", "bias", "softcap", "logit_scale", "backend", "workspace_bytes", "sparsity", "stats",
        "samples",
    ]  # fmt: skip
    for function in (expo_kernels.sequence_logprob, expo_kernels.token_logprob, expo_kernels.token_stats):
        assert list(inspect.signature(function).parameters) == ["hidden", "weight", "batch", "head", "execution"]
    assert expo_kernels.LossOutput._fields == (
        "loss", "seq_logps", "lengths", "rewards", "terms", "empty", "stats", "sparsity",
    )  # fmt: skip
    assert callable(layout.from_padded) and callable(layout.from_packed)
    assert " ".join(objectives.OBJECTIVES) == (
        "expo_reg expo_comp dpo ipo gpo slic fdpo simpo kto orpo cpo odpo dpop rdpo caldpo lddpo adpo xpo sft distill "
        "rpo wrpo irpo infifpo"
    )
    assert callable(objectives.make_objective)
