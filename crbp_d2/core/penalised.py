"""Penalties of a run: over which samples they are taken, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.cells.parts import statistics_kept
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.penalties import Penalty, WeightSchedule, weight_at
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.state import select_samples
from crbp_d2.core.unrolled import Unrolled


@dataclass(frozen=True)
class Share:
    """What the samples of a chunk stand for.

    Attributes:
        total: number of samples of the whole batch.
        quotas: name of a penalty -> over how many samples of the chunk it is taken.
    """

    total: int
    quotas: Mapping[str, int]


def shares_of(chunks: Sequence[slice], penalties: Sequence[Penalty]) -> dict[int, Share]:
    """The share of each chunk, by its first position. Where a penalty is taken over some samples
    only, these are drawn from the whole batch."""
    total = chunks[-1].stop
    quotas: list[dict[str, int]] = [{} for _ in chunks]
    # On the CPU, as reading it from a GPU would wait for all that runs there.
    for penalty in penalties:
        drawn = torch.randperm(total, device="cpu")[: penalty.max_samples]
        for chunk, quota in zip(chunks, quotas, strict=True):
            quota[penalty.name] = int(((drawn >= chunk.start) & (drawn < chunk.stop)).sum())
    return {chunk.start: Share(total, quota) for chunk, quota in zip(chunks, quotas, strict=True)}


def penalise(
    penalties: Sequence[Penalty],
    circuit: Circuit,
    unrolled: Unrolled,
    result: RecurrenceResult,
    *,
    iteration: float,
    usable: Tensor | None,
    share: Share | None,
) -> None:
    """Put the penalties, and their values, into the result.

    Args:
        penalties: to take.
        circuit: that was run.
        unrolled: its run.
        result: changed in place.
        iteration: of training, for scheduled weights.
        usable: indices of the samples to take them over; `None` for all.
        share: what the samples stand for if they are not the whole batch.
    """
    for penalty in penalties:
        weight = weight_at(penalty.weight, iteration)
        if not weight and isinstance(penalty.weight, WeightSchedule):
            continue
        before, after, chosen = unrolled.before, unrolled.after, usable
        samples = len(before[0]) if usable is None else len(usable)
        total = samples if share is None else share.total
        most = total if penalty.max_samples is None else min(penalty.max_samples, total)
        quota = most if share is None else share.quotas[penalty.name]
        if quota < samples:
            drawn = torch.randperm(samples, device=before[0].device)[:quota]
            chosen = drawn if usable is None else usable[drawn]
        part = quota if penalty.reduction == "mean" else total
        if chosen is not None:
            before = select_samples(before, chosen)
            with statistics_kept(circuit.cell):
                after = circuit.select(chosen)(before)
        value = penalty(before, after) * (part / max(most, 1))
        result.diagnostics.penalties[penalty.name] = value.detach()
        # A constant weight of zero monitors: nothing to differentiate then.
        result.penalties[penalty.name] = weight * (value if weight else value.detach())
