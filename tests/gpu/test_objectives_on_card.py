"""Every objective through the Triton backend on a card, in float64, against the reference on the host."""

from __future__ import annotations

import pytest
import torch
from support import run, truth
from test_every_objective import case_for
from test_objectives import EVERY

from expo_kernels import Execution
from expo_kernels.fused_expo_loss import preference_loss


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_loss_and_gradients(objective, card):
    case = case_for(objective)
    there = case._replace(hidden=case.hidden.to(card), weight=case.weight.to(card), bias=case.bias.to(card))
    columns = None if case.columns is None else {name: column.to(card) for name, column in case.columns.items()}

    def loss(hidden, weight, head):
        return preference_loss(
            hidden, weight, case.batch.to(card), objective, columns=columns, head=head,
            reference=None if case.reference is None else case.reference.to(card),
            execution=Execution(workspace_bytes=1 << 20, backend="triton"),
        ).loss  # fmt: skip

    ours = run(loss, there, torch.float64)
    for name, value in truth(case, objective).items():
        assert torch.allclose(ours[name].cpu(), value, rtol=1e-9, atol=1e-12), name
