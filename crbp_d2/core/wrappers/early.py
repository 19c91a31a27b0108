"""A state of an earlier step, for a loss that makes a circuit answer before its last step."""

from __future__ import annotations

import math

import torch

from crbp_d2.core.cells.norms import step_again
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.guard import guarded
from crbp_d2.core.options import number
from crbp_d2.core.recurrence import Recurrence
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.solvers.base import Observer
from crbp_d2.core.state import Drive, Parts, State, as_leaves, from_parts, to_parts, where_samples


class EarlyState:
    """A recurrence that in training also gives the state of one earlier step, drawn at random.

    The step is recorded once more after the run. Its gradient is the one-step gradient, so that it
    costs one step of time and memory whatever the number of steps and the adjoint.

    Args:
        recurrence: to run; called like it.
        begin: the step is drawn uniformly from those after this fraction of all, of the fewest that
            `spread` allows, the last left out; in `[0, 1)`.

    Raises:
        ConfigurationError: there is no earlier step to draw, or the solver takes no steps of the
            circuit.
    """

    def __init__(self, recurrence: Recurrence, begin: float) -> None:
        self.recurrence = recurrence
        self.begin = number("early_from", begin, least=0, below=1)
        if recurrence.fewest_steps < 2:
            raise ConfigurationError("early_from needs at least 2 steps", option="early_from")
        if not recurrence.solver.plain:
            raise ConfigurationError(
                f"early_from does not go with {recurrence.solver}: what it evaluates are no steps "
                "of the circuit; leave it out (LOSS.EARLY_WEIGHT 0.0 in a config), or take another "
                "solver. The class of one whose steps they are says `plain = True`",
                option="early_from",
            )

    def draw(self, steps: int) -> int:
        """A step before the last of at least 2."""
        first = min(math.floor(self.begin * steps) + 1, steps - 1)
        # On the CPU, as reading it from a GPU would wait for all that runs there.
        return int(torch.randint(first, steps, ()))

    def __call__(
        self,
        drive: Drive,
        state: State | None = None,
        *,
        iteration: float = 0,
        steps: int | None = None,
        observe: Observer | None = None,
    ) -> RecurrenceResult:
        """See `Recurrence.forward`."""
        run = self.recurrence
        if not run.training or not torch.is_grad_enabled() or run.is_observed:
            return run(drive, state, iteration=iteration, steps=steps, observe=observe)
        steps = run.draw_steps() if steps is None else steps
        circuit = run.circuit(drive, state)
        if steps < 2 or not run.records(circuit):
            return run(drive, state, iteration=iteration, steps=steps, observe=observe)
        chosen = self.draw(min(steps, run.fewest_steps))
        before: Parts = to_parts(circuit.template)

        def seen(step: int, parts: Parts) -> None:
            nonlocal before
            if step == chosen - 1:
                before = parts
            if observe is not None:
                observe(step, parts)

        # From where this circuit starts: a cell may draw its initial state.
        start = circuit.template
        result = run(drive, start, iteration=iteration, steps=steps, observe=seen)
        diagnostics = result.diagnostics
        if diagnostics.skipped is not None:
            circuit = circuit.where(~diagnostics.skipped)
            before = where_samples(~diagnostics.skipped, before)
        with step_again(run.cell):
            parts = circuit(as_leaves(before))
        if diagnostics.skipped is not None:
            parts = where_samples(~diagnostics.skipped, parts)
        parts = guarded(run.on_nonfinite, diagnostics, parts)
        result.early_states = [from_parts(parts, circuit.template)]
        return result
