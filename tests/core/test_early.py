"""The state of one earlier step, for a loss that makes a circuit answer early."""

from __future__ import annotations

import pytest
import torch

from crbp_d2.core import ConfigurationError, EarlyState, Recurrence
from tests.core.built import built
from tests.core.circuits import TanhCell

STEPS = 8


def trajectory(cell, drive) -> list[torch.Tensor]:
    states = [torch.zeros_like(drive)]
    for _ in range(STEPS):
        states.append(cell(drive, states[-1].detach()))
    return states


@pytest.mark.parametrize("algorithm", ["crbp", "bptt", "tbptt", "phantom", "jfb"])
def test_an_earlier_state_comes_with_the_gradient_of_its_own_step(algorithm):
    torch.manual_seed(0)
    cell, drive = TanhCell(6), torch.randn(3, 6, dtype=torch.float64)
    recurrence = built(cell, algorithm=algorithm, steps=STEPS, early_from=0.0)
    states = trajectory(cell, drive)
    found = set()
    for _ in range(30):
        (early,) = recurrence(drive).early_states
        if algorithm == "phantom":
            continue  # its last steps are damped, so they are not those of the plain trajectory
        (step,) = [t for t in range(1, STEPS) if torch.allclose(early, states[t], atol=1e-12)]
        found.add(step)
        weights = list(cell.parameters())
        gradient = torch.autograd.grad(early.square().sum(), weights)
        expected = torch.autograd.grad(states[step].square().sum(), weights, retain_graph=True)
        assert all(torch.allclose(a, b) for a, b in zip(gradient, expected, strict=True))
    assert algorithm == "phantom" or len(found) > 4


def test_the_step_is_drawn_from_those_after_the_beginning():
    recurrence = Recurrence(TanhCell(4), steps=12)
    late = EarlyState(recurrence, 0.5)
    assert {late.draw(12) for _ in range(300)} == set(range(7, 12))
    assert {EarlyState(recurrence, 0.9).draw(2) for _ in range(20)} == {1}


def test_there_is_none_outside_training_and_by_default():
    cell, drive = TanhCell(4), torch.randn(2, 4, dtype=torch.float64)
    recurrence = built(cell, algorithm="crbp", steps=STEPS, early_from=0.2)
    assert recurrence.eval()(drive).early_states == []
    assert built(cell, algorithm="crbp", steps=STEPS)(drive).early_states == []


@pytest.mark.parametrize(("begin", "steps"), [(-0.1, 5), (1.0, 5), (0.5, 1)])
def test_impossible_options_are_refused(begin, steps):
    with pytest.raises(ConfigurationError, match="early_from"):
        built(TanhCell(4), algorithm="jfb", steps=steps, early_from=begin)


def test_observing_passes_every_state_of_a_longer_run():
    cell, drive = TanhCell(4), torch.randn(2, 4, dtype=torch.float64)
    recurrence = built(cell, algorithm="crbp", steps=3).eval()
    seen: dict[int, torch.Tensor] = {}
    with (
        torch.no_grad(),
        recurrence.observing(lambda t, parts: seen.update({t: parts[0]}), steps=9),
    ):
        last = recurrence(drive).state
    assert list(seen) == list(range(1, 10))
    assert torch.equal(seen[9], last)
    with torch.no_grad():
        assert torch.equal(recurrence(drive).state, seen[3])
    with pytest.raises(ConfigurationError, match="steps"), recurrence.observing(print, steps=0):
        pass


def test_deq_has_no_earlier_step():
    pytest.importorskip("torchdeq")
    with pytest.raises(ConfigurationError, match="early_from does not go with TorchDEQ"):
        built(TanhCell(4), algorithm="deq", steps=9, early_from=0.2)


def test_a_skipped_start_reaches_no_earlier_state():
    cell, drive = TanhCell(4), torch.randn(3, 4, dtype=torch.float64)
    recurrence = built(
        cell, algorithm="jfb", steps=2, early_from=0.0, on_nonfinite="skip", penalties=()
    )
    start = torch.zeros_like(drive)
    start[1] = float("nan")
    (early,) = recurrence(drive, start).early_states
    assert torch.isfinite(early).all() and (early[1] == 0).all()
    early.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in cell.parameters())
