"""A cell whose buffers move in every training step: what is computed again finds them as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from crbp_d2.core import LipschitzCoefficientPenalty
from tests.core.built import built
from tests.core.circuits import flatten


class Normalised(nn.Module):
    """Its weight is divided by an estimate of its norm that every training step improves."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = spectral_norm(nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, drive, state):
        return torch.tanh(drive + 0.9 * self.spread(state))


@pytest.fixture
def setting():
    torch.manual_seed(0)
    cell = Normalised().double()
    with torch.no_grad():
        # The estimate is far off, as after a large step of an optimizer.
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell, *torch.rand(2, 4, 4, 5, 5, dtype=torch.float64)


def loss_of(run, drive, start):
    result = run(drive, start)
    return result.state.square().sum() + sum(result.penalties.values())


def test_a_checkpointed_run_has_the_gradient_of_a_stored_one(setting):
    cell, drive, start = setting
    found = []
    for checkpointed in (False, True):
        run = built(copy.deepcopy(cell), "bptt", steps=6, adjoint_checkpointed=checkpointed)
        loss_of(run, drive, start).backward()
        found.append(flatten(tuple(p.grad for p in run.parameters())))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("algorithm", ["jfb", "jfb+lcp"])
def test_the_gradient_of_chunks_is_that_of_what_they_compute(setting, algorithm):
    cell, drive, start = setting
    direction = torch.randn_like(drive)

    def value(x):
        # The estimate of the norm moves with every call, from where it is now.
        return loss_of(built(copy.deepcopy(cell), algorithm, steps=1, chunk_samples=2), x, start)

    leaf = drive.clone().requires_grad_()
    slope = (torch.autograd.grad(value(leaf), leaf)[0] * direction).sum()
    step = 1e-6
    difference = (value(drive + step * direction) - value(drive - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float(difference.detach()), rel=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("bptt", {"adjoint_checkpointed": True}),
        ("rbp", {"adjoint_precision": "bf16"}),
        ("crbp", {"chunk_samples": 2}),
        ("crbp", {}),
    ],
)
def test_a_backward_pass_leaves_the_buffers_as_they_are(setting, algorithm, options):
    cell, drive, start = (part.float() for part in setting)
    run = built(cell, algorithm, steps=4, **options)
    loss = loss_of(run, drive, start)
    after = [buffer.clone() for buffer in cell.buffers()]
    loss.backward()
    assert all(map(torch.equal, cell.buffers(), after))


def test_penalties_on_some_samples_and_early_states_leave_them_too(setting):
    cell, drive, start = setting
    moved = []
    for options in ({}, {"early_from": 0.0}, {"max_samples": 2}):
        own = copy.deepcopy(cell)
        penalty = LipschitzCoefficientPenalty(max_samples=options.pop("max_samples", None))
        run = built(own, "crbp", steps=4, penalties=(penalty,), **options)
        torch.manual_seed(1)
        run(drive, start)
        moved.append([buffer.clone() for buffer in own.buffers()])
    for other in moved[1:]:
        assert all(map(torch.equal, other, moved[0]))
