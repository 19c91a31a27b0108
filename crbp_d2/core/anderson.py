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

from crbp_d2.core.adjoint import AdjointSolver
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.forward import Observer
from crbp_d2.core.state import (
    Parts,
    VectorJacobianProduct,
    rows,
    sample_norm,
    where_samples,
    wide,
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
        samples = len(template[0])

        def columns() -> Parts:
            return tuple(
                torch.zeros(
                    (samples, memory, flat.shape[1]),
                    dtype=wide(flat).dtype,
                    device=flat.device,
                )
                for flat in map(rows, template)
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
            for columns, part in zip(stored, _selected(kept, parts), strict=True):
                columns[:, position] = rows(part)
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
                total = total + (wide(rows(part))[:, None] @ columns.mT)[:, 0]
        return total


def _minus(parts: Parts, stored: Parts, coefficients: Tensor) -> Parts:
    mixed = []
    with torch.autocast(coefficients.device.type, enabled=False):
        for part, columns in zip(parts, stored, strict=True):
            change = (coefficients.to(columns)[:, None] @ columns)[:, 0]
            mixed.append((wide(part) - change.reshape(part.shape)).to(part.dtype))
    return tuple(mixed)


def accelerated_steps(
    circuit: Circuit,
    start: Parts,
    evaluations: int,
    *,
    memory: int,
    observe: Observer | None = None,
) -> Parts:
    """Evaluations of `F` at mixed points, in place of as many plain steps, without a graph.

    The safeguard: a mixed point counts only if its residual `|F(h) - h|` is smaller than that of
    the last point that counted. It is not taken relative to `|F(h)|`, as that falls, too, when a
    state runs away. A sample whose mixed point does not count goes back and takes the plain step,
    and forgets the changes so far. Plain steps always count.

    Args:
        circuit: the map.
        start: the first point, parts `(N, ...)`.
        evaluations: how often to evaluate `F`, at least 0.
        memory: changes to mix, at least 1.
        observe: gets `F` of every point, with the number of the evaluation.

    Returns:
        `F(h)` of the last point that counted: a run ends with a plain step, as the residual of one
        more mixed point is not known.
    """
    history = Differences(start, memory)
    point = value = residual = start
    size = sample_norm(start)
    plain = torch.ones_like(size, dtype=torch.bool)
    for number in range(1, evaluations + 1):
        following = circuit.advance(point)
        if observe is not None:
            observe(number, following)
        change = _difference(following, point)
        new_size = sample_norm(change)
        counts = plain | (new_size < size)
        if number > 1:
            history.add(_difference(following, value), _difference(change, residual), counts)
        value = _selected(counts, following, value)
        residual = _selected(counts, change, residual)
        size = torch.where(counts, new_size, size)
        if number < evaluations:
            coefficients = history.coefficients(residual)
            point = history.mixed_point(value, coefficients)
            plain = (coefficients == 0).all(dim=1)
    return value


def anderson_adjoint(terms: int, *, memory: int, tolerance: float = 0.0) -> AdjointSolver:
    """`g = g0 + J^T g` by Anderson acceleration, each sample with its own stopping.

    The equation is linear, so the residual `g0 + J^T g - g` of a mixture is known without another
    product, and the next product starts from the mixture that makes it least. With a memory of all
    terms this is GMRES (Walker and Ni 2011); with a shorter one the residual still never rises. No
    plain step could do better from where it is, so none is taken: a sample whose residual does not
    fall, or whose product is not finite, keeps the solution it has and counts as diverged. Unlike
    the Neumann series this also solves the equation of a map that does not contract.

    The report: `terms` are products that entered; `contraction_ratio` is `|J^T r| / |r|` of the
    last residual `r` that was multiplied, so not above `|J|`, and near the spectral radius where
    slow modes are what is left; `residual` is that of the solution.

    Args:
        terms: vector-Jacobian products; 0 gives the one-step gradient.
        memory: changes to mix, at least 1.
        tolerance: a sample is done once its residual is under this fraction of `|g0|`.
    """

    def solve(vjp: VectorJacobianProduct, g0: Parts, scale: Tensor, report: AdjointReport) -> Parts:
        history = Differences(g0, memory)
        first = size = sample_norm(g0)
        done = max(tolerance, torch.finfo(first.dtype).eps) * first
        total, residual = tuple(torch.zeros_like(part) for part in g0), g0
        active = first > 0
        used = torch.zeros_like(first)
        ratio = torch.full_like(first, float("nan"))
        diverged = torch.zeros_like(active)
        for _ in range(terms):
            # On a GPU asking costs a synchronisation, more than the products it might save.
            if not first.is_cuda and not active.any():
                break
            product = vjp(residual)
            growth = sample_norm(product) / size
            ratio = torch.where(active, growth, ratio)
            history.add(residual, _difference(product, residual), torch.isfinite(growth))
            coefficients = history.coefficients(residual)
            mixed = history.mixed_residual(residual, coefficients)
            new_size = sample_norm(mixed)
            falls = active & (new_size < size)
            total = _selected(falls, history.mixed_point(total, coefficients), total)
            residual = _selected(falls, mixed, residual)
            size = torch.where(falls, new_size, size)
            used = used + falls
            diverged = diverged | (active & ~falls)
            active = falls & (size > done)
        report.terms, report.contraction_ratio, report.diverged = used, ratio, diverged
        # The one-step gradient, with the residual J^T g0, where no product entered.
        left = torch.where(used > 0, size / first, ratio)
        report.residual = torch.where(first > 0, left, torch.zeros_like(left))
        return where_samples(used > 0, total, g0)

    return solve


def _selected(condition: Tensor, parts: Parts, other: Parts | None = None) -> Parts:
    """`where_samples`; where asking costs nothing and all samples are selected, without a copy."""
    if not condition.is_cuda and bool(condition.all()):
        return parts
    return where_samples(condition, parts, other)


def _difference(parts: Parts, other: Parts) -> Parts:
    return tuple(a - b for a, b in zip(parts, other, strict=True))
