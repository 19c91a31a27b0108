"""Non-finite drives, states and gradients: named, never silent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import Diagnostics, relative_residual
from crbp_d2.core.errors import NonFiniteError
from crbp_d2.core.state import Parts, flatten, sample_norm, where_samples

POLICIES = ("raise", "skip")
"""For non-finite states and gradients."""


def finite_samples(parts: Parts) -> Tensor:
    """`(N,) bool`: which samples are finite in all their parts."""
    # A sum of squares overflows for finite elements above 1e19, so ask the elements.
    finite = [flatten(torch.isfinite(part.detach())).all(dim=1) for part in parts]
    return torch.stack(finite).all(dim=0)


def moderate_samples(drives: Parts) -> Tensor:
    """`(N,) bool`: the samples whose squares and their sum are finite, in float32 up to some 1e19.

    A cell may well make a finite state of a larger drive; but gradients are products of two such
    numbers.
    """
    return torch.isfinite(sample_norm(drives))


def explain_non_finite(circuit: Circuit, start: Parts, steps: int) -> NonFiniteError:
    """Run the steps again without a graph and name the first that went wrong.

    Repeating them costs nothing in the runs that go well, which need no check at every step.
    """
    state, residual = start, float("nan")
    if not bool(finite_samples(start).all()):
        return NonFiniteError("the initial state is not finite before the first step")
    for step in range(1, steps + 1):
        following = circuit.advance(state)
        finite = finite_samples(following)
        if not bool(finite.all()):
            return NonFiniteError(
                f"the state is not finite after step {step} of {steps} in {int((~finite).sum())} "
                f"of {len(finite)} samples; the relative residual before was {residual:.3g}. "
                "Check the drive and the weights for NaN, lower the learning rate or add a penalty"
            )
        # In float64, as the squares of a state about to overflow would overflow first.
        doubled = tuple(tuple(p.double() for p in parts) for parts in (following, state))
        residual = float(relative_residual(*doubled).max())
        state = following
    moderate = moderate_samples(circuit.drives)
    if not bool(moderate.all()):
        return NonFiniteError(
            f"the drive is too large to be squared in {int((~moderate).sum())} of {len(moderate)} "
            "samples, so that gradients would overflow. Look at the layers before the recurrence"
        )
    return NonFiniteError(
        f"the state is not finite in a step that gradients go through, of {steps}"
    )


class GradientGuard(torch.autograd.Function):
    """Identity that looks at the gradient on its way back.

    Under float16 autocast an infinite gradient is ordinary: the gradient scaler finds it and skips
    the update. There the gradient passes unchanged.
    """

    @staticmethod
    def forward(ctx: Any, policy: str, diagnostics: Diagnostics, *parts: Tensor) -> Parts:
        ctx.policy, ctx.diagnostics = policy, diagnostics
        device = parts[0].device.type
        ctx.scaled = (
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        )
        return tuple(part.detach() for part in parts)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        finite = finite_samples(incoming)
        if ctx.scaled or bool(finite.all()):
            return (None, None, *incoming)
        diagnostics: Diagnostics = ctx.diagnostics
        if ctx.policy == "raise":
            steps, residual = diagnostics.steps.max(), diagnostics.residual.max()
            raise NonFiniteError(
                f"the gradient that reached the state of step {int(steps)} is not finite in "
                f"{int((~finite).sum())} of {len(finite)} samples (the relative residual of the "
                f"forward pass was {float(residual):.3g}). Look at the loss and the layers "
                "after the recurrence"
            )
        diagnostics.skip(~finite)
        return (None, None, *where_samples(finite, incoming))


def guarded(policy: str, diagnostics: Diagnostics, parts: Parts) -> Parts:
    """`parts` themselves, whose gradient is looked at."""
    found: Parts = GradientGuard.apply(policy, diagnostics, *parts)
    return found
