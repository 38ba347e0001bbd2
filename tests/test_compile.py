"""Custom ops that pass opcheck; the loop and any objective, a user's own too, trace into one graph; autocast."""

from __future__ import annotations

import pytest
import torch
from small_objectives import Listwise
from support import SMALL, padded_case
from torch.library import opcheck

from expo_kernels import Execution, HeadOptions, reference, sequence_logprob
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.kernels.native import ops as native_ops
from expo_kernels.kernels.native import stored_dtype
from expo_kernels.kernels.plain import ops as plain_ops
from expo_kernels.kernels.triton import ops as triton_ops
from expo_kernels.objectives import make_objective

EXECUTION = Execution(workspace_bytes=SMALL)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.use_deterministic_algorithms(False)  # filling memory with NaN is not traceable
    torch._dynamo.reset()


def operands(dtype):
    n, D, V = 9, 8, 37
    h, w, y = torch.randn(n, D).to(dtype), torch.randn(V, D).to(dtype), torch.randint(0, V, (n,))
    return n, D, V, h, w, y


@pytest.mark.parametrize("ops", [plain_ops, native_ops, triton_ops], ids=["plain", "native", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype, ops):
    n, D, V, h, w, y = operands(dtype)
    stored = stored_dtype(dtype) if ops is native_ops else dtype
    for bias, softcap, stats in ((None, None, False), (torch.randn(V), 5.0, True)):
        opcheck(ops.logprob, (h, y, w, bias, softcap, 1.1, 1 << 16, stats))
        opcheck(ops.score, (h, y, w, bias, softcap, 1.1, torch.zeros(n, V, dtype=stored), 1 << 16, stats))
    stored, row = torch.rand(n, V).to(stored), torch.rand(n)
    for dw, db, rows, need_h in (
        (torch.zeros(V, D), torch.zeros(V), None, True),
        (None, None, torch.tensor([0, 4]), True),
        (torch.zeros(V, D), None, None, False),
    ):
        own = (stored, row, row, y, row, h, w, 1.1, dw, db, rows, need_h, 1 << 16)
        opcheck(ops.backprop, own)
        for rule in (("row", 0.1, 0, 5), ("unbiased", 2.0, 3, 5)):
            opcheck(ops.sparse_backprop, (*own, *rule))
    opcheck(ops.segment_sum, (row, torch.tensor([0, 4, 4, 9])))


def test_opcheck_of_the_pair_kernel():
    logp, offsets, lengths = -torch.rand(9), torch.tensor([0, 4, 4, 6, 9]), torch.tensor([[4, 2], [0, 3]])
    opcheck(triton_ops.pair_terms, ("expo_comp", 0.3, 0.15, False, 2.0, logp, torch.rand(9), offsets, lengths, None))
    opcheck(triton_ops.pair_terms, ("expo_reg", 0.3, 0.0, True, 2.0, logp, None, offsets, lengths, -torch.rand(2, 2)))


def gradients(function, case):
    leaves, head = case.leaves(case.hidden.dtype)
    out = function(leaves[0], leaves[1], head)
    loss = out if isinstance(out, torch.Tensor) else out.loss
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def test_a_buffer_for_dw_under_compile():
    objective, case, out = make_objective("expo_comp", lam=0.3), padded_case(6, 12, 16, 65), []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        buffer = torch.zeros(65, 16)
        execution = Execution(workspace_bytes=SMALL, skip_inactive=False, weight_gradient_out=buffer)
        (hidden, weight), _ = case.leaves(torch.float32)
        wrap(lambda h, w, e=execution: preference_loss(h, w, case.batch, objective, execution=e).loss)(
            hidden, weight
        ).backward()
        assert weight.grad is None and bool(buffer.any())
        out.append((hidden.grad, buffer))
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


CASES = {
    "comp": ({}, make_objective("expo_comp", lam=0.3, temperature=9.0)),
    "anchors": ({"anchors": 2}, make_objective("expo_comp", lam=0.3, samples="anchors")),
    "hinge": ({}, make_objective("slic", sft_weight=0.1, sft_reduction="tokens")),
    "a user's own on lists": ({"roles": 3}, Listwise()),
    "imitation beside another": ({}, make_objective("simpo", sft_weight=0.1)),
    "a mark, and others to look at": ({"roles": 1, "forward_only": 2}, make_objective("kto")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_traces_into_one_graph(name):
    layout, objective = CASES[name]
    case = padded_case(6, 12, 16, 65, bias=True, softcap=5.0, **layout)
    columns = {"reward": torch.randn(6)} if isinstance(objective, Listwise) else None
    columns = {"desirable": torch.tensor([1.0, 0.0, 0.0, 1.0])} if "desirable" in objective.needs.columns else columns
    reference = -torch.rand(6) * 30 if objective.needs.reference else None
    execution = Execution(workspace_bytes=SMALL, skip_inactive=False)

    def function(hidden, weight, head):
        return preference_loss(
            hidden,
            weight,
            case.batch,
            objective,
            columns=columns,
            reference=reference,
            head=head,
            execution=execution,
            stats=("entropy",),
        )

    eager = gradients(function, case)
    compiled = gradients(torch.compile(function, fullgraph=True, backend="aot_eager"), case)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_the_loss_traces_with_chunks_and_inductor():
    objective = make_objective("expo_reg", lam=0.3, temperature=9.0)
    case = padded_case(8, 40, 33, 301)
    ref = torch.full((8,), -60.0)

    def function(hidden, weight, head):
        return preference_loss(hidden, weight, case.batch, objective, reference=ref, head=head, execution=EXECUTION)

    eager, compiled = gradients(function, case), gradients(torch.compile(function, fullgraph=True), case)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6 * float(a.abs().max()))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_generic_operation_traces_into_one_graph(frozen):
    case = padded_case(6, 12, 16, 65)

    def function(hidden, weight, head):
        weight = weight.detach() if frozen else weight
        return sequence_logprob(hidden, weight, case.batch, head=head, execution=EXECUTION).square().sum()

    leaves, head = case.leaves(torch.float32)
    twins, twin_head = case.leaves(torch.float32)
    function(*leaves, head).backward()
    torch.compile(function, fullgraph=True, backend="aot_eager")(*twins, twin_head).backward()
    for a, b in zip(leaves, twins, strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("operation", ["loss", "sequences"])
def test_autocast_computes_like_a_linear_layer_and_returns_the_leaves_dtype(operation):
    """fp32 master weights under bf16 autocast: operands are rounded once, products and gradients stay fp32."""
    case = padded_case(6, 12, 16, 65, bias=True)
    rounded = case._replace(hidden=case.hidden.bfloat16().float(), weight=case.weight.bfloat16().float())
    objective = make_objective("expo_comp", lam=0.3, temperature=9.0)

    def function(hidden, weight, head):
        if operation == "loss":
            return preference_loss(hidden, weight, case.batch, objective, head=head, execution=EXECUTION)
        seq = sequence_logprob(hidden, weight, case.batch, head=head, execution=EXECUTION)
        return reference.objective_loss(seq, case.batch, objective)

    with torch.autocast("cpu", torch.bfloat16):
        made = gradients(function, case)
    exact = gradients(
        lambda h, w, head: reference.preference_loss(h, w, case.batch, objective, head=head),
        rounded._replace(hidden=rounded.hidden.double(), weight=rounded.weight.double(), bias=case.bias.double()),
    )
    for a, b in zip(made, exact, strict=True):
        assert a.dtype == torch.float32
        assert float((a.double() - b).norm()) <= 4e-3 * float(b.norm())  # bf16 exponentials; 2^-9 an entry


def test_autocast_leaves_float64_alone():
    case = padded_case(4, 6, 8, 30, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        a = sequence_logprob(case.hidden, case.weight, case.batch, head=HeadOptions())
    assert torch.equal(a, sequence_logprob(case.hidden, case.weight, case.batch))


def test_lengths_that_vary_with_the_loss_outside_the_compiled_region():
    """What the README advises: the body is compiled once, the loss is called from it and not traced."""
    objective, weight = make_objective("expo_comp", lam=0.3), torch.randn(65, 16, requires_grad=True)
    loss = torch.compiler.disable(preference_loss)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x, batch: loss(torch.tanh(x), weight, batch, objective).loss, backend=backend)
    for seed in range(12):
        batch = padded_case(4, 6, 16, 65, seed=seed).batch
        x = torch.randn(4, 6, 16)
        a, b = compiled(x, batch), preference_loss(torch.tanh(x), weight, batch, objective).loss
        assert torch.equal(a, b)
    assert len(graphs) <= 2, "the body, once or (torch 2.9) twice, not once a layout"
