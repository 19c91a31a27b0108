"""States of one or several tensors, handled alike.

A cell's state is one tensor `(N, ...)` or a tuple of tensors that all have `N` samples first (a
ConvLSTM has `(h, c)`). Inside the package a state is always a tuple, called *parts*; users see the
structure that they gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Parts: TypeAlias = tuple[Tensor, ...]
State: TypeAlias = Tensor | Parts
Drive: TypeAlias = Tensor | Sequence[Tensor]
VectorJacobianProduct: TypeAlias = Callable[[Parts], Parts]


def to_parts(state: State | Drive) -> Parts:
    """The tuple form of a state or a drive."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def from_parts(parts: Parts, template: State | Drive) -> State:
    """Back from parts to the structure of `template`, a state or a drive."""
    return parts[0] if isinstance(template, Tensor) else tuple(parts)


def flatten(part: Tensor) -> Tensor:
    """`(N, ...)` as `(N, D)`, also without samples or with a single number each."""
    # Not `len`, which would be a constant of an exported graph.
    return part.reshape(part.shape[0], math.prod(part.shape[1:]))


def flatten_parts(parts: Parts) -> Tensor:
    """`(N, D)`, the parts of each sample side by side."""
    return torch.cat([flatten(part) for part in parts], dim=1)


def unflatten_parts(flat: Tensor, template: Parts) -> Parts:
    """Back from `flatten_parts` to the shapes of `template`."""
    sizes = [math.prod(part.shape[1:]) for part in template]
    pieces = flat.split(sizes, dim=1)
    return tuple(piece.reshape(part.shape) for piece, part in zip(pieces, template, strict=True))


def at_least_float32(part: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return part.float() if part.dtype in (torch.float16, torch.bfloat16) else part


def sample_norm(parts: Parts) -> Tensor:
    """Euclidean norm of each sample over all its parts.

    Args:
        parts: tensors `(N, ...)`.

    Returns:
        `(N,)`, in float32 at least, detached.
    """
    total: Tensor | None = None
    for part in parts:
        squared = flatten(at_least_float32(part.detach())).square().sum(dim=1)
        total = squared if total is None else total + squared
    if total is None:
        raise ValueError("a state needs at least one tensor")
    return total.sqrt()


def per_sample(values: Tensor, part: Tensor) -> Tensor:
    """Reshape `(N,)` so that it broadcasts against `part: (N, ...)`."""
    return values.reshape(-1, *[1] * (part.dim() - 1))


def scale_samples(parts: Parts, factors: Tensor) -> Parts:
    """Multiply each sample of every part by its factor, `factors: (N,)`."""
    return tuple(part * per_sample(factors, part).to(part.dtype) for part in parts)


def where_samples(condition: Tensor, parts: Parts, other: Parts | None = None) -> Parts:
    """Samples of `parts` where `condition: (N,) bool`, else those of `other` (zero without it)."""
    if other is None:
        return tuple(torch.where(per_sample(condition, p), p, torch.zeros_like(p)) for p in parts)
    return tuple(
        torch.where(per_sample(condition, p), p, o) for p, o in zip(parts, other, strict=True)
    )


def select_samples(parts: Parts, index: Tensor) -> Parts:
    """The samples named by `index` (a tensor of positions or a boolean mask) of every part."""
    return tuple(part[index] for part in parts)


def as_leaves(parts: Parts) -> Parts:
    """Detached copies of the parts (storage shared) that require gradients."""
    return tuple(part.detach().requires_grad_() for part in parts)


def vector_jacobian_product(
    after: Parts, before: Parts, vector: Parts, *, create_graph: bool = False
) -> Parts:
    """`J^T v` with `J = d after / d before`, on the graph that is there already.

    The graph is kept. With `create_graph` the result can be differentiated again.
    """
    products = torch.autograd.grad(
        after,
        before,
        vector,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return tuple(
        torch.zeros_like(b) if product is None else product
        for product, b in zip(products, before, strict=True)
    )


def zero_state(drive: Tensor) -> Tensor:
    """Zeros like the drive. Under autocast in float32, as a state adds up many small changes."""
    half = drive.dtype in (torch.float16, torch.bfloat16)
    autocast = torch.is_autocast_enabled(drive.device.type)
    return torch.zeros_like(drive, dtype=torch.float32 if half and autocast else None)


def initial_state(cell: object, drive: Drive) -> State:
    """Where a run starts unless told otherwise: the cell's own start, or zeros like the drive."""
    start: Callable[[Drive], State] | None = getattr(cell, "initial_state", None)
    return zero_state(to_parts(drive)[0]) if start is None else start(drive)
