"""No step of the solve waits for a GPU: run on tensors that pretend to be on one.

They have no values, and raise where these, or a shape that depends on them, would have to be read.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from crbp_d2.core import (
    AdjointReport,
    AndersonAdjoint,
    AndersonSteps,
    Circuit,
    HGRUCell,
    MaskHGRUCell,
    Neumann,
    PlainSteps,
)

CELLS = {
    "mask_hgru": lambda: MaskHGRUCell(channels=32),
    "hgru": lambda: HGRUCell(channels=32, kernel_size=15, norm="IN"),
}
SHAPE = (3, 32, 14, 14)


@pytest.fixture
def gpu():
    with FakeTensorMode(), torch.device("cuda"):
        yield


def run(cell, solver, adjoint=None):
    """Seven steps, and one that is recorded."""
    circuit = Circuit(cell, torch.rand(SHAPE), torch.zeros(SHAPE), training=True)
    solved = solver(circuit, (torch.zeros(SHAPE),), 7)
    return (adjoint or Neumann()).record(circuit, solved.state, 1, AdjointReport())


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("kinds", [(PlainSteps, Neumann), (AndersonSteps, AndersonAdjoint)])
@pytest.mark.parametrize("name", list(CELLS))
def test_the_forward_steps_do_not_wait(name, kinds, precision, gpu):
    solver, adjoint = (kind(precision=precision) for kind in kinds)
    recorded = run(CELLS[name](), solver, adjoint)
    assert recorded.state[0].device.type == "cuda" and recorded.state[0].shape == SHAPE


@pytest.mark.parametrize(
    "adjoint",
    [
        Neumann(terms=6),
        Neumann(terms=6, norm_cap=1.0, stopping="released"),
        AndersonAdjoint(terms=6, memory=3),
    ],
)
def test_the_adjoint_solvers_do_not_wait(adjoint, gpu):
    matrix = torch.rand(14, 14)
    report = AdjointReport()
    g0 = (torch.rand(SHAPE),)
    (found,) = adjoint.solve(lambda v: (v[0] @ matrix,), g0, torch.ones(()), report)
    assert found.device.type == "cuda" and report.terms is not None


def test_a_tolerance_does_wait_and_is_seen_to(gpu):
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        run(CELLS["hgru"](), PlainSteps(tolerance=0.1))
