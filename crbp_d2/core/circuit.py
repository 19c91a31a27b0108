"""A cell bound to its drive: `h -> F(x, h)`, with the contract checked at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

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
        training: whether something is learned: solvers may have other tolerances then.
        compiled: the same map for steps that no gradient goes through; `None` for the cell itself.
        weights: that stand in for the cell's parameters of these names in recorded steps, if the
            cell has others by then; `None` for those that it has.

    Raises:
        CellError: at a call, if the cell returns something else than a state of the same shapes and
            types.
    """

    def __init__(
        self,
        cell: nn.Module,
        drive: Drive,
        template: State,
        *,
        training: bool = False,
        compiled: Cell | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.cell = cell
        self.drive = drive
        self.template = template
        self.training = training
        self.compiled = compiled
        self.weights = weights

    @property
    def drives(self) -> Parts:
        """The drive as parts."""
        return to_parts(self.drive)

    def __call__(self, parts: Parts) -> Parts:
        """One step, `(N, ...) -> (N, ...)` for every part; recorded if gradients are enabled."""
        inputs = (self.drive, from_parts(parts, self.template))
        kept = self.weights
        if kept is None or all(kept[name] is now for name, now in self.cell.named_parameters()):
            return self._checked(self.cell(*inputs), parts)
        return self._checked(functional_call(self.cell, dict(kept), inputs), parts)

    def advance(self, parts: Parts) -> Parts:
        """One step without recording a graph."""
        cell = self.cell if self.compiled is None else self.compiled
        with torch.no_grad():
            return self._checked(cell(self.drive, from_parts(parts, self.template)), parts)

    def keeping_weights(self) -> Circuit:
        """The circuit with the weights that the cell has now, for a step that is to be computed
        again later, for the gradient of the state alone.

        They are put into the cell only if it has others by then: threads may share a cell, and
        would find each other's weights in it.
        """
        weights = self.weights or dict(self.cell.named_parameters())
        return Circuit(self.cell, self.drive, self.template, weights=weights)

    def select(self, samples: Tensor | slice) -> Circuit:
        """The circuit of some of the samples only."""
        return self._with_drive(lambda x: x[samples])

    def where(self, condition: Tensor) -> Circuit:
        """The circuit with a drive of zeros where `condition: (N,) bool` is false."""
        return self._with_drive(lambda x: where_samples(condition, (x,))[0])

    def _with_drive(self, change: Callable[[Tensor], Tensor]) -> Circuit:
        return Circuit(
            self.cell,
            from_parts(tuple(change(x) for x in self.drives), self.drive),
            self.template,
            training=self.training,
            compiled=self.compiled,
            weights=self.weights,
        )

    def _checked(self, returned: object, parts: Parts) -> Parts:
        name = type(self.cell).__name__
        if isinstance(returned, Tensor) != isinstance(self.template, Tensor) or not isinstance(
            returned, Tensor | Sequence
        ):
            raise CellError(
                f"{name} got a state that is {_structure(self.template)} and returned "
                f"{_structure(returned)}; it must return the next state in the same form"
            )
        following: Parts = to_parts(returned)
        if len(following) != len(parts):
            raise CellError(
                f"{name} got a state of {len(parts)} tensors and returned {len(following)}"
            )
        return tuple(
            _checked_part(name, i, old, new)
            for i, (old, new) in enumerate(zip(parts, following, strict=True))
        )


def _checked_part(cell_name: str, position: int, old: Tensor, new: Tensor) -> Tensor:
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
