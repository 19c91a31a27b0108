"""Every estimator against the exact gradient, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.core.built import built
from tests.core.circuits import (
    CIRCUITS,
    LinearCell,
    circuit,
    dense_jacobian,
    fixed_point,
    flatten,
    flatten_drive_and_weights,
    implicit_gradient,
    start,
    vector_drive,
)

CONVERGED = 600


def estimated(cell, drive, incoming: Tensor, algorithm: str, **options) -> list[Tensor]:
    """Gradients of `incoming . state` into drive and weights."""
    recurrence = built(cell, algorithm=algorithm, **options)
    state = flatten(recurrence(drive).state)
    return list(torch.autograd.grad(state @ incoming, flatten_drive_and_weights(cell, drive)))


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Relative to the exact one, over all tensors."""
    difference = torch.cat([(f - e).reshape(-1) for f, e in zip(found, exact, strict=True)])
    return float(difference.norm() / torch.cat([e.reshape(-1) for e in exact]).norm())


def incoming_for(cell, drive) -> Tensor:
    return torch.randn_like(flatten(start(cell, drive)))


@pytest.fixture(params=CIRCUITS)
def case(request):
    torch.manual_seed(7)
    cell, drive = circuit(request.param)
    return request.param, cell, drive, incoming_for(cell, drive)


def test_implicit_equals_the_dense_solve(case):
    _, cell, drive, incoming = case
    exact = implicit_gradient(cell, drive, fixed_point(cell, drive), incoming)
    found = estimated(cell, drive, incoming, "implicit", steps=CONVERGED)
    assert distance(found, exact) < 1e-9


def test_long_bptt_converges_to_the_dense_solve(case):
    name, cell, drive, incoming = case
    exact = implicit_gradient(cell, drive, fixed_point(cell, drive), incoming)
    errors = [
        distance(estimated(cell, drive, incoming, "bptt", steps=steps), exact)
        for steps in (10, 50, 200)
    ]
    assert errors[0] > errors[1] > errors[2] or errors[1] < 1e-12
    # rho = 0.9 leaves 200 * 0.9^200 = 1e-7 of the truth.
    assert errors[2] < (1e-6 if name == "linear0.9" else 1e-9)


def test_rbp_with_many_terms_equals_the_dense_solve(case):
    _, cell, drive, incoming = case
    exact = implicit_gradient(cell, drive, fixed_point(cell, drive), incoming)
    found = estimated(
        cell, drive, incoming, "rbp", steps=CONVERGED, adjoint_terms=400, adjoint_tolerance=0.0
    )
    # A term that grows for once ends the series of its sample, so ask where none does.
    jacobian = dense_jacobian(cell, drive, fixed_point(cell, drive))
    if float(torch.linalg.matrix_norm(jacobian, 2)) < 1:
        assert distance(found, exact) < 1e-9
    else:
        assert distance(found, exact) < 1


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_the_error_of_rbp_falls_as_rho_to_the_terms_plus_one(rho):
    torch.manual_seed(1)
    cell, drive = LinearCell(rho=rho), vector_drive()
    incoming = torch.randn(drive.numel(), dtype=torch.float64)
    exact = implicit_gradient(cell, drive, fixed_point(cell, drive), incoming)[0]
    errors = []
    for terms in range(31):
        found = estimated(
            cell,
            drive,
            incoming,
            "rbp",
            steps=CONVERGED,
            adjoint_terms=terms,
            adjoint_tolerance=0.0,
        )[0]
        errors.append(float((found - exact).norm()))
    # The rest of the series is (J^T)^(K+1) (I - J)^-T g0: at most rho^(K+1) |exact|, here (J
    # symmetric with a simple leading eigenvalue) equal to it in the limit.
    for terms, error in enumerate(errors):
        assert error <= rho ** (terms + 1) * float(exact.norm()) * (1 + 1e-9) + 1e-13
    assert errors[20] / errors[19] == pytest.approx(rho, rel=0.02) or errors[20] < 1e-12


def test_jfb_is_rbp_without_terms(case):
    _, cell, drive, incoming = case
    one_step = estimated(cell, drive, incoming, "jfb", steps=9)
    no_terms = estimated(cell, drive, incoming, "rbp", steps=9, adjoint_terms=0)
    state = start(cell, drive)
    with torch.no_grad():
        for _ in range(8):
            state = cell(drive, state)
    by_hand = torch.autograd.grad(
        flatten(cell(drive, state)) @ incoming, flatten_drive_and_weights(cell, drive)
    )
    for a, b, c in zip(one_step, no_terms, by_hand, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_bptt_equals_a_loop_in_plain_autograd(case):
    _, cell, drive, incoming = case
    state = start(cell, drive)
    for _ in range(6):
        state = cell(drive, state)
    by_hand = list(
        torch.autograd.grad(flatten(state) @ incoming, flatten_drive_and_weights(cell, drive))
    )
    assert distance(estimated(cell, drive, incoming, "bptt", steps=6), by_hand) < 1e-14
    checkpointed = estimated(cell, drive, incoming, "bptt", steps=6, adjoint_checkpointed=True)
    assert distance(checkpointed, by_hand) < 1e-14
    whole = estimated(cell, drive, incoming, "tbptt", steps=6, adjoint_length=6)
    assert distance(whole, by_hand) < 1e-14


def test_tbptt_differentiates_the_last_steps_only(case):
    _, cell, drive, incoming = case
    state = start(cell, drive)
    for step in range(6):
        if step < 4:
            with torch.no_grad():
                state = cell(drive, state)
        else:
            state = cell(drive, state)
    by_hand = list(
        torch.autograd.grad(flatten(state) @ incoming, flatten_drive_and_weights(cell, drive))
    )
    assert (
        distance(estimated(cell, drive, incoming, "tbptt", steps=6, adjoint_length=2), by_hand)
        < 1e-14
    )


def test_phantom_is_the_damped_unroll(case):
    _, cell, drive, incoming = case
    undamped = estimated(
        cell, drive, incoming, "phantom", steps=8, adjoint_length=3, adjoint_damping=1.0
    )
    truncated = estimated(cell, drive, incoming, "tbptt", steps=8, adjoint_length=3)
    assert distance(undamped, truncated) < 1e-13


def test_phantom_on_a_linear_map_matches_its_closed_form():
    torch.manual_seed(3)
    cell, drive = LinearCell(rho=0.6), vector_drive()
    incoming = torch.randn(drive.numel(), dtype=torch.float64)
    damping, length = 0.5, 4
    found = estimated(
        cell,
        drive,
        incoming,
        "phantom",
        steps=CONVERGED,
        adjoint_length=length,
        adjoint_damping=damping,
    )[0]
    matrix = cell.matrix.detach()
    damped = (1 - damping) * torch.eye(6, dtype=torch.float64) + damping * matrix
    series = damping * sum(torch.linalg.matrix_power(damped, k) for k in range(length))
    expected = (series.T @ incoming.reshape(2, 6).T).T
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_loss_on_every_step_sums_their_gradients():
    torch.manual_seed(5)
    cell, drive = circuit("tanh")
    recurrence = built(cell, algorithm="bptt", steps=4)
    states = recurrence(drive).states
    assert len(states) == 4
    found = torch.autograd.grad(sum(s.square().sum() for s in states), cell.matrix)[0]
    state, loss = torch.zeros_like(drive), torch.zeros((), dtype=torch.float64)
    for _ in range(4):
        state = cell(drive, state)
        loss = loss + state.square().sum()
    assert torch.allclose(found, torch.autograd.grad(loss, cell.matrix)[0], rtol=1e-13)


def test_a_start_gets_the_gradient_of_bptt_and_none_of_an_equilibrium():
    torch.manual_seed(5)
    cell, drive = circuit("tanh")
    initial = torch.randn_like(drive).requires_grad_()
    recurrence = built(cell, algorithm="bptt", steps=3)
    assert torch.autograd.gradcheck(
        lambda x, h: recurrence(x, h).state, (drive, initial), atol=1e-8
    )
    state = built(cell, algorithm="rbp", steps=3)(drive, initial).state
    (gradient,) = torch.autograd.grad(state.sum(), initial, allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("algorithm", ["bptt", "implicit", "rbp"])
def test_gradcheck_at_an_equilibrium(algorithm):
    torch.manual_seed(11)
    cell, drive = LinearCell(size=4, rho=0.5), vector_drive(4)
    options = {"adjoint_terms": 60, "adjoint_tolerance": 0.0} if algorithm == "rbp" else {}
    recurrence = built(cell, algorithm=algorithm, steps=80, **options)
    assert torch.autograd.gradcheck(lambda x: recurrence(x).state, (drive,), atol=1e-7)


def test_the_gradient_does_not_depend_on_the_scale_of_the_loss():
    torch.manual_seed(2)
    cell, drive = LinearCell(rho=0.6), vector_drive()
    incoming = torch.randn(drive.numel(), dtype=torch.float64)
    small = estimated(cell, drive, incoming, "rbp", steps=50)
    large = estimated(cell, drive, incoming * 65536, "rbp", steps=50)
    for a, b in zip(small, large, strict=True):
        assert torch.equal(a * 65536, b)


def test_the_released_norm_cap_gives_the_one_step_gradient_for_a_large_loss():
    torch.manual_seed(2)
    cell, drive = LinearCell(rho=0.6), vector_drive()
    incoming = torch.randn(drive.numel(), dtype=torch.float64)
    large, small = incoming * 5 / incoming.norm(), incoming * 1e-3
    one_step = estimated(cell, drive, large, "jfb", steps=50)
    capped = estimated(cell, drive, large, "rbp", steps=50, adjoint_norm_cap=1.0)
    assert distance(capped, one_step) == 0
    uncapped = estimated(cell, drive, small, "rbp", steps=50)
    assert (
        distance(estimated(cell, drive, small, "rbp", steps=50, adjoint_norm_cap=1.0), uncapped)
        == 0
    )


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_deq_equals_the_dense_solve(solver):
    pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    torch.manual_seed(4)
    cell, drive = circuit("tanh")
    incoming = incoming_for(cell, drive)
    exact = implicit_gradient(cell, drive, fixed_point(cell, drive), incoming)
    found = estimated(
        cell,
        drive,
        incoming,
        "deq",
        steps=60,
        solver_method=solver,
        solver_tolerance=1e-10,
        adjoint_tolerance=1e-10,
    )
    # Anderson mixing is regularised by 1e-4 in torchdeq and stops a little short.
    assert distance(found, exact) < 1e-5
