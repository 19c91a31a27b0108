"""Blocks of the Jacobian of a state of several tensors, against the dense one in float64."""

from __future__ import annotations

import pytest
import torch

from crbp_d2.core import ConfigurationError, LipschitzCoefficientPenalty, Neumann
from crbp_d2.core.state import to_parts
from tests.core.built import built
from tests.core.circuits import (
    circuit,
    dense_jacobian,
    fixed_point,
    flatten,
    flatten_drive_and_weights,
)
from tests.core.test_gradients import distance, estimated, incoming_for
from tests.core.test_penalties import differentiable_jacobian, recorded_pair


@pytest.fixture
def lstm():
    torch.manual_seed(3)
    return circuit("conv_lstm")


def off_start(cell, drive, steps: int = 2):
    state = cell.initial_state(drive)
    with torch.no_grad():
        for _ in range(steps):
            state = cell(drive, state)
    return state


@pytest.mark.parametrize("two_sided", [False, True])
def test_lcp_of_the_diagonal_blocks_and_its_gradient_equal_the_explicit_ones(two_sided, lstm):
    cell, drive = lstm
    before, after = recorded_pair(cell, drive, off_start(cell, drive))
    jacobian = differentiable_jacobian(cell, drive, before, after)
    half = len(jacobian) // 2
    sums = torch.cat([jacobian[:half, :half].sum(dim=0), jacobian[half:, half:].sum(dim=0)])
    expected = ((sums.abs() if two_sided else sums) - 0.05).clamp(min=0).square().mean()
    options = {"bound": 0.05, "two_sided": two_sided}
    value = LipschitzCoefficientPenalty(**options, blocks="diagonal")(before, after)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    joint = LipschitzCoefficientPenalty(**options)(before, after)
    assert abs(float((joint - value).detach())) > 1e-3 * float(value.detach())
    inputs = [drive, *cell.parameters()]
    found = torch.autograd.grad(value, inputs, retain_graph=True)
    for one, exact in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("algorithm", ["bptt", "rbp"])
def test_the_diagonal_blocks_are_those_of_the_last_step(algorithm, lstm):
    cell, drive = lstm
    penalty = LipschitzCoefficientPenalty(weight=1.0, bound=0.0, blocks="diagonal")
    found = built(cell, algorithm, steps=3, penalties=(penalty,))(drive).penalties["lcp"]
    jacobian = dense_jacobian(cell, drive.detach(), off_start(cell, drive))
    half = len(jacobian) // 2
    sums = torch.cat([jacobian[:half, :half].sum(dim=0), jacobian[half:, half:].sum(dim=0)])
    exact = sums.clamp(min=0).square().mean()
    torch.testing.assert_close(found.detach(), exact, rtol=1e-12, atol=0)


def test_a_series_through_the_first_tensor_solves_with_its_block_alone(lstm):
    cell, drive = lstm
    incoming, state = incoming_for(cell, drive), fixed_point(cell, drive)
    jacobian = dense_jacobian(cell, drive, state)
    half = len(jacobian) // 2
    block = torch.eye(half, dtype=torch.float64) - jacobian[:half, :half]
    solution = torch.cat([torch.linalg.solve(block.T, incoming[:half]), incoming[half:]])
    exact = torch.autograd.grad(
        flatten(cell(drive, state)), flatten_drive_and_weights(cell, drive), solution
    )
    options = {"steps": 600, "adjoint_terms": 400, "adjoint_tolerance": 0.0}
    found = estimated(cell, drive, incoming, "rbp", adjoint_blocks="first", **options)
    assert distance(found, list(exact)) < 1e-9
    assert distance(estimated(cell, drive, incoming, "rbp", **options), list(exact)) > 1e-3
    # One series of all samples is cut by the norm of what it runs through.
    few = {**options, "adjoint_blocks": "first", "adjoint_stopping": "released"}
    assert distance(estimated(cell, drive, incoming, "rbp", **few), list(exact)) < 1e-9
    cap = float(incoming[:half].norm())
    capped = estimated(cell, drive, incoming, "rbp", **few, adjoint_norm_cap=0.9 * cap)
    assert distance(capped, estimated(cell, drive, incoming, "jfb", steps=600)) < 1e-14


def test_a_state_of_one_tensor_has_one_block():
    torch.manual_seed(3)
    cell, drive = circuit("hgru")
    before, after = recorded_pair(cell, drive, torch.rand_like(drive))
    values = [
        LipschitzCoefficientPenalty(bound=0.0, blocks=blocks)(before, after)
        for blocks in ("joint", "diagonal")
    ]
    assert torch.equal(*values) and values[0] > 0
    incoming = incoming_for(cell, drive)
    joint, first = (
        estimated(cell, drive, incoming, "rbp", steps=9, adjoint_blocks=blocks)
        for blocks in ("joint", "first")
    )
    assert all(torch.equal(a, b) for a, b in zip(joint, first, strict=True))


def test_chunks_take_blocks_too(lstm):
    cell, _ = lstm
    drive = torch.rand(5, 2, 4, 3, dtype=torch.float64)
    found = []
    for chunk in (None, 2):
        penalty = LipschitzCoefficientPenalty(bound=0.0, blocks="diagonal")
        recurrence = built(
            *(cell, "rbp"), steps=5, chunk_samples=chunk, penalties=(penalty,),
            adjoint_blocks="first",
        )  # fmt: skip
        result = recurrence(drive)
        loss = to_parts(result.state)[0].square().sum() + result.penalties["lcp"]
        found.append(list(torch.autograd.grad(loss, list(cell.parameters()))))
    assert distance(*found) < 1e-12


def test_unknown_blocks_are_refused():
    with pytest.raises(ConfigurationError, match="lcp: blocks is 'all'; choose from diagonal, joi"):
        LipschitzCoefficientPenalty(blocks="all")
    with pytest.raises(ConfigurationError, match="blocks is 'second'; choose from first, joint"):
        Neumann(blocks="second")
