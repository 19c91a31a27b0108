"""Penalties and their own gradients against the explicit Jacobian, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crbp_d2.core import (
    ConfigurationError,
    JacobianFrobeniusPenalty,
    LipschitzCoefficientPenalty,
    SpectralPenalty,
    WeightSchedule,
    spectral_radius,
)
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.state import as_leaves, to_parts
from tests.core.built import built
from tests.core.circuits import (
    CIRCUITS,
    LinearCell,
    circuit,
    dense_jacobian,
    fixed_point,
    flatten,
    start,
    vector_drive,
)


def recorded_pair(cell, drive, state):
    before = as_leaves(to_parts(state))
    return before, Circuit(cell, drive, state)(before)


def differentiable_jacobian(cell, drive, before, after):
    """`dF/dh` with a graph of its own, `(n, n)`."""
    rows = [
        flatten(
            tuple(
                torch.zeros_like(b) if g is None else g
                for b, g in zip(
                    before,
                    torch.autograd.grad(element, before, create_graph=True, allow_unused=True),
                    strict=True,
                )
            )
        )
        for element in flatten(after)
    ]
    return torch.stack(rows)


@pytest.fixture(params=CIRCUITS)
def pair(request):
    torch.manual_seed(13)
    cell, drive = circuit(request.param)
    state = start(cell, drive)
    with torch.no_grad():
        for _ in range(2):
            state = cell(drive, state)
    return cell, drive, *recorded_pair(cell, drive, state)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_lcp_and_its_gradient_equal_those_of_the_explicit_jacobian(pair, two_sided, reduction):
    cell, drive, before, after = pair
    penalty = LipschitzCoefficientPenalty(bound=0.05, two_sided=two_sided, reduction=reduction)
    columns = differentiable_jacobian(cell, drive, before, after).sum(dim=0)
    excess = ((columns.abs() if two_sided else columns) - 0.05).clamp(min=0).square()
    expected = excess.mean() if reduction == "mean" else excess.sum()
    assert expected > 0
    value = penalty(before, after)
    assert torch.allclose(value, expected, rtol=1e-12)
    inputs = [drive, *cell.parameters()]
    for found, exact in zip(
        torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True),
        torch.autograd.grad(expected, inputs, allow_unused=True),
        strict=True,
    ):
        assert (found is None) == (exact is None)
        if found is not None:
            assert torch.allclose(found, exact, rtol=1e-9, atol=1e-13)


def test_one_sided_lcp_is_blind_to_negative_columns():
    cell = LinearCell(size=4, rho=0.5)
    with torch.no_grad():
        cell.matrix.copy_(-1.5 * torch.eye(4, dtype=torch.float64))
    before, after = recorded_pair(cell, vector_drive(4), torch.zeros(2, 4, dtype=torch.float64))
    one_sided = LipschitzCoefficientPenalty(bound=0.9)(before, after)
    assert float(one_sided.detach()) == 0
    two_sided = LipschitzCoefficientPenalty(bound=0.9, two_sided=True)(before, after)
    assert float(two_sided.detach()) == pytest.approx(0.36)


def test_frobenius_has_the_expectation_of_the_explicit_jacobian(pair):
    cell, drive, before, after = pair
    jacobian = differentiable_jacobian(cell, drive, before, after).detach()
    exact = float(jacobian.square().sum() / jacobian.shape[0])
    probes = 2000
    torch.manual_seed(0)
    values = torch.stack(
        [JacobianFrobeniusPenalty()(before, after).detach() for _ in range(probes)]
    )
    error = float(values.std() / probes**0.5)
    assert float(values.mean()) == pytest.approx(exact, abs=4 * error)


def test_spectral_penalty_measures_the_radius_and_its_gradient():
    torch.manual_seed(0)
    cell = LinearCell(size=5, rho=0.97)
    before, after = recorded_pair(cell, vector_drive(5), torch.zeros(2, 5, dtype=torch.float64))
    value = SpectralPenalty(margin=0.9, power_steps=300)(before, after)
    assert float(value.detach()) == pytest.approx(0.07**2, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, cell.matrix)
    eigenvalues, vectors = torch.linalg.eigh(cell.matrix.detach())
    leading = vectors[:, -1]
    # d rho / dA = v v^T for a symmetric A, and d value / d rho = 2 (rho - margin).
    expected = 2 * (float(eigenvalues[-1]) - 0.9) * torch.outer(leading, leading)
    assert torch.allclose(gradient, expected, atol=1e-6)
    contracting = SpectralPenalty(margin=0.98, power_steps=50)(before, after)
    assert float(contracting.detach()) == 0


def test_spectral_radius_against_dense_eigenvalues():
    torch.manual_seed(3)
    for name in CIRCUITS:
        cell, drive = circuit(name)
        state = fixed_point(cell, drive, 300)
        jacobian = dense_jacobian(cell, drive, state)
        exact = float(torch.linalg.eigvals(jacobian).abs().max())
        found = spectral_radius(cell, drive, state, iterations=400, averaged=200)
        assert float(found.max()) == pytest.approx(exact, rel=2e-2), name


def test_spectral_radius_of_a_rotation_is_its_scale():
    class Rotation(nn.Module):
        def forward(self, drive, state):
            quarter = torch.tensor([[0.0, -1.0], [1.0, 0.5]], dtype=torch.float64)
            return drive + 0.8 * state @ quarter.T

    drive = torch.randn(3, 2, dtype=torch.float64)
    radius = spectral_radius(Rotation(), drive, drive, iterations=600, averaged=500)
    assert torch.allclose(radius, torch.full_like(radius, 0.8), rtol=1e-2)


def test_weights_follow_their_schedule_and_penalties_add_up():
    schedule = WeightSchedule(((100, 0.0), (200, 10.0)))
    assert [schedule.at(i) for i in (0, 100, 150, 200, 900)] == [0, 0, 5, 10, 10]
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    recurrence = built(
        cell,
        algorithm="crbp",
        steps=5,
        penalties=(
            LipschitzCoefficientPenalty(weight=schedule, bound=0.0),
            JacobianFrobeniusPenalty(weight=2.0),
        ),
    )
    before = recurrence(drive, iteration=0)
    after = recurrence(drive, iteration=150)
    raw = after.diagnostics.penalties["lcp"]
    # Before its time a penalty is not computed at all.
    assert set(before.penalties) == set(before.diagnostics.penalties) == {"frobenius"}
    assert torch.allclose(after.penalties["lcp"], 5 * raw)
    assert set(after.penalties) == {"lcp", "frobenius"}
    frobenius = after.diagnostics.penalties["frobenius"]
    assert torch.allclose(after.penalties["frobenius"], 2 * frobenius)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_penalty_on_some_samples_is_unbiased(reduction):
    torch.manual_seed(0)
    cell = circuit("tanh")[0]
    drive = torch.randn(6, 6, dtype=torch.float64)

    def value(max_samples):
        penalty = LipschitzCoefficientPenalty(
            bound=0.0, reduction=reduction, max_samples=max_samples
        )
        recurrence = built(cell, steps=4, penalties=(penalty,))
        return recurrence(drive).diagnostics.penalties["lcp"]

    exact = float(value(None))
    draws = torch.stack([value(2) for _ in range(400)])
    assert float(draws.std()) > 0
    assert float(draws.mean()) == pytest.approx(exact, abs=4 * float(draws.std()) / 20)
    assert float(value(6)) == exact


def test_no_samples_give_penalties_of_zero():
    cell = circuit("mask_hgru")[0]
    drive = torch.zeros(0, 8, 4, 4, dtype=torch.float64)
    penalties = (LipschitzCoefficientPenalty(), JacobianFrobeniusPenalty(), SpectralPenalty())
    result = built(cell, steps=3, penalties=penalties)(drive)
    total = sum(result.penalties.values()) + result.state.sum()
    total.backward()
    assert float(total.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in cell.parameters())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: LipschitzCoefficientPenalty(bound=1.0), "bound"),
        (lambda: LipschitzCoefficientPenalty(bound=-0.1), "bound"),
        (lambda: LipschitzCoefficientPenalty(reduction="max"), "mean, sum"),
        (lambda: LipschitzCoefficientPenalty(weight=-1.0), "weight"),
        (lambda: LipschitzCoefficientPenalty(max_samples=0), "max_samples"),
        (lambda: JacobianFrobeniusPenalty(probes=0), "probes"),
        (lambda: SpectralPenalty(margin=1.0), "margin"),
        (lambda: SpectralPenalty(power_steps=-1), "power_steps"),
        (lambda: WeightSchedule(((5, 1.0), (5, 2.0))), "ascending"),
        (lambda: WeightSchedule(()), "points"),
    ],
)
def test_impossible_penalties_are_refused(make, key):
    with pytest.raises(ConfigurationError, match=key):
        make()


@pytest.mark.parametrize("algorithm", ["bptt", "tbptt", "phantom", "rbp"])
@pytest.mark.parametrize("name", ["conv_lstm", "hgru"])
def test_each_part_of_a_state_counts_by_itself_however_many_steps_are_recorded(name, algorithm):
    torch.manual_seed(2)
    cell, drive = circuit(name)
    penalty = LipschitzCoefficientPenalty(weight=1.0, bound=0.0)
    states = {}
    recurrence = built(cell, algorithm, steps=5, penalties=(penalty,))
    found = recurrence(drive, observe=lambda t, parts: states.update({t: parts}))
    before = states[4][0] if len(states[4]) == 1 else states[4]
    sums = dense_jacobian(cell, drive.detach(), before).sum(dim=0)
    exact = sums.clamp(min=0).square().mean()
    torch.testing.assert_close(found.penalties["lcp"].detach(), exact, rtol=1e-12, atol=0)
