"""`Recurrence`: a cell, a number of steps and a learning algorithm as one module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from crbp_d2.core import checks
from crbp_d2.core.cells.parts import statistics_kept
from crbp_d2.core.chunks import (
    chunks_of,
    cut,
    record_in_chunks,
    refuse_coupled_chunks,
    require_chunks,
    run_in_chunks,
)
from crbp_d2.core.circuit import Cell, Circuit
from crbp_d2.core.diagnostics import Diagnostics, relative_residual
from crbp_d2.core.early import EarlyStep, require_early
from crbp_d2.core.errors import NonFiniteError
from crbp_d2.core.estimators import build_estimator, parse_algorithm
from crbp_d2.core.forward import Observer
from crbp_d2.core.guard import (
    GradientGuard,
    explain_non_finite,
    finite_samples,
)
from crbp_d2.core.penalised import Share, penalise, shares_of
from crbp_d2.core.penalties import LipschitzCoefficientPenalty, Penalty
from crbp_d2.core.precision import lowers
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.state import (
    Drive,
    Parts,
    State,
    from_parts,
    initial_state,
    to_parts,
    where_samples,
)
from crbp_d2.core.unrolled import Estimator, Run, Unrolled


class Recurrence(nn.Module):
    """Runs `h_{t+1} = F(x, h_t)` and learns by the algorithm of your choice.

    `algorithm` is the name of an estimator (`bptt`, `tbptt`, `rbp`, `jfb`, `phantom`, `implicit`,
    `deq`). `crbp` is `rbp` with the Lipschitz coefficient penalty; `+lcp` adds that penalty to any
    other (`bptt+lcp` is the paper's C-BPTT).

        recurrence = Recurrence(cell, algorithm="crbp", steps=20, neumann_terms=15)
        result = recurrence(x)
        loss = task_loss(readout(result.state)) + sum(result.penalties.values())

    A graph is recorded when gradients are enabled and the drive, the start or a parameter of the
    cell requires them; otherwise the steps simply run. Penalties are computed in training mode
    only.

    Args:
        cell: a module called as `cell(drive, state)`, which returns the next state in the same
            structure, shapes and types. It may have `initial_state(drive)`; the default start is
            zeros like the drive. Samples come first in every tensor.
        algorithm: see above.
        steps: `T` in training, at least 1.
        test_steps: `T` outside training; `None` for the same. They may differ freely.
        steps_spread: in training, draw the number of steps anew for each run, from
            `steps - steps_spread` to `steps + steps_spread`, so that the answer is asked for at
            each of them, and is to stay. Below `steps`.
        tolerance: in training, stop each sample's unrecorded steps at this relative residual,
            `steps` being the most it takes; `None` for a fixed number.
        test_tolerance: the same outside training.
        penalties: what to add to the loss. `None` takes the Lipschitz coefficient penalty with its
            default values where the algorithm's name asks for it, and nothing elsewhere.
        early_from: in training, draw one earlier step at random from those after this fraction of
            all, of the fewest that `steps_spread` allows, and give its state in `early_states`,
            with the gradient of that step: a loss on it makes the circuit answer early. `None` for
            none.
        on_nonfinite: `raise` stops with the step and the residual; `skip` leaves the samples with
            such a state or gradient out (their state and gradients are zero) and counts them in the
            diagnostics.
        compile_steps: run the unrecorded steps through `torch.compile`. Recorded steps stay
            uncompiled, as PyTorch has no double backward through compiled code, which the penalties
            need.
        solve_precision: `full`, or `bf16`: the steps before the last three and the Neumann series
            in bfloat16. The last three steps and the penalties keep their precision. It lowers
            float32 outside autocast and leaves everything else alone. Not for `bptt`, `implicit`
            and `deq`.
        chunk_samples: compute at most this many samples at a time, so that memory does not grow
            with the batch but for its drives and states; costs one more step. For `rbp`, `crbp`,
            `jfb` and `implicit`, without `norm_cap`. A run that is observed is not cut. `None` for
            all at once.
        options: options of the estimator, such as `neumann_terms`.

    Raises:
        ConfigurationError: an unknown name or option, or a combination that can't work.
    """

    def __init__(
        self,
        cell: nn.Module,
        *,
        algorithm: str = "crbp",
        steps: int = 20,
        test_steps: int | None = None,
        steps_spread: int = 0,
        tolerance: float | None = None,
        test_tolerance: float | None = None,
        penalties: Sequence[Penalty] | None = None,
        early_from: float | None = None,
        on_nonfinite: str = "raise",
        compile_steps: bool = False,
        solve_precision: str = "full",
        chunk_samples: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        name, penalised = parse_algorithm(algorithm)
        self.cell = cell
        self.algorithm = algorithm
        self.estimator: Estimator = build_estimator(name, **options)
        self.steps = steps
        self.test_steps = steps if test_steps is None else test_steps
        self.steps_spread = steps_spread
        self.tolerance = tolerance
        self.early_from = early_from
        self.on_nonfinite = on_nonfinite
        self.solve_precision = solve_precision
        self.chunk_samples = chunk_samples
        if penalties is None:
            penalties = (LipschitzCoefficientPenalty(),) if penalised else ()
        self.penalties = tuple(penalties)
        checks.require_step(self.steps)
        checks.require_step(self.test_steps, "test_steps")
        checks.require_spread(steps_spread, steps)
        checks.require_tolerance("tolerance", tolerance)
        self.estimator.check(self._fewest_steps, tolerance)
        self.set_test_tolerance(test_tolerance)
        checks.require_solve_precision(solve_precision, algorithm, self.estimator)
        if tolerance is not None:
            checks.refuse_coupled_samples(cell)
        require_early(early_from, self._fewest_steps, self.estimator)
        checks.require_policy(on_nonfinite)
        require_chunks(
            chunk_samples,
            cell,
            self.estimator,
            early=early_from is not None,
            on_nonfinite=on_nonfinite,
        )
        checks.require_penalties(algorithm, penalised, self.penalties, cell)
        # Kept out of the module's children: a compiled copy would put every parameter twice in the
        # state dict.
        object.__setattr__(self, "_compiled_cell", torch.compile(cell) if compile_steps else None)
        self._checked = False
        self._observation: tuple[Observer, int | None] | None = None

    def set_test_tolerance(self, test_tolerance: float | None) -> None:
        """Stop each sample's steps outside training at this relative residual; `None` runs all.

        Raises:
            ConfigurationError: not above 0, or the estimator's steps can't be stopped.
        """
        checks.require_tolerance("test_tolerance", test_tolerance)
        checks.require_stoppable(self.estimator, test_tolerance)
        self.test_tolerance = test_tolerance

    @contextmanager
    def observing(self, observe: Observer, *, steps: int | None = None) -> Iterator[None]:
        """Within the block every run passes its states to `observe`, and takes `steps` if given.

        For a recurrence inside a model whose own interface has no place for it.

        Raises:
            ConfigurationError: fewer than one step.
        """
        if steps is not None:
            checks.require_step(steps)
        previous, self._observation = self._observation, (observe, steps)
        try:
            yield
        finally:
            self._observation = previous

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
            ConfigurationError: the estimator can't work with this number of steps.
        """
        template = initial_state(self.cell, drive) if state is None else state
        start = to_parts(template)
        recorded = torch.is_grad_enabled() and self._requires_gradients(drive, start)
        if recorded:
            checks.refuse_inference_tensors((*to_parts(drive), *start))
        if self._observation is not None and observe is None:
            observe, observed_steps = self._observation
            steps = observed_steps if steps is None else steps
        steps = self._draw_steps() if steps is None else steps
        checks.require_step(steps)
        if self.chunk_samples is not None and observe is None:
            slices = chunks_of(len(start[0]), self.chunk_samples)
            if len(slices) > 1:
                return self._run_in_chunks(slices, drive, template, iteration, steps, recorded)
        return self._run(
            drive, template, iteration, steps, recorded, observe, penalised=self.training
        )

    def _run(
        self,
        drive: Drive,
        template: State,
        iteration: float,
        steps: int,
        recorded: bool,
        observe: Observer | None = None,
        *,
        penalised: bool = False,
        share: Share | None = None,
    ) -> RecurrenceResult:
        """All samples at once; `share` says what they stand for if they are not the whole batch."""
        start = to_parts(template)
        tolerance = self._tolerance()
        circuit = self._circuit(drive, template)
        early = None
        if recorded and self.training and self.early_from is not None and steps > 1:
            early = EarlyStep(min(steps, self._fewest_steps), self.early_from)
            observe = early.watch(start, observe)
        lowered = lowers(self.solve_precision, (*to_parts(drive), *start))
        run = Run(steps, tolerance, observe, lowered=lowered)
        unrolled = self._unroll(circuit, start, run, recorded)
        finite = finite_samples(unrolled.after)
        all_finite = bool(finite.all())
        if not all_finite:
            if self.on_nonfinite == "raise":
                raise explain_non_finite(circuit, start, steps)
            circuit, start = circuit.where(finite), where_samples(finite, start)
            watch = None if early is None else early.watch(start, None)
            run = Run(steps, tolerance, watch, lowered=lowered)
            unrolled = self._unroll(circuit, start, run, recorded)
            if not bool(finite_samples(unrolled.after).all()):
                raise explain_non_finite(circuit, start, steps)
            unrolled = unrolled.where(finite)
        diagnostics = Diagnostics(
            steps=unrolled.steps,
            residual=relative_residual(unrolled.after, unrolled.before),
            skipped_samples=0 if all_finite else int((~finite).sum()),
            adjoint=run.report,
        )
        result = RecurrenceResult(
            state=from_parts(unrolled.state, template),
            diagnostics=diagnostics,
        )

        def guarded(parts: Parts) -> State:
            return from_parts(GradientGuard.apply(self.on_nonfinite, diagnostics, *parts), template)

        if recorded:
            result.state = guarded(unrolled.state)
            result.states = [guarded(parts) for parts in unrolled.trajectory]
            if not self._checked:
                checks.check_dependence(self.cell, unrolled)
                self._checked = True
            if penalised:
                usable = None if all_finite else finite.nonzero().flatten()
                penalise(
                    self.penalties,
                    circuit,
                    unrolled,
                    result,
                    iteration=iteration,
                    usable=usable,
                    share=share,
                )
            if early is not None:
                with statistics_kept(self.cell):
                    parts = early.record(circuit)
                result.early_states = [guarded(where_samples(finite, parts))]
        return result

    def _run_in_chunks(
        self,
        chunks: Sequence[slice],
        drive: Drive,
        template: State,
        iteration: float,
        steps: int,
        recorded: bool,
    ) -> RecurrenceResult:
        refuse_coupled_chunks(self.cell)
        if not recorded:

            def whole(some: Drive, start: State) -> RecurrenceResult:
                return self._run(some, start, iteration, steps, recorded)

            return run_in_chunks(chunks, whole, drive, template)
        drives, start = to_parts(drive), tuple(part.detach() for part in to_parts(template))
        run = Run(steps, self._tolerance(), lowered=lowers(self.solve_precision, (*drives, *start)))
        advanced = []
        for samples in chunks:
            begin = cut(start, samples)
            circuit = self._circuit(cut(drive, samples), from_parts(begin, template))
            advanced.append(self.estimator.advance(circuit, begin, run))
            if not bool(finite_samples(advanced[-1][0]).all()):
                raise explain_non_finite(circuit, begin, steps)
        before = tuple(torch.cat(pieces) for pieces in zip(*(b for b, _ in advanced), strict=True))
        taken = torch.cat([count for _, count in advanced])
        training = self.training
        shares = shares_of(chunks, self.penalties)

        def record(samples: slice, some_drives: Parts, some_before: Parts) -> RecurrenceResult:
            some = from_parts(some_drives, drive)
            share = shares[samples.start] if training else None
            state = from_parts(some_before, template)
            try:
                result = self._run(some, state, iteration, 1, True, penalised=training, share=share)
            except NonFiniteError:
                begin = cut(start, samples)
                whole = self._circuit(some, from_parts(begin, template))
                raise explain_non_finite(whole, begin, steps) from None
            # Of the whole run: the guard of the gradient names them.
            result.diagnostics.steps = taken[samples] + 1
            return result

        parameters = list(self.cell.parameters())
        result = record_in_chunks(chunks, record, drives, before, parameters)
        result.state = from_parts(to_parts(result.state), template)
        return result

    def _circuit(self, drive: Drive, template: State) -> Circuit:
        return Circuit(
            self.cell,
            drive,
            template,
            unrecorded_cell=cast("Cell | None", self._compiled_cell),
        )

    def _tolerance(self) -> float | None:
        tolerance = self.tolerance if self.training else self.test_tolerance
        if tolerance is not None:
            checks.refuse_coupled_samples(self.cell)
        return tolerance

    def extra_repr(self) -> str:
        """Algorithm, steps and penalties, as shown when a model is printed."""
        return (
            f"algorithm={self.algorithm}, steps={self.steps}, test_steps={self.test_steps}, "
            f"estimator={self.estimator}, penalties={list(self.penalties)}"
        )

    def _draw_steps(self) -> int:
        if not self.training:
            return self.test_steps
        if not self.steps_spread:
            return self.steps
        # On the CPU, as reading it from a GPU would wait for all that runs there.
        drawn = int(torch.randint(2 * self.steps_spread + 1, ()))
        return self._fewest_steps + drawn

    @property
    def _fewest_steps(self) -> int:
        return self.steps - self.steps_spread

    def _unroll(self, circuit: Circuit, start: Parts, run: Run, recorded: bool) -> Unrolled:
        if recorded:
            return self.estimator.unroll(circuit, start, run)
        before, taken = self.estimator.advance(circuit, start, run)
        after = circuit.advance(before)
        run.seen(run.steps, after)
        return Unrolled(after, before, after, taken + 1)

    def _requires_gradients(self, drive: Drive, start: Parts) -> bool:
        return any(t.requires_grad for t in (*self.cell.parameters(), *to_parts(drive), *start))
