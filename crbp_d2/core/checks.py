"""Refuses what can't work before it runs, saying what it is and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import Node, get_gradient_edge

from crbp_d2.core.adjoints.base import Recorded
from crbp_d2.core.errors import CellError, ConfigurationError, UnsupportedError, choices
from crbp_d2.core.penalties.base import Penalty

Edge: TypeAlias = tuple[Node, int]
"""A node of autograd's graph, and which of its outputs."""


def refuse_penalties(penalties: Sequence[Penalty], cell: nn.Module) -> None:
    """Refuse penalties of the same name, or that can't be differentiated.

    Raises:
        ConfigurationError: there are some.
    """
    names = [penalty.name for penalty in penalties]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"penalties need different names, got {choices(names)}")
    synchronised = [n for n, m in cell.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    if penalties and synchronised:
        raise ConfigurationError(
            "SyncBatchNorm has no double backward, which penalties need: "
            f"{choices(synchronised)}. Use another norm inside the cell, or no penalty"
        )


def refuse_inference_tensors(tensors: Iterable[Tensor]) -> None:
    """Tensors made under `torch.inference_mode()` can't be recorded.

    Raises:
        CellError: there are some.
    """
    if any(tensor.is_inference() for tensor in tensors):
        raise CellError(
            "the drive or the initial state was made under torch.inference_mode() and can't take "
            "part in training; clone() it outside, or make it under torch.no_grad()"
        )


def refuse_uneven(tensors: Sequence[Tensor]) -> None:
    """Refuse a drive and a start that don't have the same number of samples first.

    Raises:
        CellError: they don't, or there is none.
    """
    if not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
        raise CellError("drive and start are tensors, or tuples of them, with samples first")
    counts = sorted({len(tensor) for tensor in tensors})
    if len(counts) != 1:
        raise CellError(
            f"drive and start have {' and '.join(map(str, counts)) or 'no'} samples: every tensor "
            "of both has as many, in its first dimension"
        )


def refuse_transforms(tensors: Iterable[Tensor]) -> None:
    """Refuse to run within `torch.func.grad`, `vmap` and their like, and on dual numbers: an
    adjoint's gradient is none that they see.

    Raises:
        UnsupportedError: it does.
    """
    dual = forward_ad._current_level >= 0 and any(map(_has_tangent, tensors))
    if dual or torch._C._are_functorch_transforms_active():
        raise UnsupportedError(
            "a Recurrence does not take part in the transforms of torch.func (grad, vmap, jvp, "
            "...), nor in forward mode: its adjoints define gradients of their own. Use "
            "torch.autograd.grad, and "
            "torch.func.functional_call for other weights; or call the cell itself in a loop"
        )


def check_dependence(cell: nn.Module, recorded: Recorded) -> None:
    """Refuse a cell whose result does not depend on its state or on one of its parameters.

    It follows the recorded graph and computes nothing, so that no hook is called.

    Raises:
        CellError: naming what is not used.
    """
    state = {_edge(part) for part in recorded.before if part.requires_grad}
    weights = {n: _edge(p) for n, p in cell.named_parameters() if p.requires_grad}
    reached: set[Edge] = set()
    pending = [_edge(part) for part in recorded.after if part.requires_grad]
    while pending:
        edge = pending.pop()
        if edge in reached:
            continue
        reached.add(edge)
        if edge not in state:
            pending += [(node, number) for node, number in edge[0].next_functions if node]
    if not reached & state:
        raise CellError(
            f"{type(cell).__name__} ignores its state (no gradient flows from the next state to "
            "the last one); a recurrent cell computes F(drive, state)"
        )
    unused = [name for name, edge in weights.items() if edge not in reached]
    if unused:
        raise CellError(
            f"{type(cell).__name__} does not use its parameters {choices(unused)}: they would "
            "never be trained. Remove them or set requires_grad=False"
        )


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None
