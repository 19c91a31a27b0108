"""A run over many samples as runs over a few at a time, in the memory of the few.

Of every sample only its drive and the state before the last step are kept. The graph of the last
step, with penalties and adjoint, is built for one chunk at a time: once in the forward pass, for
the values, and once more in the backward pass, for the gradients. That costs one more step and one
more value of each penalty, whatever the number of steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from crbp_d2.core.cells.norms import Buffers, buffers_of, refuse_coupled_samples, step_again
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport, Diagnostics
from crbp_d2.core.errors import ConfigurationError, NonFiniteError, refuse_second_order
from crbp_d2.core.graphs import is_exporting
from crbp_d2.core.guard import explain_non_finite, finite_samples
from crbp_d2.core.options import integer
from crbp_d2.core.penalties.sampling import shares_of
from crbp_d2.core.recurrence import Recurrence
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.solvers.base import Observer
from crbp_d2.core.state import Drive, Parts, State, from_parts, to_parts

Weights: TypeAlias = Mapping[str, Tensor]
Record: TypeAlias = Callable[[int, Parts, Parts, Weights | None], RecurrenceResult]
"""`record(number, drives, before, weights)`: the last step of the samples of a chunk, with
gradients into `drives` and `weights`, which stand in for those of the cell if given; the same at
every call but for random numbers."""


class Chunks:
    """A recurrence that computes at most so many samples at a time.

    Memory then does not grow with the batch but for its drives and states; it costs one more step.
    A run that is observed or exported is not cut. The backward pass puts copies of the weights into
    the cell for a moment, so that threads must not share it.

    Args:
        recurrence: to run; called like it. It needs an adjoint that records the last step alone.
        samples: the most of a chunk, at least 1.

    Raises:
        ConfigurationError: the recurrence has samples that depend on each other, or skips some.
    """

    def __init__(self, recurrence: Recurrence, samples: int) -> None:
        self.recurrence = recurrence
        self.samples = integer("chunk_samples", samples, 1)
        for part in (recurrence.adjoint, recurrence.solver):
            if not part.separable:
                raise ConfigurationError(
                    f"chunk_samples does not go with {part}: a sample's gradient has to follow "
                    "from its own last step, as with neumann without norm_cap and with stopping at "
                    "sample, anderson, gmres and one_step (crbp, rbp, implicit, jfb)",
                    option="chunk_samples",
                )
        if recurrence.on_nonfinite != "raise":
            raise ConfigurationError(
                "chunk_samples does not go with on_nonfinite skip; use raise",
                option="chunk_samples",
            )
        self._refuse_coupled()

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
        if is_exporting():
            return run(drive, state, iteration=iteration, steps=steps, observe=observe)
        whole = run.circuit(drive, state)
        start = to_parts(whole.template)
        chunks = chunks_of(len(start[0]), self.samples)
        if len(chunks) == 1 or observe is not None or run.is_observed:
            return run(drive, state, iteration=iteration, steps=steps, observe=observe)
        self._refuse_coupled()
        steps = run.draw_steps() if steps is None else integer("steps", steps, 1)
        circuits = [cut(whole, samples) for samples in chunks]
        if not run.records(whole):
            return _joined([run.run(one, steps, iteration=iteration) for one in circuits])
        solved = []
        for circuit in circuits:
            begin = tuple(part.detach() for part in to_parts(circuit.template))
            solved.append(run.solver(circuit, begin, steps - 1))
            if not bool(finite_samples(solved[-1].state).all()):
                raise explain_non_finite(circuit, begin, steps)
        shares = shares_of(chunks, run.penalties)

        buffers: dict[int, Buffers] = {}

        def record(
            number: int, drives: Parts, before: Parts, weights: Weights | None
        ) -> RecurrenceResult:
            if weights is not None:
                with step_again(run.cell, buffers[number]):
                    return record_now(number, drives, before, weights)
            buffers[number] = buffers_of(run.cell)
            return record_now(number, drives, before, None)

        def record_now(
            number: int, drives: Parts, before: Parts, weights: Weights | None
        ) -> RecurrenceResult:
            circuit = run.circuit(
                from_parts(drives, whole.drive), from_parts(before, whole.template)
            )
            circuit.weights, circuit.training = weights, whole.training
            try:
                result = run.run(circuit, 1, iteration=iteration, share=shares[number])
            except NonFiniteError:
                begin = to_parts(circuits[number].template)
                raise explain_non_finite(circuits[number], begin, steps) from None
            # Of the whole run: the guard of the gradient names them.
            result.diagnostics.steps = solved[number].steps + 1
            return result

        before = tuple(torch.cat(parts) for parts in zip(*(s.state for s in solved), strict=True))
        own = dict(run.cell.named_parameters())
        result = record_in_chunks(chunks, record, whole.drives, before, own)
        result.state = from_parts(to_parts(result.state), whole.template)
        result.states = [result.state]
        return result

    def _refuse_coupled(self) -> None:
        refuse_coupled_samples(self.recurrence.cell, "chunk_samples computes a batch in parts")


def chunks_of(count: int, size: int) -> list[slice]:
    """Positions `0..count-1` in runs of at most `size`, of nearly equal length; one without any."""
    number = max(-(-count // size), 1)
    edges = [count * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def cut(circuit: Circuit, samples: slice) -> Circuit:
    """The circuit of some of the samples, its template that of these."""
    some = circuit.select(samples)
    some.template = from_parts(
        tuple(part[samples] for part in to_parts(circuit.template)), circuit.template
    )
    return some


def _joined(results: Sequence[RecurrenceResult]) -> RecurrenceResult:
    """Of all samples, without gradients."""
    states = zip(*(to_parts(result.state) for result in results), strict=True)
    return RecurrenceResult(
        state=from_parts(tuple(torch.cat(parts) for parts in states), results[0].state),
        diagnostics=merge([result.diagnostics for result in results]),
    )


def record_in_chunks(
    chunks: Sequence[slice],
    record: Record,
    drives: Parts,
    before: Parts,
    weights: Weights,
) -> RecurrenceResult:
    """The last step of all samples.

    Args:
        chunks: that make up the batch, in its order; at least one.
        record: see `Record`.
        drives: of all samples; gradients flow into them.
        before: the state before the last step, of all samples.
        weights: of the cell; gradients flow into those that require them.

    Returns:
        Of all samples, its state as parts; the penalties are the sums over the chunks.
    """
    kept = _Kept()
    names, tensors = list(weights), (*drives, *before, *weights.values())
    found = _RecordInChunks.apply(chunks, record, kept, names, len(drives), len(before), *tensors)
    penalties = list(kept.diagnostics.penalties)
    return RecurrenceResult(
        state=found[: len(before)],
        penalties=dict(zip(penalties, found[len(before) :], strict=True)),
        diagnostics=kept.diagnostics,
    )


def merge(diagnostics: Sequence[Diagnostics]) -> Diagnostics:
    """Of all chunks; the values of the penalties are summed."""
    return Diagnostics(
        steps=torch.cat([one.steps for one in diagnostics]),
        residual=torch.cat([one.residual for one in diagnostics]),
        penalties={
            name: torch.stack([one.penalties[name] for one in diagnostics]).sum()
            for name in diagnostics[0].penalties
        },
    )


def _merge_reports(reports: Sequence[AdjointReport], into: AdjointReport) -> None:
    for field in fields(AdjointReport):
        values = [getattr(report, field.name) for report in reports]
        if all(value is not None for value in values):
            setattr(into, field.name, torch.cat(values))


class _Kept:
    """Where the forward pass leaves what is no tensor."""

    diagnostics: Diagnostics


class _RecordInChunks(torch.autograd.Function):
    """See the module. Gradients come out as those of one function, so that each parameter gets its
    gradient once, as distributed training wants it."""

    @staticmethod
    def forward(
        ctx: Any,
        chunks: Sequence[slice],
        record: Record,
        kept: _Kept,
        names: Sequence[str],
        drives: int,
        parts: int,
        *tensors: Tensor,
    ) -> Parts:
        device = tensors[0].device
        ctx.chunks, ctx.record, ctx.device = chunks, record, device
        ctx.names, ctx.drives, ctx.parts = names, drives, parts
        ctx.autocast = (
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )
        ctx.random = []
        ctx.save_for_backward(*tensors)
        states, penalties, diagnostics = [], [], []
        for number, samples in enumerate(chunks):
            ctx.random.append(_random_state(device))
            some = tuple(tensor[samples].detach() for tensor in tensors[: drives + parts])
            with torch.enable_grad():
                one = record(number, some[:drives], some[drives:], None)
            states.append(tuple(part.detach() for part in to_parts(one.state)))
            penalties.append({name: value.detach() for name, value in one.penalties.items()})
            diagnostics.append(one.diagnostics)
            # Its graph, before the next one is built.
            del one
        kept.diagnostics = ctx.diagnostics = merge(diagnostics)
        return (
            *(torch.cat(pieces) for pieces in zip(*states, strict=True)),
            *(torch.stack([one[name] for one in penalties]).sum() for name in penalties[0]),
        )

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("a batch in chunks")
        # Read once, as a checkpoint around the circuit hands them out once.
        saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[6:]
        first = ctx.drives + ctx.parts
        # Copies that stand in for the weights, whose own hooks are not to be called here.
        copies = [
            weight.detach().requires_grad_(needs)
            for weight, needs in zip(saved[first:], wanted[first:], strict=True)
        ]
        totals = [
            torch.zeros_like(tensor) if needs else None
            for tensor, needs in zip(saved, wanted, strict=True)
        ]
        reports = []
        for number, samples in enumerate(ctx.chunks):
            report, found = _gradients(ctx, number, saved[:first], copies, incoming)
            reports.append(report)
            for position, gradient in enumerate(found):
                total = totals[position]
                if total is None or gradient is None:
                    continue
                if position < ctx.drives:
                    total[samples] = gradient
                else:
                    total += gradient
        _merge_reports(reports, ctx.diagnostics.adjoint)
        return (None, None, None, None, None, None, *totals)


def _gradients(
    ctx: Any,
    number: int,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    incoming: Sequence[Tensor],
) -> tuple[AdjointReport, list[Tensor | None]]:
    """Of one chunk: into the drives, `None` for each part of the state before, and into the
    weights."""
    enabled, dtype = ctx.autocast
    samples: slice = ctx.chunks[number]
    some = [tensor[samples].detach() for tensor in saved]
    for tensor, needs in zip(some[: ctx.drives], ctx.needs_input_grad[6:], strict=False):
        tensor.requires_grad_(needs)
    drives, before = tuple(some[: ctx.drives]), tuple(some[ctx.drives :])
    with (
        torch.enable_grad(),
        _random_numbers(ctx.device, ctx.random[number]),
        torch.autocast(ctx.device.type, dtype=dtype, enabled=enabled),
    ):
        one = ctx.record(number, drives, before, dict(zip(ctx.names, weights, strict=True)))
    outputs = (*to_parts(one.state), *one.penalties.values())
    cotangents = (*(g[samples] for g in incoming[: ctx.parts]), *incoming[ctx.parts :])
    pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if o.requires_grad]
    inputs = [tensor for tensor in (*drives, *weights) if tensor.requires_grad]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            inputs,
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
    )
    gradients = [next(found) if t.requires_grad else None for t in (*drives, *weights)]
    nothing: list[Tensor | None] = [None] * ctx.parts
    return one.diagnostics.adjoint, gradients[: ctx.drives] + nothing + gradients[ctx.drives :]


RandomState: TypeAlias = tuple[Tensor, Tensor | None]
"""Of the CPU, and of the GPU if there is one."""


def _random_state(device: torch.device) -> RandomState:
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_gpu


@contextmanager
def _random_numbers(device: torch.device, state: RandomState) -> Iterator[None]:
    """Within the block the random numbers of an earlier state are drawn again."""
    on_cpu, on_gpu = state
    with torch.random.fork_rng(devices=[] if on_gpu is None else [device]):
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)
        yield
