"""Over which samples penalties are taken, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crbp_d2.core.adjoints.base import Recorded
from crbp_d2.core.cells.norms import step_again
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.penalties.base import Penalty, WeightSchedule
from crbp_d2.core.state import select_samples


@dataclass(frozen=True)
class Share:
    """What some samples stand for that are a part of a batch.

    Attributes:
        total: number of samples of the whole batch.
        quotas: name of a penalty -> over how many of these samples it is taken.
    """

    total: int
    quotas: Mapping[str, int]


@dataclass(frozen=True)
class Penalised:
    """Values by the names of the penalties, 0-dimensional.

    Attributes:
        losses: weighted, to be added to the loss.
        values: unweighted and detached.
    """

    losses: dict[str, Tensor]
    values: dict[str, Tensor]


def penalise(
    penalties: Sequence[Penalty],
    circuit: Circuit,
    recorded: Recorded,
    *,
    iteration: float,
    usable: Tensor | None = None,
    share: Share | None = None,
) -> Penalised:
    """Take the penalties on a recorded step.

    Args:
        penalties: to take.
        circuit: that was run.
        recorded: its last steps.
        iteration: of training, for scheduled weights.
        usable: indices of the samples to take them over; `None` for all.
        share: what the samples stand for if they are not the whole batch.
    """
    found = Penalised({}, {})
    for penalty in penalties:
        weight = penalty.weight
        if isinstance(weight, WeightSchedule):
            weight = weight.at(iteration)
            if not weight:
                continue
        before, after, chosen = recorded.before, recorded.after, usable
        samples = len(before[0]) if usable is None else len(usable)
        total = samples if share is None else share.total
        most = total if penalty.max_samples is None else min(penalty.max_samples, total)
        quota = most if share is None else share.quotas[penalty.name]
        if quota < samples:
            drawn = torch.randperm(samples, device=before[0].device)[:quota]
            chosen = drawn if usable is None else usable[drawn]
        if chosen is not None:
            before = select_samples(before, chosen)
            with step_again(circuit.cell):
                after = circuit.select(chosen)(before)
        part = quota if penalty.reduction == "mean" else total
        value = penalty(before, after) * (part / max(most, 1))
        found.values[penalty.name] = value.detach()
        # A constant weight of zero monitors: nothing to differentiate then.
        found.losses[penalty.name] = weight * (value if weight else value.detach())
    return found


def shares_of(chunks: Sequence[slice], penalties: Sequence[Penalty]) -> list[Share]:
    """The share of each chunk of a batch. Where a penalty is taken over some samples only, how many
    of each chunk is drawn at random."""
    total = chunks[-1].stop
    quotas: list[dict[str, int]] = [{} for _ in chunks]
    # On the CPU, as reading it from a GPU would wait for all that runs there.
    for penalty in penalties:
        drawn = torch.randperm(total, device="cpu")[: penalty.max_samples]
        for chunk, quota in zip(chunks, quotas, strict=True):
            quota[penalty.name] = int(((drawn >= chunk.start) & (drawn < chunk.stop)).sum())
    return [Share(total, quota) for quota in quotas]
