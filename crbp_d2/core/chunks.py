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
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crbp_d2.core.checks import refuse_coupled_samples
from crbp_d2.core.diagnostics import AdjointReport, Diagnostics
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.state import Parts
from crbp_d2.core.unrolled import Estimator


@dataclass
class Recorded:
    """The last step of some samples.

    Attributes:
        state: the last state, with the estimator's gradient.
        penalties: weighted.
        diagnostics: of the run.
    """

    state: Parts
    penalties: dict[str, Tensor]
    diagnostics: Diagnostics


@dataclass(frozen=True)
class Chunk:
    """Samples that are computed together.

    Attributes:
        samples: their positions.
        record: the last step once more, for their drives; the same at every call but for random
            numbers.
    """

    samples: slice
    record: Callable[[Parts], Recorded]


def require_chunks(
    size: int | None, estimator: Estimator, *, early: bool, on_nonfinite: str
) -> None:
    """Chunks need an estimator that records the last step alone.

    Raises:
        ConfigurationError: it doesn't, or another option does not go with chunks.
    """
    if size is None:
        return
    reasons = {
        f"chunk_samples must be at least 1, or None, got {size}": size < 1,
        "chunk_samples needs an algorithm that records the last step alone: crbp, rbp, jfb or "
        "implicit": not estimator.records_last_step_alone,
        "chunk_samples does not go with early_from, which records an earlier step, too": early,
        "chunk_samples does not go with on_nonfinite skip; use raise": on_nonfinite != "raise",
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigurationError(reason, option="chunk_samples")


def chunks_of(count: int, size: int) -> list[slice]:
    """Positions `0..count-1` in runs of at most `size`, of nearly equal length."""
    number = -(-count // size)
    edges = [count * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def refuse_coupled_chunks(cell: nn.Module) -> None:
    """Refuse a cell whose samples depend on each other.

    Raises:
        ConfigurationError: it uses batch statistics.
    """
    refuse_coupled_samples(cell, "chunk_samples computes a batch in parts")


def record_in_chunks(
    chunks: Sequence[Chunk], drives: Parts, parameters: Sequence[Tensor]
) -> Recorded:
    """The last step of all samples.

    Args:
        chunks: that make up the batch, in its order; at least one.
        drives: of all samples; gradients flow into them.
        parameters: of the cell; gradients flow into those that require them.

    Returns:
        Of all samples; the penalties are the sums over the chunks.
    """
    shape = _Shape()
    found = _RecordInChunks.apply(chunks, len(drives), shape, *drives, *parameters)
    names = list(shape.diagnostics.penalties)
    penalties = found[len(found) - len(names) :]
    return Recorded(
        state=found[: len(found) - len(names)],
        penalties=dict(zip(names, penalties, strict=True)),
        diagnostics=shape.diagnostics,
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
        skipped_samples=sum(one.skipped_samples for one in diagnostics),
    )


def _merge_reports(reports: Sequence[AdjointReport], into: AdjointReport) -> None:
    for field in fields(AdjointReport):
        values = [getattr(report, field.name) for report in reports]
        if all(value is not None for value in values):
            setattr(into, field.name, torch.cat(values))


class _Shape:
    """Where the forward pass leaves what is no tensor."""

    diagnostics: Diagnostics


class _RecordInChunks(torch.autograd.Function):
    """See the module. Gradients come out as those of one function, so that each parameter gets its
    gradient once, as distributed training wants it."""

    @staticmethod
    def forward(
        ctx: Any, chunks: Sequence[Chunk], count: int, shape: _Shape, *tensors: Tensor
    ) -> Parts:
        drives = tensors[:count]
        device = drives[0].device
        ctx.chunks, ctx.count, ctx.device = chunks, count, device
        ctx.autocast = (
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )
        ctx.random = []
        ctx.save_for_backward(*tensors)
        recorded = []
        for chunk in chunks:
            ctx.random.append(_random_state(device))
            with torch.enable_grad():
                one = chunk.record(tuple(x[chunk.samples].detach() for x in drives))
            recorded.append(
                Recorded(
                    tuple(part.detach() for part in one.state),
                    {name: value.detach() for name, value in one.penalties.items()},
                    one.diagnostics,
                )
            )
        shape.diagnostics = ctx.diagnostics = merge([one.diagnostics for one in recorded])
        states = (torch.cat(parts) for parts in zip(*(one.state for one in recorded), strict=True))
        penalties = (
            torch.stack([one.penalties[name] for one in recorded]).sum()
            for name in recorded[0].penalties
        )
        return (*states, *penalties)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        drives, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        wanted = ctx.needs_input_grad[3:]
        of_drives = [
            torch.zeros_like(x) if needs else None for x, needs in zip(drives, wanted, strict=False)
        ]
        learned = [p for p, needs in zip(parameters, wanted[ctx.count :], strict=True) if needs]
        totals: list[Tensor] = [torch.zeros_like(parameter) for parameter in learned]
        reports = []
        enabled, dtype = ctx.autocast
        for chunk, state in zip(ctx.chunks, ctx.random, strict=True):
            with (
                torch.enable_grad(),
                _random_numbers(ctx.device, state),
                torch.autocast(ctx.device.type, dtype=dtype, enabled=enabled),
            ):
                leaves = tuple(
                    x[chunk.samples].detach().requires_grad_(needs)
                    for x, needs in zip(drives, wanted, strict=False)
                )
                one = chunk.record(leaves)
            outputs = (*one.state, *one.penalties.values())
            parts = len(one.state)
            cotangents = (*(g[chunk.samples] for g in incoming[:parts]), *incoming[parts:])
            pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if o.requires_grad]
            inputs = [leaf for leaf in leaves if leaf.requires_grad] + learned
            found = torch.autograd.grad(
                [output for output, _ in pairs],
                inputs,
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
            reports.append(one.diagnostics.adjoint)
            gradients = iter(found)
            for total in of_drives:
                if total is not None and (gradient := next(gradients)) is not None:
                    total[chunk.samples] = gradient
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total += gradient
        _merge_reports(reports, ctx.diagnostics.adjoint)
        remaining = iter(totals)
        of_parameters = (next(remaining) if needs else None for needs in wanted[ctx.count :])
        return (None, None, None, *of_drives, *of_parameters)


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
