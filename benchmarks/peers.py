"""This project's solvers and adjoints beside torchdeq and plain BPTT, on one cell and drive."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gradients import exact_gradient
from benchmarks.memory import bytes_saved_by
from crbp_d2.analysis.timing import seconds_of
from crbp_d2.core import build_recurrence, to_parts

Forward = Callable[[Tensor], Tensor]
"""Drive `(N, C, H, W)` to last state, whose gradient is that of a peer."""


@dataclass(frozen=True)
class Peer:
    """A way to a state and its gradient.

    Attributes:
        label: for the table; numbers are those of steps and of products with the Jacobian.
        build: makes it of a cell.
    """

    label: str
    build: Callable[[nn.Module], Forward]


def of_project(label: str, algorithm: str, steps: int, **options: Any) -> Peer:
    """A peer by `build_recurrence`; penalties don't belong to it."""

    def build(cell: nn.Module) -> Forward:
        recurrence = build_recurrence(algorithm, cell, steps=steps, **options)
        return lambda drive: to_parts(recurrence(drive).state)[0]

    return Peer(label, build)


def of_torchdeq(label: str, method: str, steps: int, products: int) -> Peer:
    """A peer by torchdeq: forward and backward solver of one kind, and its implicit gradient.

    No tolerance ends any of them: rows are compared at equal evaluations. torchdeq takes a few
    beside its own count.
    """
    more = 3 if method == "broyden" else 2

    def build(cell: nn.Module) -> Forward:
        from torchdeq import get_deq

        solve = get_deq(
            core="sliced",
            ift=True,
            f_solver=method,
            b_solver=method,
            f_max_iter=steps - more,
            b_max_iter=products - more + 2,
            f_tol=0.0,
            b_tol=0.0,
        )

        def forward(drive: Tensor) -> Tensor:
            found, _ = solve(lambda state: cell(drive, state), torch.zeros_like(drive))
            state: Tensor = found[-1]
            return state

        return forward

    return Peer(label, build)


def _adjoint(name: str, terms: int, **options: Any) -> dict[str, Any]:
    return {"name": name, "terms": terms, "tolerance": 0.0, **options}


_ANDERSON = {"name": "anderson"}

PEERS = (
    of_project("plain 20, Neumann 15", "rbp", 20, adjoint=_adjoint("neumann", 15)),
    of_project("plain 20, Anderson 7", "rbp", 20, adjoint=_adjoint("anderson", 7)),
    of_project("plain 20, Anderson 15", "rbp", 20, adjoint=_adjoint("anderson", 15)),
    of_project(
        "Anderson 12, Anderson 7", "rbp", 12, solver=_ANDERSON, adjoint=_adjoint("anderson", 7)
    ),
    of_project(
        "Anderson 20, Anderson 15", "rbp", 20, solver=_ANDERSON, adjoint=_adjoint("anderson", 15)
    ),
    of_project(
        "plain 20, Neumann as released",
        "rbp",
        20,
        adjoint=_adjoint("neumann", 15, stopping="released", norm_cap=1.0),
    ),
    of_project("plain 20, one step (jfb)", "jfb", 20),
    of_project("BPTT 20", "bptt", 20),
    of_torchdeq("torchdeq: fixed point 20, 15", "fixed_point_iter", 20, 15),
    of_torchdeq("torchdeq: Anderson 12, 7", "anderson", 12, 7),
    of_torchdeq("torchdeq: Anderson 20, 15", "anderson", 20, 15),
    of_torchdeq("torchdeq: Broyden 12, 7", "broyden", 12, 7),
    of_torchdeq("torchdeq: Broyden 20, 15", "broyden", 20, 15),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: of the peer.
        evaluations: of the cell.
        products: of a vector with its Jacobian, that into weights and drive included.
        cosine: between its gradient and the exact one, over all weights of the cell.
        norm_ratio: of its gradient to the exact one.
        saved_bytes: that autograd keeps for the backward pass.
        times: forward and backward pass relative to those of the first peer, one value a round.
    """

    label: str
    evaluations: int
    products: int
    cosine: float
    norm_ratio: float
    saved_bytes: int
    times: list[float]


def compare(
    cell: nn.Module,
    drive: Tensor,
    *,
    rounds: int = 5,
    exact_steps: int = 400,
    peers: Sequence[Peer] = PEERS,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], float]:
    """Measure every peer on one cell and drive.

    The loss is `sum(w . h_T)` with fixed random weights `w`; the exact gradient is the implicit one
    at the state after `exact_steps` steps.

    Args:
        cell: the circuit.
        drive: `(N, C, H, W)`.
        rounds: interleaved repetitions of the timing.
        exact_steps: until the state counts as the equilibrium.
        peers: what to compare; times are relative to the first.
        progress: told what is being measured.

    Returns:
        The rows, and the relative residual of the state taken for the equilibrium.
    """
    weights = torch.randn_like(drive)
    progress("exact gradient")
    exact, residual = exact_gradient(cell, drive, weights, steps=exact_steps, tolerance=1e-8)
    built = {peer.label: peer.build(cell) for peer in peers}
    measured = {}
    for label, forward in built.items():
        progress(f"gradient of {label}")
        # The first run of a recurrence checks the cell, which is not to be counted.
        found = gradient(forward, cell, drive, weights)
        measured[label] = (found, *count(forward, cell, drive, weights))
    times = _in_turn(
        {label: partial(gradient, one, cell, drive, weights) for label, one in built.items()},
        rounds,
        progress,
    )
    rows = [
        Row(
            label=label,
            evaluations=evaluations,
            products=products,
            cosine=float(torch.cosine_similarity(found, exact, dim=0)),
            norm_ratio=float(found.norm() / exact.norm()),
            saved_bytes=bytes_saved_by(partial(built[label], drive)),
            times=times[label],
        )
        for label, (found, evaluations, products) in measured.items()
    ]
    return rows, residual


def _in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Times of runs relative to the first of their round."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    for number in range(rounds):
        seconds = {}
        for label, run in runs.items():
            progress(f"time of {label}, round {number + 1} of {rounds}")
            seconds[label] = seconds_of(run)
        base = next(iter(seconds.values()))
        for label, value in seconds.items():
            times[label].append(value / base)
    return times


def gradient(forward: Forward, cell: nn.Module, drive: Tensor, weights: Tensor) -> Tensor:
    """The gradient of `sum(weights . h_T)` into the cell's weights, flat."""
    found = torch.autograd.grad((forward(drive) * weights).sum(), list(cell.parameters()))
    return torch.cat([part.reshape(-1) for part in found])


def count(forward: Forward, cell: nn.Module, drive: Tensor, weights: Tensor) -> tuple[int, int]:
    """Evaluations of the cell, and products with its Jacobian, of one forward and backward pass."""
    evaluations = products = 0

    def product(_: Tensor) -> None:
        nonlocal products
        products += 1

    def evaluation(_: nn.Module, __: Any, state: Tensor) -> None:
        nonlocal evaluations
        evaluations += 1
        if state.requires_grad:
            state.register_hook(product)

    with cell.register_forward_hook(evaluation):
        gradient(forward, cell, drive, weights)
    return evaluations, products


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as lines of a Markdown table."""
    yield (
        "| forward, gradient | evaluations | products | cosine | norm ratio | MB saved "
        "| time (min-max) |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row.label} | {row.evaluations} | {row.products} | {row.cosine:.4f} | "
            f"{row.norm_ratio:.3f} | {row.saved_bytes / 1e6:.1f} | "
            f"{statistics.median(row.times):.2f} ({min(row.times):.2f}-{max(row.times):.2f}) |"
        )
