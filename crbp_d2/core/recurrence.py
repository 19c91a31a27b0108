"""`Recurrence`: a cell, a solver, an adjoint and penalties as one module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crbp_d2.core.adjoints.base import Adjoint, Recorded
from crbp_d2.core.adjoints.neumann import Neumann
from crbp_d2.core.checks import (
    check_dependence,
    refuse_inference_tensors,
    refuse_penalties,
    refuse_transforms,
    refuse_uneven,
)
from crbp_d2.core.circuit import Cell, Circuit
from crbp_d2.core.diagnostics import AdjointReport, Diagnostics, relative_residual
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.graphs import is_exporting, refuse_exporting
from crbp_d2.core.guard import (
    POLICIES,
    explain_non_finite,
    finite_samples,
    guarded,
    moderate_samples,
)
from crbp_d2.core.options import integer, one_of, switch
from crbp_d2.core.penalties.base import Penalty
from crbp_d2.core.penalties.sampling import Share, penalise
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.solvers.base import Observer, Solver
from crbp_d2.core.solvers.steps import PlainSteps
from crbp_d2.core.state import (
    Drive,
    Parts,
    State,
    from_parts,
    initial_state,
    to_parts,
    where_samples,
)


class Recurrence(nn.Module):
    """Runs `h_{t+1} = F(x, h_t)`: a solver takes the steps that no gradient goes through, and an
    adjoint the last ones. Any solver goes with any adjoint that leaves it steps to take.

        recurrence = Recurrence(cell, steps=20, adjoint=Neumann(terms=15), penalties=[...])
        result = recurrence(x)
        loss = task_loss(readout(result.state)) + sum(result.penalties.values())

    By the names of the learning algorithms: `build_recurrence("crbp", cell, steps=20)`.

    A graph is recorded when gradients are enabled and the drive, the start or a parameter of the
    cell requires them; otherwise the steps simply run. Penalties are computed in training mode
    only.

    Args:
        cell: a module called as `cell(drive, state)`, which returns the next state in the same
            structure, shapes and types. It may have `initial_state(drive)`; the default start is
            zeros like the drive. Samples come first in every tensor.
        steps: `T` in training, at least 1.
        test_steps: `T` outside training; `None` for the same. They may differ freely.
        spread: in training, draw the number of steps anew for each run, from `steps - spread` to
            `steps + spread`, so that the answer is asked for at each of them, and is to stay. Below
            `steps`.
        solver: of the steps without gradients.
        adjoint: of the gradient.
        penalties: what to add to the loss.
        on_nonfinite: `raise` stops with the step and the residual; `skip` leaves the samples with
            such a drive, state or gradient out (their state and gradients are zero) and counts them
            in the diagnostics.
        compile_steps: run the steps without gradients through `torch.compile`. Recorded steps stay
            uncompiled, as PyTorch has no double backward through compiled code, which the penalties
            need.

    Raises:
        ConfigurationError: an impossible value, or a combination that can't work.
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        steps: int = 20,
        test_steps: int | None = None,
        spread: int = 0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        penalties: Sequence[Penalty] = (),
        on_nonfinite: str = "raise",
        compile_steps: bool = False,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.steps = integer("steps", steps, 1)
        self.test_steps = self.steps if test_steps is None else integer("test_steps", test_steps, 1)
        self.spread = integer("spread", spread, 0)
        if self.spread >= self.steps:
            raise ConfigurationError(
                f"spread must be below steps, got {spread} with {steps} steps; 0 is fixed",
                option="spread",
            )
        self.solver: Solver = PlainSteps() if solver is None else solver
        self.adjoint: Adjoint = Neumann() if adjoint is None else adjoint
        self.penalties = tuple(penalties)
        self.on_nonfinite = one_of("on_nonfinite", on_nonfinite, POLICIES)
        self.compile_steps = switch("compile_steps", compile_steps)
        self.check_cell()
        self.adjoint.check(self.solver, self.fewest_steps)
        # In tuples, as a module among the attributes would be a child.
        self._checked: tuple[nn.Module] | None = None
        self._observation: tuple[Observer, int | None] | None = None
        self._compiled: tuple[nn.Module, Cell] | None = None

    def check_cell(self) -> None:
        """Refuse a cell that does not go with the other parts.

        Raises:
            ConfigurationError: naming what does not.
        """
        self.solver.check(self.cell, self.fewest_steps)
        refuse_penalties(self.penalties, self.cell)

    @property
    def fewest_steps(self) -> int:
        """Of training."""
        return self.steps - self.spread

    def draw_steps(self) -> int:
        """The number of steps of one run."""
        if not self.training:
            return self.test_steps
        if not self.spread:
            return self.steps
        # On the CPU, as reading it from a GPU would wait for all that runs there.
        return self.fewest_steps + int(torch.randint(2 * self.spread + 1, ()))

    def set_test_tolerance(self, test_tolerance: float | None) -> None:
        """Stop each sample's steps outside training at this relative residual; `None` runs all.

        Raises:
            ConfigurationError: not above 0, or the solver's steps can't be stopped.
        """
        if isinstance(self.solver, PlainSteps):
            self.solver = replace(self.solver, test_tolerance=test_tolerance)
        elif test_tolerance is not None:
            raise ConfigurationError(
                f"test_tolerance stops plain steps of the circuit, which {self.solver} does not "
                "take; leave it out",
                option="test_tolerance",
            )

    @contextmanager
    def observing(self, observe: Observer, *, steps: int | None = None) -> Iterator[None]:
        """Within the block every run passes its states to `observe`, and takes `steps` if given.

        For a recurrence inside a model whose own interface has no place for it.

        Raises:
            ConfigurationError: fewer than one step.
        """
        if steps is not None:
            steps = integer("steps", steps, 1)
        previous, self._observation = self._observation, (observe, steps)
        try:
            yield
        finally:
            self._observation = previous

    @property
    def is_observed(self) -> bool:
        """Whether it is within a block of `observing`."""
        return self._observation is not None

    def forward(
        self,
        drive: Drive,
        state: State | None = None,
        *,
        iteration: float = 0,
        steps: int | None = None,
        observe: Observer | None = None,
    ) -> RecurrenceResult:
        """Run.

        Args:
            drive: `x`, a tensor `(N, ...)` or a sequence of them.
            state: where to start; `None` for the cell's initial state.
            iteration: of training, for scheduled weights.
            steps: run this many instead.
            observe: called as `observe(t, parts)` with every step's state, detached, which is not
                kept.

        Returns:
            The last state with penalties and diagnostics.

        Raises:
            CellError: the cell breaks its contract, or its result does not depend on the state.
            NonFiniteError: a state or (in the backward pass) a gradient is not finite.
            ConfigurationError: the adjoint can't work with this number of steps.
            UnsupportedError: an exported graph can't hold it.
        """
        if is_exporting():
            return self._exported(drive, state, steps)
        if torch.compiler.is_compiling():
            # Of a compiled model: its graphs end here, as they can't be differentiated twice.
            options = {"iteration": iteration, "steps": steps, "observe": observe}
            return _outside_graphs()(self, drive, state, **options)
        if self._observation is not None and observe is None:
            observe, observed_steps = self._observation
            steps = observed_steps if steps is None else steps
        steps = self.draw_steps() if steps is None else integer("steps", steps, 1)
        circuit = self.circuit(drive, state)
        return self.run(circuit, steps, iteration=iteration, observe=observe)

    def _exported(self, drive: Drive, state: State | None, steps: int | None) -> RecurrenceResult:
        """A run for a graph: the steps alone, as checks and guards ask for values."""
        if self.training:
            refuse_exporting("a recurrence in training draws and records", "call eval() first")
        template = initial_state(self.cell, drive) if state is None else state
        circuit = Circuit(self.cell, drive, template)
        steps = self.draw_steps() if steps is None else integer("steps", steps, 1)
        taken, last, report = self._take(circuit, to_parts(template), steps, False, None)
        residual = relative_residual(last.after, last.before)
        diagnostics = Diagnostics(steps=taken, residual=residual, adjoint=report)
        return RecurrenceResult(from_parts(last.state, template), diagnostics)

    def circuit(self, drive: Drive, state: State | None = None) -> Circuit:
        """The cell with its drive, and where it starts as the template."""
        refuse_transforms(to_parts(drive))
        template = initial_state(self.cell, drive) if state is None else state
        refuse_uneven((*to_parts(drive), *to_parts(template)))
        return Circuit(
            self.cell, drive, template, training=self.training, compiled=self._compiled_cell()
        )

    def run(
        self,
        circuit: Circuit,
        steps: int,
        *,
        iteration: float = 0,
        observe: Observer | None = None,
        share: Share | None = None,
    ) -> RecurrenceResult:
        """Run from the template of a circuit.

        Args:
            circuit: of this cell.
            steps: `T >= 1`.
            iteration, observe: see `forward`.
            share: what the samples stand for if they are a part of a batch.
        """
        records = self.records(circuit)
        start, skipped = to_parts(circuit.template), None
        if self.on_nonfinite == "skip":
            # Before they are in a batch norm, which would spread them.
            circuit, start, skipped = self._without(
                moderate_samples(circuit.drives) & finite_samples(start), circuit, start, None
            )
        taken, last, report = self._take(circuit, start, steps, records, observe)
        finite = finite_samples(last.after) & moderate_samples(circuit.drives)
        if not bool(finite.all()):
            if self.on_nonfinite == "raise":
                raise explain_non_finite(circuit, start, steps)
            circuit, start, skipped = self._without(finite, circuit, start, skipped)
            taken, last, report = self._take(circuit, start, steps, records, observe)
            if not bool(finite_samples(last.after).all()):
                raise explain_non_finite(circuit, start, steps)
        diagnostics = Diagnostics(
            steps=taken,
            residual=relative_residual(last.after, last.before),
            skipped=skipped,
            adjoint=report,
        )
        if not records:
            return RecurrenceResult(from_parts(last.state, circuit.template), diagnostics)
        if self._checked is None or self._checked[0] is not self.cell:
            self.check_cell()
            check_dependence(self.cell, last)
            self._checked = (self.cell,)
        states = [self._guarded(parts, circuit, diagnostics) for parts in last.trajectory]
        result = RecurrenceResult(states[-1], diagnostics, states=states)
        if circuit.training:
            found = penalise(
                self.penalties,
                circuit,
                last,
                iteration=iteration,
                usable=None if skipped is None else (~skipped).nonzero().flatten(),
                share=share,
            )
            result.penalties, diagnostics.penalties = found.losses, found.values
        return result

    def records(self, circuit: Circuit) -> bool:
        """Whether a run of the circuit is recorded."""
        tensors = (*circuit.drives, *to_parts(circuit.template))
        wanted = any(t.requires_grad for t in (*self.cell.parameters(), *tensors))
        if not (wanted and torch.is_grad_enabled()):
            return False
        refuse_inference_tensors(tensors)
        return True

    def _take(
        self,
        circuit: Circuit,
        start: Parts,
        steps: int,
        records: bool,
        observe: Observer | None,
    ) -> tuple[Tensor, Recorded, AdjointReport]:
        """All steps: how many each sample took, `(N,)`, the last ones, and what the backward pass
        reports to."""
        report = AdjointReport()
        recorded = self.adjoint.recorded(steps) if records else 1
        solved = self.solver(circuit, start, steps - recorded, observe)
        if records:
            last = self.adjoint.record(circuit, solved.state, recorded, report)
        else:
            after = circuit.advance(solved.state)
            last = Recorded(solved.state, after, [after])
        if observe is not None:
            for step, parts in enumerate(last.trajectory, steps - recorded + 1):
                observe(step, tuple(part.detach() for part in parts))
        return solved.steps + recorded, last, report

    @staticmethod
    def _without(
        finite: Tensor, circuit: Circuit, start: Parts, skipped: Tensor | None
    ) -> tuple[Circuit, Parts, Tensor | None]:
        """Circuit and start with zeros for samples that are not finite, and all that were skipped,
        `(N,) bool` or `None` for none."""
        if bool(finite.all()):
            return circuit, start, skipped
        skipped = ~finite if skipped is None else skipped | ~finite
        return circuit.where(finite), where_samples(finite, start), skipped

    def _guarded(self, parts: Parts, circuit: Circuit, diagnostics: Diagnostics) -> State:
        if diagnostics.skipped is not None:
            parts = where_samples(~diagnostics.skipped, parts)
        return from_parts(guarded(self.on_nonfinite, diagnostics, parts), circuit.template)

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles its own cell.
        return {**self.__dict__, "_compiled": None}

    def _compiled_cell(self) -> Cell | None:
        if not self.compile_steps:
            return None
        if self._compiled is None or self._compiled[0] is not self.cell:
            self._compiled = (self.cell, torch.compile(self.cell))
        return self._compiled[1]

    def extra_repr(self) -> str:
        """Steps and parts, as shown when a model is printed."""
        return (
            f"steps={self.steps}, test_steps={self.test_steps}, solver={self.solver}, "
            f"adjoint={self.adjoint}, penalties={[penalty.name for penalty in self.penalties]}"
        )


@functools.cache
def _outside_graphs() -> Callable[..., RecurrenceResult]:
    # Asked for when first needed, as torch then imports its compiler.
    forward: Callable[..., RecurrenceResult] = torch.compiler.disable(Recurrence.forward)
    return forward
