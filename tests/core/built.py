"""Recurrences of tests: an algorithm by its name, its options in one row, penalties as objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from crbp_d2.core import Penalty, Recurrence, RecurrenceResult, build_recurrence, wrapped


class Head(nn.Module):
    """Runs a wrapped recurrence, as the heads of models do."""

    def __init__(self, recurrence: Recurrence, **options: Any) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.run = wrapped(recurrence, **options)

    @property
    def cell(self) -> nn.Module:
        return self.recurrence.cell

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        return self.recurrence.penalties

    def forward(self, *args: Any, **options: Any) -> RecurrenceResult:
        return self.run(*args, **options)


def built(
    cell: nn.Module,
    algorithm: str = "crbp",
    *,
    penalties: Sequence[Penalty] | None = None,
    chunk_samples: int | None = None,
    early_from: float | None = None,
    **options: Any,
) -> Recurrence | Head:
    """A recurrence; `solver_x` and `adjoint_x` are the option `x` of these.

    Args:
        penalties: in the place of the algorithm's own.
        chunk_samples, early_from: see `wrapped`.
    """
    of_parts: dict[str, dict[str, Any]] = {"solver": {}, "adjoint": {}}
    for name in list(options):
        part, _, option = name.partition("_")
        if part in of_parts:
            of_parts[part][option] = options.pop(name)
    if penalties is None:
        recurrence = build_recurrence(algorithm, cell, **of_parts, **options)
    else:
        algorithm = {"crbp": "rbp"}.get(algorithm, algorithm.removesuffix("+lcp"))
        parts = build_recurrence(algorithm, cell, **of_parts, **options)
        recurrence = Recurrence(
            cell, solver=parts.solver, adjoint=parts.adjoint, penalties=penalties, **options
        )
    if chunk_samples is None and early_from is None:
        return recurrence
    return Head(recurrence, chunk_samples=chunk_samples, early_from=early_from)
