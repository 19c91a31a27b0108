"""What a run tells of its dynamics, and the spectral radius as a function of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.state import (
    Drive,
    State,
    as_leaves,
    sample_norm,
    scale_samples,
    to_parts,
    vector_jacobian_product,
)


@dataclass
class AdjointReport:
    """What the backward pass of an equilibrium estimator did; filled when `backward()` runs.

    All fields are `None` until then. Shapes are `(N,)`, one value a sample.

    Attributes:
        terms: Neumann terms that entered the gradient (iterations for the other solvers).
        contraction_ratio: the last `|v_{k+1}| / |v_k|` seen, an estimate of the spectral radius of
            `J` that comes for free; NaN where no term was computed. Of `anderson_adjoint`
            `|J^T r| / |r|` of the last residual `r` that was multiplied.
        diverged: True where a term grew (or was not finite) and the series was cut there, or where
            the residual of `anderson_adjoint` did not fall.
        residual: `|g0 + J^T g - g| / |g0|` of the solution where the solver knows it, else `None`.
    """

    terms: Tensor | None = None
    contraction_ratio: Tensor | None = None
    diverged: Tensor | None = None
    residual: Tensor | None = None


@dataclass
class Diagnostics:
    """Contraction to monitor in every run (all tensors detached; reading them may synchronise a
    GPU).

    Attributes:
        steps: `(N,)` applications of `F` that each sample took.
        residual: `(N,)` `|F(h) - h| / |F(h)|` at the last step.
        penalties: unweighted value of every penalty by its name, 0-dimensional.
        skipped: `(N,) bool`, samples left out because their state or, in the backward pass, their
            gradient was not finite; `None` for none.
        adjoint: report of the backward pass, empty until `backward()` has run.
    """

    steps: Tensor
    residual: Tensor
    penalties: dict[str, Tensor] = field(default_factory=dict)
    skipped: Tensor | None = None
    adjoint: AdjointReport = field(default_factory=AdjointReport)

    @property
    def skipped_samples(self) -> int:
        """How many samples were left out."""
        return 0 if self.skipped is None else int(self.skipped.sum())

    def skip(self, samples: Tensor) -> None:
        """Add samples, `(N,) bool`, to those that are left out."""
        self.skipped = samples if self.skipped is None else self.skipped | samples

    def scalars(self) -> dict[str, float]:
        """Means over the samples as plain floats, what a logger wants (one transfer from a GPU).

        Keys: `steps`, `residual`, a key per penalty, and after the backward pass `neumann_terms`,
        `contraction_ratio`, `diverged` (fraction of samples), `adjoint_residual`. Left out: what
        was not computed, and everything of a run without samples.
        """
        adjoint = self.adjoint
        named = {
            "steps": self.steps,
            "residual": self.residual,
            **self.penalties,
            "neumann_terms": adjoint.terms,
            "contraction_ratio": adjoint.contraction_ratio,
            "diverged": adjoint.diverged,
            "adjoint_residual": adjoint.residual,
        }
        present = {name: t for name, t in named.items() if t is not None and t.numel()}
        values: dict[str, float] = {}
        if present:
            stacked = torch.stack([t.detach().double().nanmean() for t in present.values()])
            values = {
                name: value
                for name, value in zip(present, stacked.tolist(), strict=True)
                if not math.isnan(value)
            }
        if self.skipped is not None:
            values["skipped_samples"] = float(self.skipped_samples)
        return values


def relative_residual(after: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Tensor:
    """`|after - before| / |after|` for each sample, `(N,)`; 0 where both states are zero."""
    difference = tuple(a.detach() - b.detach() for a, b in zip(after, before, strict=True))
    change, size = sample_norm(difference), sample_norm(after)
    return torch.where(change == 0, torch.zeros_like(change), change / size)


def spectral_radius(
    cell: nn.Module,
    drive: Drive,
    state: State,
    *,
    iterations: int = 50,
    averaged: int = 20,
) -> Tensor:
    """Spectral radius of `J = dF/dh` at a state, for each sample, by power iteration on `J^T`.

    The eigenvalues of `J^T` are those of `J`. The growth `|J^T u| / |u|` is averaged geometrically
    over the last iterations, so that a complex pair of leading eigenvalues, which makes it
    oscillate, gives their modulus.

    Args:
        cell: the circuit, called as `cell(drive, state)`; samples must not depend on each other.
        drive: what the cell takes as its input, `(N, ...)`.
        state: where to linearise, one tensor or a tuple, `(N, ...)`.
        iterations: vector-Jacobian products to compute.
        averaged: how many of the last of them enter the mean.

    Returns:
        `(N,)`, at least 0.

    Raises:
        ValueError: unless `1 <= averaged <= iterations`.
        CellError: the cell breaks its contract.
    """
    if not 1 <= averaged <= iterations:
        raise ValueError(
            f"averaged must lie in [1, iterations], got {averaged} of {iterations} iterations"
        )
    with torch.enable_grad():
        before = as_leaves(to_parts(state))
        after = Circuit(cell, drive, state)(before)
    vector = tuple(torch.randn_like(part) for part in before)
    vector = scale_samples(vector, 1 / sample_norm(vector))
    log_growth = torch.zeros_like(sample_norm(before))
    for iteration in range(iterations):
        vector = tuple(v.detach() for v in vector_jacobian_product(after, before, vector))
        growth = sample_norm(vector)
        if iteration >= iterations - averaged:
            log_growth = log_growth + growth.log()
        # A nilpotent J ends at zero: the radius is 0 and there is no direction left to normalise.
        vector = scale_samples(
            vector, torch.where(growth > 0, 1 / growth, torch.zeros_like(growth))
        )
    return (log_growth / averaged).exp()
