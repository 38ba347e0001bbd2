"""Given a Batch the exact path asks the device nothing, and launches a handful of kernels a chunk.

On a card tests/gpu asks torch itself (set_sync_debug_mode, a CUDA graph). Here every operation is watched: the custom
operations are run by their Python functions, so that what they do inside is seen too, and kernels are counted in the
interpreter.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import backends
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime import interpreter

from benchmarks.cases import head_case
from expo_kernels import Execution, sequence_logprob
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.inputs import checks, divisors, evaluation
from expo_kernels.kernels.plain import ops as plain_ops
from expo_kernels.kernels.triton import ops as triton_ops
from expo_kernels.kernels.triton.budget import budget
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective

PACKAGE = Path(__file__).parent.parent / "expo_kernels"
ROUTES = ["triton", "triton-fused", "triton-persistent"]
PAIR, D, V = 16, 8, 300  # tokens of a pair
WAITS = {
    "_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "_unique", "_unique2", "unique_consecutive",
    "unique_dim", "equal", "bincount", "repeat_interleave.Tensor", "lift_fresh", "is_nonzero", "histc",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Refuses what waits for a device or copies from the host, and counts what would be a kernel on one."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        assert name not in WAITS and str(func).split("::")[-1].removeprefix("aten.") not in WAITS, f"{func} waits"
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert all(x is None or x.dtype not in (torch.bool, torch.uint8) for x in indices), f"{func} by a mask waits"
        views = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
        if not views and "empty" not in name and name != "detach":
            self.launched[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch):
    """The mode, with the custom operations unfolded and kernels counted by their names."""
    made, launch = Watch(), interpreter.GridExecutor.__call__

    def counted(self, *args, **kwargs):
        made.launched[f"kernel {self.fn.__name__}"] += 1
        with _disable_current_modes():
            return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    for module in (checks, divisors, evaluation):  # what is on a host may be looked at, and on a card nothing is
        monkeypatch.setattr(module, "on_host", lambda values: False)
    for ops in (triton_ops, plain_ops):
        for name in ("logprob", "score", "backprop", "segment_sum", "pair_terms"):
            if hasattr(ops, name):
                monkeypatch.setattr(ops, name, getattr(ops, name)._init_fn)
    return made


def step(pairs: int, backend: str, workspace_bytes: int, *, frozen: bool = False):
    """A function that makes the loss and its gradients of so many pairs, everything it reads made beforehand."""
    N = PAIR * pairs
    h, w, y = head_case(N, D, V, dtype=torch.bfloat16)
    batch = from_packed(y, torch.arange(0, N + 1, PAIR // 2))
    objective = make_objective("expo_reg", lam=0.3, temperature=10.0)
    refs, divisor = torch.full((2 * pairs,), -40.0), torch.tensor(float(pairs))
    execution = Execution(backend=backend, workspace_bytes=workspace_bytes, skip_inactive=False)
    hidden, weight = h.requires_grad_(), w.requires_grad_(not frozen)

    def run():
        preference_loss(
            hidden, weight, batch, objective, reference=refs, divisor=divisor, execution=execution
        ).loss.backward()

    return run


def launches(watch, run) -> Counter[str]:
    watch.launched.clear()
    with watch:
        run()
    return Counter(watch.launched)


@pytest.mark.parametrize("frozen", [False, True], ids=["all gradients", "frozen head"])
@pytest.mark.parametrize("name", ["plain", *ROUTES])
def test_a_step_asks_the_device_nothing(name, frozen, watch, monkeypatch):
    backend = backends.use(name, monkeypatch)
    seen = launches(watch, step(4, backend, 1 << 18, frozen=frozen))
    assert sum(seen.values()) > 20 and ("kernel _pair_terms" in seen) == (name != "plain")


@pytest.mark.parametrize("name", ["plain", *ROUTES])
def test_forward_only_asks_the_device_nothing(name, watch, monkeypatch):
    backend = backends.use(name, monkeypatch)
    h, w, y = head_case(40, D, V, dtype=torch.bfloat16)
    batch, execution = from_packed(y, torch.tensor([0, 40]), roles=1), Execution(backend=backend)
    assert launches(watch, lambda: sequence_logprob(h, w, batch, execution=execution))


def test_the_watch_sees_what_waits(watch):
    x = torch.ones(3)
    for waits in (
        lambda: x.sum().item(), lambda: bool(x.any()), lambda: x.nonzero(), lambda: x[x > 0], lambda: x.unique(),
        lambda: torch.equal(x, x), lambda: torch.tensor([1.0, 2.0]), lambda: int(x[0]),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="waits"):
            launches(watch, waits)


# --- launches a chunk ------------------------------------------------------------------------------------------------

ROOM = 100_000  # bytes of workspace
ALWAYS = {"_product": 2, "_scaled_rows": 1, "_finish_dh": 1, "_scatter_labels": 1, "_pair_terms": 1}
EPILOGUE = {"_label_logits": 1, "_merge": 2}
KERNELS = {
    "triton": ALWAYS,
    "triton-fused": ALWAYS | EPILOGUE | {"_head_tiles": 2},
    "triton-persistent": ALWAYS | EPILOGUE | {"_head_tiles_persistent": 1, "_head_tiles": 1},
}
A_BLOCK = ("_product", "_row_sums", "_row_merge", "_row_entries")  # of the library's route, 512 rows at real sizes
# operations on a number a token or a sequence, and the gather of h
VECTORS = {"triton": 14, "triton-fused": 17, "triton-persistent": 17}


@pytest.mark.parametrize("name", ROUTES)
def test_a_handful_of_launches_a_chunk(name, watch, monkeypatch):
    """What one more chunk launches: the products, the kernels, and small operations on vectors."""
    backend = backends.use(name, monkeypatch)
    if name == "triton-persistent":
        monkeypatch.setattr("expo_kernels.kernels.triton.head.scoring.takes_descriptors", lambda *a: True)
    rows = budget(D, V, torch.bfloat16, ROOM)
    held = rows.chunk_rows // PAIR  # pairs of a chunk
    few, more = (launches(watch, step(chunks * held, backend, ROOM)) for chunks in (2, 4))
    added = {what: (more[what] - few[what]) / 2 for what in more if more[what] != few[what]}
    kernels = {what.removeprefix("kernel "): count for what, count in added.items() if what.startswith("kernel ")}
    blocks = -(-held * PAIR // rows.logit_rows) if name == "triton" else 0
    assert kernels == Counter(KERNELS[name]) + Counter(dict.fromkeys(A_BLOCK, blocks))
    vectors = {what: count for what, count in added.items() if not what.startswith("kernel ")}
    assert sum(vectors.values()) <= VECTORS[name], vectors


# --- what the source says --------------------------------------------------------------------------------------------

ON_THE_PATH = [*sorted((PACKAGE / "ops").glob("*.py")), *sorted((PACKAGE / "kernels" / "triton").glob("*.py")),
               PACKAGE / "kernels" / "custom_ops.py", PACKAGE / "kernels" / "ordered.py"]  # fmt: skip
METHODS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "argwhere", "synchronize", "bincount",
    "is_nonzero", "equal", "allclose",
}  # fmt: skip
ALLOWED = {
    ("chunks.py", "backprop", "nonzero"),  # one count a chunk, only where inactive rows are skipped
    ("gradients.py", "require_one", "item"),  # on the host alone
}


def test_the_source_asks_only_where_it_may():
    found = set()
    for path in ON_THE_PATH:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
                names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
                found |= {(path.name, function.name, name) for name in names & METHODS}
    assert found == ALLOWED
