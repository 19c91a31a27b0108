"""A cell bound to its drive: `h -> F(x, h)`, with the contract checked at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crbp_d2.core.errors import CellError
from crbp_d2.core.state import Drive, Parts, State, from_parts, to_parts, where_samples

Cell = Callable[[Drive, State], State]


class Circuit:
    """The map `h -> F(x, h)` on parts, checked: a cell returns the structure, shapes and types it
    got.

    Under autocast a cell may return lower precision than its state has; the result is cast back, so
    that the state itself keeps its precision over many steps.

    Args:
        cell: called as `cell(drive, state)`.
        drive: static input `x`, a tensor or a sequence of tensors, samples first.
        template: a state whose structure (tensor or tuple) the cell expects.
        unrecorded_cell: the same map for steps that no gradient goes through, for example a
            compiled copy.

    Raises:
        CellError: at a call, if the cell returns something else than a state of the same shapes and
            types.
    """

    def __init__(
        self,
        cell: Cell,
        drive: Drive,
        template: State,
        *,
        unrecorded_cell: Cell | None = None,
    ) -> None:
        self.cell = cell
        self.drive = drive
        self.template = template
        self.unrecorded_cell = cell if unrecorded_cell is None else unrecorded_cell

    def __call__(self, parts: Parts) -> Parts:
        """One step, `(N, ...) -> (N, ...)` for every part; recorded if gradients are enabled."""
        return self._apply(self.cell, parts)

    def advance(self, parts: Parts) -> Parts:
        """One step without recording a graph."""
        with torch.no_grad():
            return self._apply(self.unrecorded_cell, parts)

    def select(self, index: Tensor) -> Circuit:
        """The circuit of some of the samples only."""
        return self._with_drive(lambda x: x[index])

    def where(self, condition: Tensor) -> Circuit:
        """The circuit with a drive of zeros where `condition: (N,) bool` is false."""
        return self._with_drive(lambda x: where_samples(condition, (x,))[0])

    def _with_drive(self, change: Callable[[Tensor], Tensor]) -> Circuit:
        drive: Drive
        if isinstance(self.drive, Tensor):
            drive = change(self.drive)
        else:
            drive = tuple(change(x) for x in self.drive)
        return Circuit(self.cell, drive, self.template, unrecorded_cell=self.unrecorded_cell)

    def _apply(self, cell: Cell, parts: Parts) -> Parts:
        returned = cell(self.drive, from_parts(parts, self.template))
        name = type(self.cell).__name__
        if isinstance(returned, Tensor) != isinstance(self.template, Tensor) or not isinstance(
            returned, Tensor | Sequence
        ):
            raise CellError(
                f"{name} got a state that is {_structure(self.template)} and returned "
                f"{_structure(returned)}; it must return the next state in the same form"
            )
        following = to_parts(returned)
        if len(following) != len(parts):
            raise CellError(
                f"{name} got a state of {len(parts)} tensors and returned {len(following)}"
            )
        return tuple(
            _checked(name, i, old, new)
            for i, (old, new) in enumerate(zip(parts, following, strict=True))
        )


def _checked(cell_name: str, position: int, old: Tensor, new: Tensor) -> Tensor:
    if new.shape != old.shape:
        raise CellError(
            f"{cell_name} must keep the shape of its state: tensor {position} went in as "
            f"{tuple(old.shape)} and came out as {tuple(new.shape)}"
        )
    if new.dtype == old.dtype:
        return new
    if new.is_floating_point() and torch.is_autocast_enabled(new.device.type):
        return new.to(old.dtype)
    raise CellError(
        f"{cell_name} must keep the type of its state: tensor {position} went in as {old.dtype} "
        f"and came out as {new.dtype} (only autocast may lower the precision inside)"
    )


def _structure(value: object) -> str:
    if isinstance(value, Tensor):
        return "one tensor"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
