"""What can go wrong, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class ConfigurationError(ValueError):
    """An option that is unknown or can't work; the message says which and what is allowed.

    Attributes:
        option: name of the argument to change, where there is a single one, else empty. With the
            kind of part it belongs to, as `adjoint.terms`, where that was built by name.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class CellError(TypeError):
    """A cell broke the contract `F(drive, state) -> next state` of unchanged shapes and types."""


class NonFiniteError(FloatingPointError):
    """NaN or infinity in a state or a gradient; names the step and the last residual."""


class UnsupportedError(NotImplementedError):
    """Something of torch's that can't be done here; the message names the way round."""


def choices(names: Iterable[str]) -> str:
    """Names as a readable list for messages."""
    return ", ".join(sorted(names))


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.8) -> str:
    """`did you mean A or B?`, of the known names nearest to an unknown one, in capitals or not;
    empty without any."""
    spelled = {one.lower(): one for one in known}
    near = [spelled[one] for one in difflib.get_close_matches(name.lower(), spelled, cutoff=cutoff)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def refuse_second_order(name: str) -> None:
    """Refuse to compute a gradient that can be differentiated again.

    Called in a backward pass, which torch runs with gradients enabled exactly if it was started
    with `create_graph=True`, whether or not the gradient that arrives requires one.

    Raises:
        UnsupportedError: it was.
    """
    if torch.is_grad_enabled():
        raise UnsupportedError(
            f"the gradient of {name} can't be differentiated again (create_graph=True), as that of "
            "a gradient penalty would have to be: the state before the last step would count as "
            "constant. Use an adjoint that unrolls (bptt, tbptt, phantom) or one_step (jfb), "
            "without chunks"
        )


def refuse_other_weights(then: Sequence[Tensor], now: Sequence[Tensor]) -> None:
    """Refuse to compute a step again, in the backward pass, with other weights than in the forward
    pass, as after `torch.func.functional_call`.

    Raises:
        UnsupportedError: they are others.
    """
    if [id(weight) for weight in then] != [id(weight) for weight in now]:
        raise UnsupportedError(
            "steps are computed again in the backward pass, but the cell has other weights by now "
            "than in the forward pass (torch.func.functional_call gives them back). Leave out "
            "checkpointed, or run both passes with the same weights in place"
        )
