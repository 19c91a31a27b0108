"""Estimators side by side: nearness to the exact gradient, saved memory, time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import bytes_saved_by
from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.observed import observe_circuit
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.runs import Run
from crbp_d2.analysis.timing import seconds_of
from crbp_d2.core import ConfigurationError, Recurrence, build_recurrence, to_parts


@dataclass(frozen=True)
class Contender:
    """An algorithm with its options, as `build_recurrence` takes them.

    Attributes:
        label: for the table.
        algorithm: see `build_recurrence`.
        options: further arguments of it.
        least_steps: fewest steps it can run.
        steps: `T` for its gradient and time, where it is to have its own.
    """

    label: str
    algorithm: str
    options: dict[str, Any] = field(default_factory=dict)
    least_steps: int = 1
    steps: int | None = None

    def recurrence(self, cell: nn.Module, steps: int) -> Recurrence:
        """The algorithm on a cell."""
        return build_recurrence(self.algorithm, cell, steps=steps, **self.options)


NEUMANN: dict[str, Any] = {"terms": 15}
LOWERED: dict[str, Any] = {"solver": {"precision": "bf16"}}


def anderson(terms: int, **options: Any) -> dict[str, Any]:
    """An adjoint by Anderson acceleration with so many products."""
    return {"name": "anderson", "terms": terms, **options}


CONTENDERS = (
    Contender("bptt", "bptt"),
    Contender("bptt, checkpointed", "bptt", {"adjoint": {"checkpointed": True}}),
    Contender("bptt+lcp", "bptt+lcp"),
    Contender("tbptt, 3 steps", "tbptt", {"adjoint": {"length": 3}}, least_steps=3),
    Contender("jfb", "jfb"),
    Contender("rbp, 15 terms", "rbp", {"adjoint": NEUMANN}),
    Contender("rbp, 15 terms, norm cap 1", "rbp", {"adjoint": NEUMANN | {"norm_cap": 1.0}}),
    Contender(
        "rbp, 15 terms, stopped as released",
        "rbp",
        {"adjoint": NEUMANN | {"norm_cap": 1.0, "stopping": "released"}},
    ),
    Contender("crbp, 15 terms", "crbp", {"adjoint": NEUMANN}),
    Contender("rbp, 15 terms, bf16", "rbp", LOWERED | {"adjoint": NEUMANN | {"precision": "bf16"}}),
    Contender("rbp, Anderson adjoint 20/7", "rbp", {"adjoint": anderson(7)}),
    Contender(
        "rbp, Anderson adjoint 20/7, bf16",
        "rbp",
        LOWERED | {"adjoint": anderson(7, precision="bf16")},
    ),
    Contender("rbp, Anderson adjoint 20/10", "rbp", {"adjoint": anderson(10)}),
    Contender(
        "rbp, Anderson 12/7",
        "rbp",
        {"solver": {"name": "anderson"}, "adjoint": anderson(7)},
        steps=12,
    ),
    Contender("phantom, 5 steps of 0.5", "phantom", {"adjoint": {"length": 5}}, least_steps=5),
    Contender("implicit", "implicit", {"adjoint": {"tolerance": 1e-4}}),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: of the contender.
        cosine: between its gradient and the exact one, over all weights of the cell.
        norm_ratio: of its gradient to the exact one.
        saved_bytes: that autograd keeps for the backward pass, by number of steps; `None` where it
            can't run that few.
        times: forward and backward pass relative to one-step BPTT, one value a round.
    """

    label: str
    cosine: float
    norm_ratio: float
    saved_bytes: dict[int, int | None]
    times: list[float]


def compare(
    cell: nn.Module,
    drive: Tensor,
    *,
    steps: int = 20,
    memory_steps: Sequence[int] = (1, 5, 20, 100),
    rounds: int = 3,
    exact_steps: int = 400,
    contenders: Sequence[Contender] = CONTENDERS,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], float]:
    """Measure every contender on one cell and drive.

    The loss is `sum(w . h_T)` with fixed random weights `w`. The exact gradient is the implicit one
    at the state after `exact_steps` steps; penalties don't count in gradients, but do in memory and
    time.

    Args:
        cell: the circuit.
        drive: `(N, C, H, W)`.
        steps: `T` for gradients and times.
        memory_steps: numbers of steps to measure saved memory for.
        rounds: interleaved repetitions of the timing.
        exact_steps: until the state counts as the equilibrium.
        contenders: what to compare.
        progress: told what is being measured.

    Returns:
        The rows, and the relative residual of the state taken for the equilibrium.
    """
    weights = torch.randn_like(drive)
    progress("exact gradient")
    exact, residual = exact_gradient(cell, drive, weights, steps=exact_steps, tolerance=1e-6)
    times: dict[str, list[float]] = {contender.label: [] for contender in contenders}
    unit = Contender("unit", "bptt").recurrence(cell, 1)
    timed = {one.label: one.recurrence(cell, one.steps or steps) for one in contenders}
    for label, recurrence in {"unit": unit, **timed}.items():
        # The first run checks the cell, which is not to be measured.
        progress(f"warming up {label}")
        seconds(recurrence, drive, weights)
    for number in range(rounds):
        for label, recurrence in timed.items():
            progress(f"time of {label}, round {number + 1} of {rounds}")
            base = seconds(unit, drive, weights)
            times[label].append(seconds(recurrence, drive, weights) / base)
    rows = []
    for contender in contenders:
        progress(f"gradient and memory of {contender.label}")
        found, _ = gradient(timed[contender.label], drive, weights)
        saved = {
            count: saved_bytes(contender.recurrence(cell, count), drive)
            if count >= contender.least_steps
            else None
            for count in memory_steps
        }
        rows.append(
            Row(
                label=contender.label,
                cosine=float(torch.cosine_similarity(found, exact, dim=0)),
                norm_ratio=float(found.norm() / exact.norm()),
                saved_bytes=saved,
                times=times[contender.label],
            )
        )
    return rows, residual


def trained_setting(run: Run, samples: int) -> tuple[nn.Module, Tensor]:
    """The circuit of a trained model, and what drives it on test images.

    Args:
        run: the model.
        samples: RoIs or images, of the first of its test sets.

    Returns:
        The cell, and its drive `(N, C, H, W)`, `N` the number asked for, or what the set has.

    Raises:
        ConfigurationError: no test set in the config, the model has no recurrence, or the drive is
            not one tensor.
    """
    drives: list[Tensor] = []
    found = 0
    for batch in scoring_batches(run.cfg, run.data_set, 1):
        circuit = observe_circuit(run.model, batch, [1]).circuit
        if not isinstance(circuit.drive, Tensor):
            raise ConfigurationError("the comparison is about circuits with a single drive")
        drives.append(circuit.drive)
        found += len(circuit.drive)
        if found >= samples:
            break
    return find_recurrence(run.model).cell, torch.cat(drives)[:samples]


def exact_gradient(
    cell: nn.Module, drive: Tensor, weights: Tensor, *, steps: int, tolerance: float
) -> tuple[Tensor, float]:
    """The implicit gradient at the state after some steps, as of `gradient`; solved to a relative
    tolerance."""
    reference = build_recurrence("implicit", cell, steps=steps, adjoint={"tolerance": tolerance})
    return gradient(reference, drive, weights)


def gradient(recurrence: Recurrence, drive: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """The gradient of `sum(weights . h_T)` into the cell's weights, and the largest residual."""
    result = recurrence(drive)
    loss = (to_parts(result.state)[0] * weights).sum()
    found = torch.autograd.grad(loss, list(recurrence.cell.parameters()))
    flat = torch.cat([part.reshape(-1) for part in found])
    return flat, float(result.diagnostics.residual.max())


def saved_bytes(recurrence: Recurrence, drive: Tensor) -> int:
    """What autograd keeps of one forward pass, penalties included; see `bytes_saved_by`."""

    def run() -> None:
        result = recurrence(drive)
        to_parts(result.state)[0].sum() + sum(result.penalties.values())

    return bytes_saved_by(run)


def seconds(recurrence: Recurrence, drive: Tensor, weights: Tensor) -> float:
    """Wall time of one forward and backward pass, penalties included."""

    def run() -> None:
        recurrence.zero_grad()
        result = recurrence(drive)
        loss = (to_parts(result.state)[0] * weights).sum() + sum(result.penalties.values())
        loss.backward()

    return seconds_of(run)


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as lines of a Markdown table."""
    counts = list(rows[0].saved_bytes)
    heads = [f"MB saved, T = {count}" for count in counts]
    yield "| algorithm | cosine | norm ratio | " + " | ".join(heads) + " | time (min-max) |"
    yield "|---|---|---|" + "---|" * (len(counts) + 1)
    for row in rows:
        memory = " | ".join(
            "-" if saved is None else f"{saved / 1e6:.1f}" for saved in row.saved_bytes.values()
        )
        middle = statistics.median(row.times)
        yield (
            f"| {row.label} | {row.cosine:.3f} | {row.norm_ratio:.3f} | {memory} | "
            f"{middle:.1f} ({min(row.times):.1f}-{max(row.times):.1f}) |"
        )
