"""A run over many samples as runs over a few at a time, in the memory of the few.

Of every sample only its drive and the state before the last step are kept. The graph of the last
step, with penalties and adjoint solver, is built for one chunk at a time: once in the forward pass,
for the values, and once more in the backward pass, for the gradients. That costs one more step and
one more value of each penalty, whatever the number of steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crbp_d2.core.checks import refuse_coupled_samples
from crbp_d2.core.diagnostics import AdjointReport, Diagnostics
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.state import Drive, Parts, State, from_parts, to_parts
from crbp_d2.core.unrolled import Estimator

Record: TypeAlias = Callable[[slice, Parts, Parts], RecurrenceResult]
"""`record(samples, drives, before)`: the last step of some samples, with gradients into `drives`;
the same at every call but for random numbers."""


def require_chunks(
    size: int | None, cell: nn.Module, estimator: Estimator, *, early: bool, on_nonfinite: str
) -> None:
    """Chunks need an estimator that treats samples one by one, from the state before the last step.

    Raises:
        ConfigurationError: it doesn't, or another option or the cell does not go with chunks.
    """
    if size is None:
        return
    reasons = {
        f"chunk_samples must be at least 1, or None, got {size}": size < 1,
        "chunk_samples needs an algorithm that records the last step alone, crbp, rbp, jfb or "
        "implicit, and no norm_cap, which is one for the whole batch": not estimator.separable,
        "chunk_samples does not go with early_from, which records an earlier step, too": early,
        "chunk_samples does not go with on_nonfinite skip; use raise": on_nonfinite != "raise",
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigurationError(reason, option="chunk_samples")
    refuse_coupled_chunks(cell)


def refuse_coupled_chunks(cell: nn.Module) -> None:
    """Refuse a cell whose samples depend on each other.

    Raises:
        ConfigurationError: it uses batch statistics.
    """
    refuse_coupled_samples(cell, "chunk_samples computes a batch in parts")


def chunks_of(count: int, size: int) -> list[slice]:
    """Positions `0..count-1` in runs of at most `size`, of nearly equal length; one without any."""
    number = max(-(-count // size), 1)
    edges = [count * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def cut(tensors: Any, samples: slice) -> Any:
    """A drive or state of some of the samples, in the structure it has."""
    return from_parts(tuple(part[samples] for part in to_parts(tensors)), tensors)


def run_in_chunks(
    chunks: Sequence[slice],
    run: Callable[[Any, Any], RecurrenceResult],
    drive: Drive,
    start: State,
) -> RecurrenceResult:
    """All steps of all samples, without gradients.

    Args:
        chunks: that make up the batch, in its order; at least one.
        run: `run(drive, start)` of some samples.
        drive: of all samples.
        start: of all samples.
    """
    results = [run(cut(drive, samples), cut(start, samples)) for samples in chunks]
    states = zip(*(to_parts(result.state) for result in results), strict=True)
    return RecurrenceResult(
        state=from_parts(tuple(torch.cat(parts) for parts in states), start),
        diagnostics=merge([result.diagnostics for result in results]),
    )


def record_in_chunks(
    chunks: Sequence[slice],
    record: Record,
    drives: Parts,
    before: Parts,
    parameters: Sequence[Tensor],
) -> RecurrenceResult:
    """The last step of all samples.

    Args:
        chunks: that make up the batch, in its order; at least one.
        record: see `Record`.
        drives: of all samples; gradients flow into them.
        before: the state before the last step, of all samples.
        parameters: of the cell; gradients flow into those that require them.

    Returns:
        Of all samples, its state as parts; the penalties are the sums over the chunks.
    """
    kept = _Kept()
    tensors = (*drives, *before, *parameters)
    found = _RecordInChunks.apply(chunks, record, kept, len(drives), len(before), *tensors)
    names = list(kept.diagnostics.penalties)
    return RecurrenceResult(
        state=found[: len(before)],
        penalties=dict(zip(names, found[len(before) :], strict=True)),
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
        drives: int,
        parts: int,
        *tensors: Tensor,
    ) -> Parts:
        device = tensors[0].device
        ctx.chunks, ctx.record, ctx.device = chunks, record, device
        ctx.drives, ctx.parts = drives, parts
        ctx.autocast = (
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )
        ctx.random = []
        ctx.save_for_backward(*tensors)
        states, penalties, diagnostics = [], [], []
        for samples in chunks:
            ctx.random.append(_random_state(device))
            some = tuple(tensor[samples].detach() for tensor in tensors[: drives + parts])
            with torch.enable_grad():
                one = record(samples, some[:drives], some[drives:])
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
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors[ctx.drives + ctx.parts :]
        wanted = ctx.needs_input_grad[5:]
        drives = ctx.saved_tensors[: ctx.drives]
        of_drives = [
            torch.zeros_like(drive) if needs else None
            for drive, needs in zip(drives, wanted, strict=False)
        ]
        learned = [
            parameter
            for parameter, needs in zip(parameters, wanted[ctx.drives + ctx.parts :], strict=True)
            if needs
        ]
        totals: list[Tensor] = [torch.zeros_like(parameter) for parameter in learned]
        reports = []
        for samples, random in zip(ctx.chunks, ctx.random, strict=True):
            report, found = _gradients(ctx, samples, random, learned, incoming)
            reports.append(report)
            for total in of_drives:
                if total is not None and (gradient := next(found)) is not None:
                    total[samples] = gradient
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:
                    total += gradient
        _merge_reports(reports, ctx.diagnostics.adjoint)
        remaining = iter(totals)
        of_parameters = (
            next(remaining) if needs else None for needs in wanted[ctx.drives + ctx.parts :]
        )
        nothing = (None,) * ctx.parts
        return (None, None, None, None, None, *of_drives, *nothing, *of_parameters)


def _gradients(
    ctx: Any,
    samples: slice,
    random: RandomState,
    learned: Sequence[Tensor],
    incoming: Sequence[Tensor],
) -> tuple[AdjointReport, Iterator[Tensor | None]]:
    """Into those drives that want one, then into the learned parameters, of one chunk."""
    enabled, dtype = ctx.autocast
    tensors = [tensor[samples].detach() for tensor in ctx.saved_tensors[: ctx.drives + ctx.parts]]
    for tensor, needs in zip(tensors[: ctx.drives], ctx.needs_input_grad[5:], strict=False):
        tensor.requires_grad_(needs)
    drives, before = tuple(tensors[: ctx.drives]), tuple(tensors[ctx.drives :])
    with (
        torch.enable_grad(),
        _random_numbers(ctx.device, random),
        torch.autocast(ctx.device.type, dtype=dtype, enabled=enabled),
    ):
        one = ctx.record(samples, drives, before)
    outputs = (*to_parts(one.state), *one.penalties.values())
    cotangents = (*(g[samples] for g in incoming[: ctx.parts]), *incoming[ctx.parts :])
    pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if o.requires_grad]
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        [*(drive for drive in drives if drive.requires_grad), *learned],
        [gradient for _, gradient in pairs],
        allow_unused=True,
    )
    return one.diagnostics.adjoint, iter(found)


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
