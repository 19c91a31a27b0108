"""Gradients of gradients: right against loops in plain autograd, in float64, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crbp_d2.core import LipschitzCoefficientPenalty, UnsupportedError
from crbp_d2.core.state import to_parts
from tests.core.built import built
from tests.core.circuits import circuit, flatten, flatten_drive_and_weights, start

STEPS = 6
LENGTH = 3
DAMPING = 0.5


def loop(cell, drive, first, recorded: int, damping: float = 1.0) -> list[Tensor]:
    """The states of plain steps, flat; gradients flow through the last ones alone."""
    state, states = first, []
    for step in range(STEPS):
        if step == STEPS - recorded and recorded < STEPS:
            parts = tuple(part.detach() for part in to_parts(state))
            state = parts[0] if isinstance(state, Tensor) else parts
        if step < STEPS - recorded:
            with torch.no_grad():
                state = cell(drive, state)
        else:
            following = cell(drive, state)
            pairs = zip(to_parts(state), to_parts(following), strict=True)
            parts = tuple(old + damping * (new - old) for old, new in pairs)
            state = parts[0] if isinstance(state, Tensor) else parts
        states.append(flatten(state))
    return states


# Algorithm, options, steps that gradients flow through, damping.
RIGHT = {
    "bptt": ("bptt", {}, STEPS, 1.0),
    "bptt, checkpointed": ("bptt", {"adjoint_checkpointed": True}, STEPS, 1.0),
    "bptt, skip": ("bptt", {"on_nonfinite": "skip"}, STEPS, 1.0),
    "bptt+lcp": ("bptt+lcp", {}, STEPS, 1.0),
    "tbptt": ("tbptt", {"adjoint_length": LENGTH}, LENGTH, 1.0),
    "tbptt, whole": ("tbptt", {"adjoint_length": STEPS}, STEPS, 1.0),
    "phantom": ("phantom", {"adjoint_length": LENGTH, "adjoint_damping": DAMPING}, LENGTH, DAMPING),
    "jfb": ("jfb", {}, 1, 1.0),
    "jfb, skip": ("jfb", {"on_nonfinite": "skip"}, 1, 1.0),
}
# What the first gradient is of. A linear loss sends in a gradient that requires none.
LOSSES = {
    "linear": lambda state: state @ torch.linspace(-1, 1, len(state), dtype=state.dtype),
    "cubic": lambda state: state.pow(3).sum() + state.prod(),
}


def gradient_penalty(loss: Tensor, inputs: list[Tensor]) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, inputs[0], create_graph=True)
    return loss + gradient.square().sum()


@pytest.mark.parametrize("name", ["tanh", "hgru", "conv_lstm"])
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("case", list(RIGHT))
def test_a_gradient_penalty_is_that_of_the_loop(case, loss, name):
    algorithm, options, recorded, damping = RIGHT[case]
    torch.manual_seed(3)
    cell, drive = circuit(name)
    inputs = flatten_drive_and_weights(cell, drive)
    result = built(cell, algorithm=algorithm, steps=STEPS, **options)(drive)
    states = loop(cell, drive, start(cell, drive), recorded, damping)
    learned = [flatten(result.state)]
    if result.states:
        learned = [flatten(state) for state in result.states]
    found, exact = (
        gradient_penalty(sum(LOSSES[loss](state) for state in several), inputs)
        for several in (learned, states[-len(learned) :])
    )
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)
    for near, true in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(exact, inputs), strict=True
    ):
        torch.testing.assert_close(near, true, rtol=1e-10, atol=1e-13)


def test_a_start_has_second_derivatives_too():
    torch.manual_seed(5)
    cell, drive = circuit("tanh")
    first = torch.randn_like(drive).requires_grad_()
    recurrence = built(cell, algorithm="bptt", steps=3)
    assert torch.autograd.gradgradcheck(lambda x, h: recurrence(x, h).state, (drive, first))


@pytest.mark.parametrize("algorithm", ["bptt", "crbp", "jfb", "tbptt"])
def test_the_gradient_of_an_early_state_is_that_of_its_step(algorithm):
    torch.manual_seed(5)
    cell, drive = circuit("tanh")
    inputs = flatten_drive_and_weights(cell, drive)
    (early,) = built(cell, algorithm=algorithm, steps=STEPS, early_from=0.0)(drive).early_states
    states = [start(cell, drive)]
    for _ in range(STEPS):
        states.append(cell(drive, states[-1].detach()))
    (exact,) = [s for s in states[1:-1] if torch.allclose(s, early, rtol=1e-12)]
    found, wanted = (
        torch.autograd.grad(gradient_penalty(LOSSES["cubic"](flatten(s)), inputs), inputs)
        for s in (early, exact)
    )
    for near, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(near, true, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("algorithm", ["bptt", "crbp"])
def test_the_gradient_of_a_penalty_can_be_differentiated(algorithm):
    """It is one of the last step alone, also beside an adjoint whose gradient can't be."""
    torch.manual_seed(5)
    cell, drive = circuit("tanh")
    inputs = flatten_drive_and_weights(cell, drive)
    penalty = LipschitzCoefficientPenalty(weight=1.0, bound=0.0)
    result = built(cell, algorithm=algorithm, steps=1, penalties=(penalty,))(drive)
    before = torch.zeros_like(drive, requires_grad=True)
    sums = torch.autograd.grad(cell(drive, before).sum(), before, create_graph=True)[0]
    exact = sums.clamp(min=0).square().mean()
    found = torch.autograd.grad(gradient_penalty(result.penalties["lcp"], inputs), inputs)
    for near, true in zip(
        found, torch.autograd.grad(gradient_penalty(exact, inputs), inputs), strict=True
    ):
        torch.testing.assert_close(near, true, rtol=1e-11, atol=1e-14)


ANDERSON = {"adjoint_name": "anderson", "solver_name": "anderson"}
REFUSED = {
    "rbp": ("rbp", {}, "Neumann"),
    "crbp": ("crbp", {}, "Neumann"),
    "rbp, norm_cap": ("rbp", {"adjoint_norm_cap": 1.0}, "Neumann"),
    "rbp, bf16": ("rbp", {"solver_precision": "bf16", "adjoint_precision": "bf16"}, "Neumann"),
    "rbp, anderson": ("rbp", ANDERSON, "AndersonAdjoint"),
    "rbp, skip": ("rbp", {"on_nonfinite": "skip"}, "Neumann"),
    "rbp+lcp, early": ("rbp+lcp", {"early_from": 0.0}, "Neumann"),
    "implicit": ("implicit", {}, "GMRES"),
    "deq": ("deq", {}, "AndersonAdjoint"),
    "rbp, chunks": ("rbp", {"chunk_samples": 1}, "chunks"),
    "jfb, chunks": ("jfb", {"chunk_samples": 1}, "chunks"),
}


@pytest.mark.parametrize("loss", [*LOSSES, "none"])
@pytest.mark.parametrize("case", list(REFUSED))
def test_what_would_be_wrong_is_refused_by_name_and_with_a_cure(case, loss):
    algorithm, options, name = REFUSED[case]
    if algorithm == "deq":
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    torch.manual_seed(3)
    cell, drive = circuit("tanh")
    cell, drive = cell.float(), drive.detach().float().requires_grad_()
    state = flatten(built(cell, algorithm=algorithm, steps=STEPS, **options)(drive).state)
    # Where the loss is least a gradient of zero comes in, whose own is not.
    value = LOSSES[loss](state) if loss in LOSSES else (state - state.detach()).square().sum()
    for ask in (
        lambda: torch.autograd.grad(value, drive, create_graph=True, retain_graph=True),
        lambda: value.backward(create_graph=True, retain_graph=True),
    ):
        with pytest.raises(UnsupportedError, match=rf"(?s){name}.*create_graph.*bptt"):
            ask()
    # And the gradient itself is there as ever.
    (gradient,) = torch.autograd.grad(value, drive)
    assert gradient.isfinite().all() and not gradient.requires_grad
