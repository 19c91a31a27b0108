"""Gradient estimators: how the loss on the last state reaches weights and drive.

All share one signature, `estimator.unroll(circuit, start, run) -> Unrolled`, and are found by name
in `ESTIMATORS`. To add one, write a frozen dataclass whose fields are its options and add it to the
dict.

`J = dF/dh` at the last state, `T` steps, `g0` the gradient that arrives at the state:

| name       | gradient                                                 | memory in T |
|------------|----------------------------------------------------------|-------------|
| `bptt`     | through all T steps                                      | O(T)        |
| `tbptt`    | through the last `length` steps                          | O(length)   |
| `rbp`      | `sum_{k<=K} (J^T)^k g0` through one step                 | O(1)        |
| `jfb`      | `g0` through one step (Fung et al. 2103.12803)           | O(1)        |
| `phantom`  | damped unroll of the last steps (Geng et al. 2111.05177) | O(length)   |
| `implicit` | `(I - J)^-T g0` through one step, to a tolerance         | O(1)        |
| `deq`      | forward and adjoint solved by torchdeq (Bai et al. 2019) | O(1)        |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crbp_d2.core.cells.parts import statistics_kept
from crbp_d2.core.checks import require_at_least
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.deq import DeepEquilibrium
from crbp_d2.core.equilibrium import (
    ImplicitGradient,
    OneStepGradient,
    RecurrentBackPropagation,
)
from crbp_d2.core.errors import ConfigurationError, choices, refuse_tolerance
from crbp_d2.core.state import Parts, as_leaves
from crbp_d2.core.unrolled import (
    Estimator,
    PlainSteps,
    Run,
    Unrolled,
    all_steps,
    plain_steps_before,
)


@dataclass(frozen=True)
class BackPropagationThroughTime(PlainSteps):
    """`bptt`: ordinary autograd through all steps, exact for the unrolled network.

    Attributes:
        every_step: keep all recorded states, for a loss on each of them.
        checkpointed: recompute the steps in the backward pass instead of storing what they need;
            memory is then one state a step. The last step is stored, as penalties differentiate it
            twice.
    """

    every_step: bool = False
    checkpointed: bool = False

    @property
    def lowerable(self) -> bool:
        """All its steps are recorded."""
        return False

    def check(self, steps: int, tolerance: float | None) -> None:
        """No tolerance: all steps are differentiated."""
        refuse_tolerance("bptt differentiates all its steps", tolerance)

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        self.check(run.steps, run.tolerance)
        trajectory: list[Parts] = []
        before = after = _requiring_gradients(start)
        for step in range(1, run.steps + 1):
            before = after
            if self.checkpointed and step < run.steps:
                after = checkpoint(_Recomputed(circuit), *before, use_reentrant=False)
            else:
                after = circuit(before)
            run.seen(step, after)
            if self.every_step:
                trajectory.append(after)
        return Unrolled(after, before, after, all_steps(start, run.steps), trajectory)


@dataclass(frozen=True)
class TruncatedBackPropagation(PlainSteps):
    """`tbptt`: autograd through the last steps only.

    Attributes:
        length: steps that gradients go through (the paper: 3 of 6).
    """

    length: int = 3

    def __post_init__(self) -> None:
        require_at_least("length", self.length, 1)

    def check(self, steps: int, tolerance: float | None) -> None:
        """At least `length` steps."""
        _require_steps("tbptt", self.length, steps)

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        self.check(run.steps, run.tolerance)
        free, taken = plain_steps_before(circuit, _detached(start), run, self.length)
        before = after = as_leaves(free)
        for step in range(run.steps - self.length + 1, run.steps + 1):
            before = after
            after = circuit(before)
            run.seen(step, after)
        return Unrolled(after, before, after, taken + self.length)


@dataclass(frozen=True)
class PhantomGradient(PlainSteps):
    """`phantom`: autograd through a damped unroll `h <- (1 - damping) h + damping F(x, h)`.

    Where nothing is learned all steps are plain ones: the equilibrium is the same.

    Attributes:
        length: damped steps that gradients go through, the last ones of all.
        damping: `tau in (0, 1]`; 1 is `tbptt`.
    """

    length: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        require_at_least("length", self.length, 1)
        if not 0 < self.damping <= 1:
            raise ConfigurationError(
                f"damping must lie in (0, 1], got {self.damping}", option="damping"
            )

    def check(self, steps: int, tolerance: float | None) -> None:
        """At least `length` steps."""
        _require_steps("phantom", self.length, steps)

    def unroll(self, circuit: Circuit, start: Parts, run: Run) -> Unrolled:
        self.check(run.steps, run.tolerance)
        free, taken = plain_steps_before(circuit, _detached(start), run, self.length)
        before = after = state = as_leaves(free)
        for step in range(run.steps - self.length + 1, run.steps + 1):
            before = state
            after = circuit(before)
            state = tuple(b + self.damping * (a - b) for a, b in zip(after, before, strict=True))
            run.seen(step, state)
        return Unrolled(state, before, after, taken + self.length)


ESTIMATORS: Mapping[str, type[Any]] = {
    "bptt": BackPropagationThroughTime,
    "tbptt": TruncatedBackPropagation,
    "rbp": RecurrentBackPropagation,
    "jfb": OneStepGradient,
    "phantom": PhantomGradient,
    "implicit": ImplicitGradient,
    "deq": DeepEquilibrium,
}

PENALISED = {"crbp": "rbp"}
"""Names that stand for another estimator with the Lipschitz coefficient penalty."""


def build_estimator(name: str, **options: Any) -> Estimator:
    """The estimator of a name.

    Args:
        name: a key of `ESTIMATORS`.
        options: fields of that estimator.

    Raises:
        ConfigurationError: the name or an option is unknown (the message lists the choices), or a
            value is out of range.
    """
    if name not in ESTIMATORS:
        raise ConfigurationError(
            f"unknown estimator {name!r}; choose from {choices(ESTIMATORS)}", option="algorithm"
        )
    kind = ESTIMATORS[name]
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        allowed = f"it takes {choices(known)}" if known else "it takes none"
        raise ConfigurationError(f"{name!r} has no option {', '.join(unknown)}; {allowed}")
    estimator: Estimator = kind(**options)
    return estimator


def parse_algorithm(algorithm: str) -> tuple[str, bool]:
    """The estimator's name, and whether the Lipschitz coefficient penalty goes with it.

    Raises:
        ConfigurationError: the name is unknown.
    """
    name, plus, penalty = algorithm.partition("+")
    penalised = bool(plus) or name in PENALISED
    name = PENALISED.get(name, name)
    if name not in ESTIMATORS or (plus and penalty != "lcp"):
        raise ConfigurationError(
            f"unknown algorithm {algorithm!r}; choose from {choices([*ESTIMATORS, *PENALISED])}, "
            "each with or without '+lcp'",
            option="algorithm",
        )
    return name, penalised


def _detached(parts: Parts) -> Parts:
    return tuple(part.detach() for part in parts)


class _Recomputed:
    """A step that is computed again in the backward pass, where batch norms must not count it."""

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self._seen = False

    def __call__(self, *parts: Tensor) -> Parts:
        if not self._seen:
            self._seen = True
            return self._circuit(parts)
        with statistics_kept(self._circuit.cell):
            return self._circuit(parts)


def _requiring_gradients(parts: Parts) -> Parts:
    """A start that gradients flow into stays as it is; else penalties at T = 1 need a leaf."""
    return tuple(p if p.requires_grad else p.detach().requires_grad_() for p in parts)


def _require_steps(name: str, length: int, steps: int) -> None:
    if length > steps:
        raise ConfigurationError(
            f"{name}: length is {length}, but there are only {steps} steps", option="length"
        )
