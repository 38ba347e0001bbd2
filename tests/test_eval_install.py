"""The extra `eval` installs what evaluation imports, at the versions of the tests; the documents' commands parse."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evaluation import alpaca, diversity, generate, toy_judge, winrate

ROOT = Path(__file__).parent.parent
OURS = ("evaluation", "train", "toy", "expo_kernels")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where the import has another name


def module_files(name: str) -> list[Path]:
    """a.b.c, which may be a name inside a/b.py -> the files that importing it runs."""
    parts = name.split(".")
    packages = [ROOT.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    modules = [ROOT.joinpath(*parts[:n]).with_suffix(".py") for n in range(1, len(parts) + 1)]
    return [path for path in (*packages, *modules) if path.is_file()]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def third_party() -> set[str]:
    """Of evaluation/ and, file by file, of whatever it imports of train/ and toy/; the package has its own."""
    waiting = list((ROOT / "evaluation").rglob("*.py"))
    seen, found = set(waiting), set()
    while waiting:
        for name in imports(waiting.pop()):
            top = name.split(".")[0]
            if top not in (*OURS, *sys.stdlib_module_names):
                found.add(top)
            if top in OURS[:3]:
                new = set(module_files(name)) - seen
                seen |= new
                waiting += new
    return found


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["eval"]])
    return {canonicalize_name(one.name): one for one in wanted}


def test_the_extra_has_every_import():
    found = third_party()
    assert {"openai", "httpx2", "filelock", "datasets", "safetensors", "sklearn", "torch"} <= found
    assert {name for name in found if canonicalize_name(DISTRIBUTIONS.get(name, name)) not in requirements()} == set()


def test_the_extra_allows_the_versions_of_the_constraints():
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    pinned = {canonicalize_name(name): version for name, version in pins}
    for name, wanted in requirements().items():
        assert wanted.specifier.contains(pinned[name]), f"{wanted}, constraints.txt has {pinned[name]}"


COMMANDS = {module.__name__: module for module in (alpaca, diversity, generate, toy_judge, winrate)}
CALL = re.compile(r"^ +python -m (evaluation\.\w+) (.*)$", re.M)


def calls() -> list[tuple[str, str]]:
    """Of indented blocks and docstrings, with lines that go on after a backslash; without a comment or an ampersand."""
    found = []
    for page in ("docs/evaluation.md", "README.md", "evaluation/alpaca.py"):
        text = (ROOT / page).read_text().replace("\\\n", " ")
        found += [(name, re.split(r" +#| &$", rest)[0]) for name, rest in CALL.findall(text)]
    return found


@pytest.mark.parametrize("call", calls(), ids=" ".join)
def test_the_commands_of_the_documents_have_the_arguments_that_they_show(call):
    name, rest = call
    COMMANDS[name]._arguments(shlex.split(rest))


def test_every_command_stands_in_the_documents():
    assert {name for name, _ in calls()} == set(COMMANDS) and len(calls()) >= 12
