"""The adjoint equation by Anderson acceleration, against dense solves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crbp_d2.core import AndersonAdjoint, Neumann
from crbp_d2.core.adjoints.equilibrium import adjoint_residual
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.state import to_parts
from tests.core.circuits import (
    CIRCUITS,
    LinearCell,
    circuit,
    fixed_point,
    implicit_gradient,
    vector_drive,
)
from tests.core.test_gradients import distance, estimated

ONE = torch.ones(())


def matrix_adjoint(
    matrix: Tensor, g0: Tensor, terms: int, memory: int
) -> tuple[Tensor, AdjointReport]:
    report = AdjointReport()
    solve = AndersonAdjoint(terms, memory, tolerance=0.0).solve
    (found,) = solve(lambda v: (v[0] @ matrix,), (g0,), ONE, report)
    return found, report


def test_a_memory_of_all_dimensions_solves_a_linear_adjoint_exactly():
    torch.manual_seed(0)
    cell, drive = LinearCell(rho=0.9), vector_drive()
    incoming = torch.randn(drive.numel(), dtype=torch.float64)
    exact = implicit_gradient(cell, drive, fixed_point(cell, drive), incoming)
    options = {"adjoint_name": "anderson", "adjoint_memory": 6, "adjoint_tolerance": 0.0}
    found = estimated(cell, drive, incoming, "rbp", steps=600, adjoint_terms=6, **options)
    assert distance(found, exact) < 1e-10
    series = estimated(cell, drive, incoming, "rbp", steps=600, adjoint_terms=6)
    assert distance(series, exact) > 0.1


def test_an_expanding_map_is_solved_where_the_series_gives_up():
    torch.manual_seed(0)
    # Nilpotent: (I - J)^-1 exists and is large, while all products but the last one grow.
    matrix = 2 * torch.diag(torch.ones(5, dtype=torch.float64), 1)
    g0 = torch.randn(2, 6, dtype=torch.float64)
    exact = torch.linalg.solve((torch.eye(6, dtype=torch.float64) - matrix).T, g0.T).T
    # Six products span the space; one more takes away the rounding of the first.
    found, report = matrix_adjoint(matrix, g0, 7, memory=6)
    assert torch.allclose(found, exact, rtol=1e-12)
    assert not report.diverged.any() and (report.contraction_ratio > 0).all()
    series = AdjointReport()
    Neumann(terms=6, tolerance=0.0).solve(lambda v: (v[0] @ matrix,), (g0,), ONE, series)
    assert series.diverged.all()


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("memory", [1, 3, 5])
def test_the_reported_residual_is_true_and_never_rises(name, memory):
    torch.manual_seed(7)
    cell, drive = circuit(name)
    state = tuple(p.requires_grad_() for p in to_parts(fixed_point(cell, drive, steps=9)))
    after = to_parts(cell(drive, state[0] if len(state) == 1 else state))
    g0 = tuple(torch.randn_like(part) for part in after)

    def vjp(vector):
        return torch.autograd.grad(after, state, vector, retain_graph=True)

    previous = torch.full((2,), float("inf"), dtype=torch.float64)
    for terms in range(9):
        report = AdjointReport()
        found = AndersonAdjoint(terms, memory, tolerance=0.0).solve(vjp, g0, ONE, report)
        if terms == 0:
            assert all(torch.equal(f, g) for f, g in zip(found, g0, strict=True))
            continue
        assert torch.allclose(report.residual, adjoint_residual(vjp, g0, found), rtol=1e-8)
        assert (report.residual <= previous).all() and (report.residual < 1).all()
        assert (report.terms == terms).all()
        previous = report.residual


def test_the_contraction_ratio_of_a_multiple_of_the_identity_is_its_factor():
    torch.manual_seed(0)
    g0 = torch.randn(3, 6, dtype=torch.float64)
    found, report = matrix_adjoint(0.75 * torch.eye(6, dtype=torch.float64), g0, 5, memory=3)
    assert torch.allclose(found, 4 * g0, rtol=1e-12)
    assert torch.allclose(report.contraction_ratio, torch.tensor(0.75, dtype=torch.float64))
    # One product solves it but for rounding; the samples are then done.
    assert (report.terms <= 2).all()


def test_products_that_are_not_finite_leave_their_sample_where_it_was():
    torch.manual_seed(0)
    g0 = torch.randn(3, 6, dtype=torch.float64)
    g0[2] = 0
    asked = 0

    def vjp(vector):
        nonlocal asked
        asked += 1
        product = 0.9 * vector[0].roll(1, dims=1)
        if asked > 1:
            product[0] = float("inf")
        return (product,)

    report = AdjointReport()
    (found,) = AndersonAdjoint(4, 4, tolerance=0.0).solve(vjp, (g0,), ONE, report)
    asked = 0
    (after_one,) = AndersonAdjoint(1, 4, tolerance=0.0).solve(vjp, (g0,), ONE, AdjointReport())
    assert torch.equal(found[0], after_one[0]) and torch.isfinite(found).all()
    assert report.diverged.tolist() == [True, False, False]
    assert report.terms.tolist() == [1, 4, 0]
    assert report.residual[2] == 0 and not found[2].any()
