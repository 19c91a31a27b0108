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

from crbp_d2.core import AdjointReport, HGRUCell, MaskHGRUCell, build_estimator
from crbp_d2.core.adjoint import neumann_series
from crbp_d2.core.anderson import anderson_adjoint
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.unrolled import Run

CELLS = {
    "mask_hgru": lambda: MaskHGRUCell(channels=32),
    "hgru": lambda: HGRUCell(channels=32, kernel_size=15, norm="IN"),
}
ANDERSON = {"acceleration": "anderson", "forward_acceleration": "anderson"}
SHAPE = (3, 32, 14, 14)


@pytest.fixture
def gpu():
    with FakeTensorMode(), torch.device("cuda"):
        yield


def unroll(cell, options, run: Run):
    estimator = build_estimator("rbp", **options)
    circuit = Circuit(cell, torch.rand(SHAPE), torch.zeros(SHAPE))
    return estimator.unroll(circuit, (torch.zeros(SHAPE),), run)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("options", [{}, ANDERSON])
@pytest.mark.parametrize("name", list(CELLS))
def test_the_forward_steps_do_not_wait(name, options, lowered, gpu):
    unrolled = unroll(CELLS[name](), options, Run(8, lowered=lowered))
    assert unrolled.state[0].device.type == "cuda" and unrolled.state[0].shape == SHAPE


@pytest.mark.parametrize("solver", [neumann_series(6), anderson_adjoint(6, memory=3)])
def test_the_adjoint_solvers_do_not_wait(solver, gpu):
    matrix = torch.rand(14, 14)
    report = AdjointReport()
    (found,) = solver(lambda v: (v[0] @ matrix,), (torch.rand(SHAPE),), torch.ones(()), report)
    assert found.device.type == "cuda" and report.terms is not None


def test_a_tolerance_does_wait_and_is_seen_to(gpu):
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        unroll(CELLS["hgru"](), {}, Run(8, tolerance=0.1))
