"""Refuses what can't work before it runs, saying which option or cell and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from crbp_d2.core.errors import CellError, ConfigurationError, choices
from crbp_d2.core.guard import POLICIES
from crbp_d2.core.penalties import Penalty
from crbp_d2.core.precision import SOLVE_PRECISIONS
from crbp_d2.core.unrolled import Estimator, Unrolled


def require_step(steps: int, name: str = "steps", *, least: int = 1) -> None:
    """A number of steps is an integer of at least 1, or another least number.

    Raises:
        ConfigurationError: it isn't.
    """
    if not isinstance(steps, int) or steps < least:
        raise ConfigurationError(
            f"{name} must be an integer of at least {least}, got {steps!r}", option=name
        )


def require_spread(spread: int, steps: int) -> None:
    """A spread leaves at least one step.

    Raises:
        ConfigurationError: it doesn't, or it is no integer of at least 0.
    """
    require_step(spread, "steps_spread", least=0)
    if spread >= steps:
        raise ConfigurationError(
            f"steps_spread must be below steps, got {spread} with {steps} steps; 0 is fixed",
            option="steps_spread",
        )


def require_at_least(name: str, value: float, least: float) -> None:
    """A number is not below the least one.

    Raises:
        ConfigurationError: it is, or it is NaN.
    """
    if not value >= least:
        raise ConfigurationError(f"{name} must be at least {least}, got {value}", option=name)


def require_tolerance(name: str, tolerance: float | None) -> None:
    """A tolerance is above 0, or `None`.

    Raises:
        ConfigurationError: it isn't.
    """
    if tolerance is not None and not tolerance > 0:
        raise ConfigurationError(f"{name} must be above 0, or None, got {tolerance}", option=name)


def require_stoppable(estimator: Estimator, test_tolerance: float | None) -> None:
    """A tolerance outside training stops steps of the circuit, so the estimator takes them.

    Raises:
        ConfigurationError: it doesn't.
    """
    if test_tolerance is not None and not estimator.plain_steps:
        raise ConfigurationError(
            "test_tolerance stops plain steps of the circuit, which deq and forward_acceleration "
            "do not take; leave it out",
            option="test_tolerance",
        )


def require_solve_precision(precision: str, algorithm: str, estimator: Estimator) -> None:
    """A solve precision is known, and the estimator has steps that it lowers.

    Raises:
        ConfigurationError: it isn't, or there are none.
    """
    if precision not in SOLVE_PRECISIONS:
        raise ConfigurationError(
            f"solve_precision is {precision!r}; choose from {choices(SOLVE_PRECISIONS)}",
            option="solve_precision",
        )
    if precision != "full" and not estimator.lowerable:
        raise ConfigurationError(
            f"solve_precision {precision} does not go with {algorithm}: bptt records all its "
            "steps, implicit and deq solve to a tolerance",
            option="solve_precision",
        )


def require_policy(policy: str) -> None:
    """A policy for non-finite states and gradients is `raise` or `skip`.

    Raises:
        ConfigurationError: it isn't.
    """
    if policy not in POLICIES:
        raise ConfigurationError(
            f"on_nonfinite is {policy!r}; choose from {choices(POLICIES)}", option="on_nonfinite"
        )


def require_penalties(
    algorithm: str, asks_for_lcp: bool, penalties: Sequence[Penalty], cell: nn.Module
) -> None:
    """Penalties have different names, include what the algorithm asks for and can be
    differentiated.

    Raises:
        ConfigurationError: they don't.
    """
    names = [penalty.name for penalty in penalties]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"penalties need different names, got {choices(names)}")
    if asks_for_lcp and "lcp" not in names:
        raise ConfigurationError(
            f"{algorithm} asks for the Lipschitz coefficient penalty, but penalties= holds "
            f"{choices(names) or 'none'}; add LipschitzCoefficientPenalty() or name the estimator "
            "alone"
        )
    synchronised = [n for n, m in cell.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    if penalties and synchronised:
        raise ConfigurationError(
            "SyncBatchNorm has no double backward, which penalties need: "
            f"{choices(synchronised)}. Use another norm inside the cell, or no penalty"
        )


def refuse_coupled_samples(
    cell: nn.Module, what: str = "a tolerance takes settled samples out of the batch"
) -> None:
    """A batch that is computed in parts must not be normalised as a whole.

    Args:
        cell: the circuit.
        what: takes the batch apart, for the message.

    Raises:
        ConfigurationError: the cell uses batch statistics at present.
    """
    coupled = [
        name
        for name, module in cell.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or not module.track_running_stats)
    ]
    if coupled:
        raise ConfigurationError(
            f"{what}, which changes the batch statistics of {choices(coupled)}; leave it out, or "
            "use another norm"
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


def check_dependence(cell: nn.Module, unrolled: Unrolled) -> None:
    """Refuse a cell whose result does not depend on its state or on one of its parameters.

    Raises:
        CellError: naming what is not used.
    """
    named = {n: p for n, p in cell.named_parameters() if p.requires_grad}
    inputs = (*unrolled.before, *named.values())
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if any(part.requires_grad for part in unrolled.after):
        differentiable = tuple(part for part in unrolled.after if part.requires_grad)
        found = torch.autograd.grad(
            differentiable,
            inputs,
            [torch.zeros_like(part) for part in differentiable],
            retain_graph=True,
            allow_unused=True,
        )
    states, parameters = found[: len(unrolled.before)], found[len(unrolled.before) :]
    if all(gradient is None for gradient in states):
        raise CellError(
            f"{type(cell).__name__} ignores its state (no gradient flows from the next state to "
            "the last one); a recurrent cell computes F(drive, state)"
        )
    unused = [name for name, g in zip(named, parameters, strict=True) if g is None]
    if unused:
        raise CellError(
            f"{type(cell).__name__} does not use its parameters {choices(unused)}: they would "
            "never be trained. Remove them or set requires_grad=False"
        )
