"""Any solver with any adjoint: against the dense solve, on maps that contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crbp_d2.core import (
    GMRES,
    Adjoint,
    AndersonAdjoint,
    AndersonSteps,
    ConfigurationError,
    Neumann,
    OneStep,
    PlainSteps,
    Recurrence,
    Solver,
    TorchDEQ,
    Unroll,
)
from tests.core.circuits import (
    circuit,
    fixed_point,
    flatten,
    flatten_drive_and_weights,
    implicit_gradient,
)
from tests.core.test_gradients import distance, incoming_for

STEPS = 300
SOLVERS: dict[str, Solver] = {
    "plain steps": PlainSteps(),
    "plain steps to a tolerance": PlainSteps(tolerance=1e-13),
    "Anderson": AndersonSteps(),
    "torchdeq": TorchDEQ(tolerance=1e-13),
}
ADJOINTS: dict[str, Adjoint] = {
    "the last 150 steps": Unroll(length=150),
    "the last 250 steps, damped": Unroll(length=250, damping=0.5),
    "the last 150 steps, checkpointed": Unroll(length=150, checkpointed=True),
    "one step": OneStep(),
    "Neumann": Neumann(terms=250, tolerance=0.0),
    "Anderson": AndersonAdjoint(terms=40, memory=10, tolerance=0.0),
    "GMRES": GMRES(),
}


def one_step_gradient(cell, drive, state, incoming) -> list[torch.Tensor]:
    following = flatten(cell(drive, state))
    return list(torch.autograd.grad(following, flatten_drive_and_weights(cell, drive), incoming))


@pytest.mark.parametrize("name", ["linear0.6", "tanh", "conv_lstm"])
@pytest.mark.parametrize("adjoint", list(ADJOINTS))
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_gradient_is_that_of_the_equilibrium(solver, adjoint, name):
    if solver == "torchdeq":
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    torch.manual_seed(4)
    cell, drive = circuit(name)
    incoming = incoming_for(cell, drive)
    state = fixed_point(cell, drive)
    exact = one_step_gradient if adjoint == "one step" else implicit_gradient
    expected = exact(cell, drive, state, incoming)
    recurrence = Recurrence(cell, steps=STEPS, solver=SOLVERS[solver], adjoint=ADJOINTS[adjoint])
    result = recurrence(drive)
    found = torch.autograd.grad(
        flatten(result.state) @ incoming, flatten_drive_and_weights(cell, drive)
    )
    # torchdeq regularises its mixing by 1e-4, and stops a little short.
    digits = 1e-5 if solver == "torchdeq" else 1e-9
    assert (flatten(result.state) - flatten(state)).norm() <= digits * flatten(state).norm()
    assert distance(list(found), expected) <= digits
    assert float(result.diagnostics.residual.max()) <= digits


ALL_STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "Anderson": ({"solver": AndersonSteps()}, "leave none to a solver"),
    "torchdeq": ({"solver": TorchDEQ()}, "leave none to a solver"),
    "a tolerance": ({"solver": PlainSteps(tolerance=0.1)}, "set only `test_tolerance`"),
    "bfloat16": ({"solver": PlainSteps(precision="bf16")}, "leave precision at full"),
}


@pytest.mark.parametrize("case", list(ALL_STEPS))
def test_gradients_through_all_steps_say_what_does_not_go_with_them(case):
    options, message = ALL_STEPS[case]
    cell, _ = circuit("tanh")
    with pytest.raises(ConfigurationError, match=message):
        Recurrence(cell, steps=5, adjoint=Unroll(), **options)
    Recurrence(cell, steps=5, adjoint=Unroll(length=2), **options)


def test_outside_training_all_solvers_run_with_all_adjoints():
    torch.manual_seed(4)
    cell, drive = circuit("tanh")
    state = flatten(fixed_point(cell, drive))
    for solver in (PlainSteps(test_tolerance=1e-12), AndersonSteps()):
        for adjoint in ADJOINTS.values():
            recurrence = Recurrence(cell, steps=STEPS, solver=solver, adjoint=adjoint).eval()
            with torch.no_grad():
                found = flatten(recurrence(drive).state)
            torch.testing.assert_close(found, state, rtol=1e-9, atol=1e-10)
