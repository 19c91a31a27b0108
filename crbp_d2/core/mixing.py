"""Anderson acceleration with a safeguard: fewer evaluations for the same equilibrium.

A fixed point `h = F(h)` is sought from the last `m` changes of `F(h)` and of the residual
`r = F(h) - h` (Anderson 1965, "Iterative procedures for nonlinear integral equations"; Walker and
Ni 2011, "Anderson acceleration for fixed-point iterations"):

    c = argmin |r - dR c|,    next point = F(h) - dF c.

Without changes, or with `c = 0`, that is the plain step. Every sample has coefficients of its own,
over all parts of its state, so its result does not depend on its companions. Nothing here reads a
value back from a device: numbers of evaluations are fixed and samples differ by `torch.where`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crbp_d2.core.graphs import is_exporting
from crbp_d2.core.state import (
    Parts,
    at_least_float32,
    flatten,
    sample_norm,
    where_samples,
)

REGULARISATION = 10.0
"""Tikhonov term of the least squares, in units of the rounding error. The columns are scaled to
length 1, so it does not depend on the size of the residual."""


class Differences:
    """The last changes of a point and of its residual, and the least squares over them.

    Memory is two states for each change that is remembered, in float32 at least.

    Args:
        template: parts `(N, ...)` of the shapes, types and device to expect.
        memory: changes to remember (`m`), at least 1.
    """

    def __init__(self, template: Parts, memory: int) -> None:
        samples = template[0].shape[0]

        def columns() -> Parts:
            return tuple(
                torch.zeros(
                    (samples, memory, flat.shape[1]),
                    dtype=at_least_float32(flat).dtype,
                    device=flat.device,
                )
                for flat in map(flatten, template)
            )

        self._points, self._residuals = columns(), columns()
        norm = sample_norm(template)
        self._products = norm.new_zeros(samples, memory, memory)
        self._used = torch.zeros(samples, memory, dtype=torch.bool, device=norm.device)
        self._oldest = 0

    def add(self, point: Parts, residual: Parts, kept: Tensor) -> None:
        """Remember a change in place of the oldest one.

        Args:
            point: change of what is mixed, `(N, ...)`.
            residual: change of its residual, `(N, ...)`.
            kept: `(N,) bool`. Where it is false, the sample forgets this change and all before.
        """
        position = self._oldest
        self._oldest = (position + 1) % self._used.shape[1]
        for stored, parts in ((self._points, point), (self._residuals, residual)):
            for columns, part in zip(stored, selected(kept, parts), strict=True):
                columns[:, position] = flatten(part)
        products = self._projected(tuple(c[:, position] for c in self._residuals))
        self._products[:, position] = products
        self._products[:, :, position] = products
        self._used[:, position] = True
        self._used &= kept[:, None]

    def coefficients(self, residual: Parts) -> Tensor:
        """`argmin |r - dR c|` of each sample, `(N, m)`; 0 for what it does not remember."""
        squares = self._products.diagonal(dim1=1, dim2=2)
        used = self._used & (squares > 0)
        scale = torch.where(used, squares.rsqrt(), torch.zeros_like(squares))
        small = REGULARISATION * torch.finfo(scale.dtype).eps
        matrix = self._products * scale[:, :, None] * scale[:, None, :]
        matrix = matrix + torch.diag_embed(torch.where(used, small, 1.0).to(scale))
        right = self._projected(residual) * scale
        # `solve` would ask the device whether it went well; the matrix is positive definite.
        solution, _ = torch.linalg.solve_ex(matrix, right[:, :, None])
        return solution[:, :, 0] * scale

    def mixed_point(self, point: Parts, coefficients: Tensor) -> Parts:
        """`point - dP c`, with the shapes and types of `point`."""
        return _minus(point, self._points, coefficients)

    def mixed_residual(self, residual: Parts, coefficients: Tensor) -> Parts:
        """`residual - dR c`, with the shapes and types of `residual`."""
        return _minus(residual, self._residuals, coefficients)

    def _projected(self, parts: Parts) -> Tensor:
        """`dR^T r` of each sample, `(N, m)`."""
        total = torch.zeros_like(self._products[:, 0])
        # Autocast would lower the precision of these products.
        with torch.autocast(total.device.type, enabled=False):
            for columns, part in zip(self._residuals, parts, strict=True):
                # A row times a matrix: the other way round is many times slower on a CPU.
                total = total + (at_least_float32(flatten(part))[:, None] @ columns.mT)[:, 0]
        return total


def _minus(parts: Parts, stored: Parts, coefficients: Tensor) -> Parts:
    mixed = []
    with torch.autocast(coefficients.device.type, enabled=False):
        for part, columns in zip(parts, stored, strict=True):
            change = (coefficients.to(columns)[:, None] @ columns)[:, 0]
            mixed.append((at_least_float32(part) - change.reshape(part.shape)).to(part.dtype))
    return tuple(mixed)


def selected(condition: Tensor, parts: Parts, other: Parts | None = None) -> Parts:
    """`where_samples`; where asking costs nothing and all samples are selected, without a copy."""
    if not (condition.is_cuda or is_exporting()) and bool(condition.all()):
        return parts
    return where_samples(condition, parts, other)


def difference(parts: Parts, other: Parts) -> Parts:
    return tuple(a - b for a, b in zip(parts, other, strict=True))
