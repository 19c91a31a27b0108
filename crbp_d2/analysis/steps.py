"""What a contour model says at every step, and how its state moves: one pass over the data."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crbp_d2.core import Recurrence, spectral_radius
from crbp_d2.core.diagnostics import relative_residual
from crbp_d2.core.state import Parts, from_parts
from crbp_d2.data.storage import write_whole
from crbp_d2.evaluation.pathfinder import count_pixels, scores

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class StepScores:
    """One step of a model.

    Attributes:
        step: 1, 2, ...
        scores: F1 and its companions, pooled over pixels, in 0..1.
        change: mean over images of `|h_t - h_{t-1}| / |h_t|`.
    """

    step: int
    scores: dict[str, float]
    change: float


def find_recurrence(model: nn.Module) -> Recurrence:
    """The one recurrence of a model.

    Raises:
        ValueError: it has none, or several.
    """
    found = [module for module in model.modules() if isinstance(module, Recurrence)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} recurrent circuits, but one is needed: this "
            "is about models with RecurrentSemSegHead or RecurrentMaskHead"
        )
    return found[0]


def evaluate_steps(model: Any, batches: Iterable[Batch], steps: Sequence[int]) -> list[StepScores]:
    """Scores of a contour model at several steps. The circuit runs once, to the last of them.

    Args:
        model: a `SemanticSegmentor` with `RecurrentSemSegHead`, in evaluation mode.
        batches: mapped Pathfinder records, with `image` and `sem_seg`.
        steps: at least 1, in any order.

    Returns:
        One entry a step, ascending.

    Raises:
        ValueError: no step, a step below 1, no batch, or a model of another kind.
    """
    wanted = sorted(set(steps))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"steps must be at least 1, got {list(steps)}")
    recurrence, head = find_recurrence(model), model.sem_seg_head
    counts: dict[int, list[list[int]]] = {step: [] for step in wanted}
    changes: dict[int, list[Tensor]] = {step: [] for step in wanted}
    for batch in batches:
        previous: Parts = ()

        def observe(step: int, parts: Parts, batch: Batch = batch) -> None:
            nonlocal previous
            if step in counts:
                logits = head.read_out(parts)
                counts[step] += [
                    count_pixels(one, record["sem_seg"])
                    for one, record in zip(logits, batch, strict=True)
                ]
                start = previous or tuple(torch.zeros_like(part) for part in parts)
                changes[step].append(relative_residual(parts, start))
            previous = parts

        with torch.no_grad(), recurrence.observing(observe, steps=wanted[-1]):
            model(batch)
    if not counts[wanted[0]]:
        raise ValueError("no image was given")
    return [
        StepScores(
            step,
            {k: float(v) for k, v in scores(np.sum(counts[step], axis=0)).items()},
            float(torch.cat(changes[step]).mean()),
        )
        for step in wanted
    ]


def radius_after(
    model: nn.Module, batch: Batch, *, steps: int, iterations: int = 50, averaged: int = 20
) -> Tensor:
    """Spectral radius of the circuit's Jacobian after some steps, `(N,)`, by power iteration.

    Args:
        model: in evaluation mode, so that its samples don't depend on each other.
        batch: what the model takes.
        steps: after which the circuit is linearised, at least 1.
        iterations, averaged: see `crbp_d2.core.spectral_radius`.
    """
    recurrence = find_recurrence(model)
    seen: dict[str, Any] = {}

    def observe(step: int, parts: Parts) -> None:
        seen["state"] = parts

    handle = recurrence.register_forward_pre_hook(lambda _, inputs: seen.update(drive=inputs[0]))
    try:
        with torch.no_grad(), recurrence.observing(observe, steps=steps):
            model(batch)
    finally:
        handle.remove()
    drive = seen["drive"]
    state = from_parts(seen["state"], recurrence.initial_state(drive))
    return spectral_radius(recurrence.cell, drive, state, iterations=iterations, averaged=averaged)


def parse_steps(text: str, trained: int) -> list[int]:
    """Steps from a list such as `1-30`, `N,2N,4N` or `6,12,N/2`, with `N` the trained number.

    Raises:
        ValueError: another form, or a step below 1.
    """
    steps: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        match = re.fullmatch(r"(\d*)N(?:/([1-9]\d*))?", part)
        if match:
            steps.add(int(match[1] or 1) * trained // int(match[2] or 1))
        elif first.isdecimal() and (last.isdecimal() or part == first):
            steps.update(range(int(first), int(last or first) + 1))
        else:
            raise ValueError(
                f"--steps: {part!r} is no step; give numbers, ranges such as 1-30, and N, 2N or "
                "N/2 for the trained number of steps, separated by commas"
            )
    if not steps or min(steps) < 1:
        raise ValueError(f"--steps {text}: steps must be at least 1")
    return sorted(steps)


def write_csv(path: Path, found: Mapping[str, Sequence[StepScores]]) -> None:
    """Write `data set,step,change,F1,...`, whole or not at all.

    Args:
        path: of the file; its folder is made.
        found: name of a data set -> its scores.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    names = list(next(iter(found.values()))[0].scores)
    writer.writerow(["data set", "step", "change", *names])
    for name, entries in found.items():
        for one in entries:
            writer.writerow([name, one.step, one.change, *one.scores.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.getvalue().encode())
