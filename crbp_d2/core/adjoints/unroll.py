"""Ordinary autograd through steps: all of them, or the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crbp_d2.core.adjoints.base import ADJOINTS, Adjoint, Recorded
from crbp_d2.core.cells.norms import Buffers, buffers_of, step_again
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.errors import ConfigurationError, refuse_other_weights
from crbp_d2.core.options import integer_or_none, number, settle, switch
from crbp_d2.core.solvers.base import Solver
from crbp_d2.core.solvers.steps import PlainSteps
from crbp_d2.core.state import Parts, as_leaves


@ADJOINTS.register("unroll")
@dataclass(frozen=True)
class Unroll(Adjoint):
    """Back-propagation through time, exact for the steps that it goes through; memory `O(length)`.

    With all steps it is `bptt`, with the last of them `tbptt`, with damped ones `phantom`
    (Geng et al. 2111.05177).

    Attributes:
        length: the last steps that gradients go through (the paper's truncated form: 3 of 6);
            `None` for all.
        damping: `tau in (0, 1]`: recorded steps are `h <- (1 - tau) h + tau F(x, h)`, which has the
            same equilibrium; 1 for plain steps. Where nothing is learned all steps are plain ones.
        checkpointed: recompute the steps in the backward pass instead of storing what they need;
            memory is then one state a step. The last step is stored, as penalties differentiate it
            twice.
    """

    length: int | None = None
    damping: float = 1.0
    checkpointed: bool = False

    def __post_init__(self) -> None:
        settle(
            self,
            length=integer_or_none("length", self.length, 1),
            damping=number("damping", self.damping, above=0, most=1),
            checkpointed=switch("checkpointed", self.checkpointed),
        )

    def check(self, solver: Solver, steps: int) -> None:
        """At least `length` steps; through all of them, steps that autograd can go through."""
        if self.length is not None:
            self.recorded(steps)
        elif not isinstance(solver, PlainSteps):
            raise ConfigurationError(
                "gradients through all steps leave none to a solver; use plain steps, or set length"
            )
        elif solver.tolerance is not None:
            raise ConfigurationError(
                "gradients go through all steps, so `tolerance` can't stop them early in training; "
                "set only `test_tolerance`, or set length",
                option="solver.tolerance",
            )
        elif solver.precision != "full":
            raise ConfigurationError(
                f"gradients go through all steps, which leaves none to take in {solver.precision}; "
                "leave precision at full, or set length",
                option="solver.precision",
            )

    def recorded(self, steps: int) -> int:
        """All steps, or the last `length`."""
        if self.length is None:
            return steps
        if self.length > steps:
            raise ConfigurationError(
                f"length is {self.length}, but there are only {steps} steps",
                option="adjoint.length",
            )
        return self.length

    def record(self, circuit: Circuit, state: Parts, steps: int, report: AdjointReport) -> Recorded:
        # Gradients flow into a start that asks for them; else penalties at T = 1 need a leaf.
        begin = state if self.length is None else as_leaves(state)
        trajectory = [tuple(p if p.requires_grad else as_leaves((p,))[0] for p in begin)]
        before = after = trajectory[0]
        for step in range(1, steps + 1):
            # Penalties differentiate with respect to each part by itself, though one may have been
            # computed from another (the h of a ConvLSTM from its c); and they call no hook of it.
            before = tuple(part.view_as(part) for part in trajectory[-1])
            if self.checkpointed and step < steps:
                after = checkpoint(_Recomputed(circuit), *before, use_reentrant=False)
            else:
                after = circuit(before)
            trajectory.append(self._damped(before, after))
        return Recorded(before, after, trajectory[1:])

    def _damped(self, before: Parts, after: Parts) -> Parts:
        if self.damping == 1:
            return after
        return tuple(b + self.damping * (a - b) for a, b in zip(after, before, strict=True))


@ADJOINTS.register("one_step")
@dataclass(frozen=True)
class OneStep(Adjoint):
    """`jfb`, Jacobian-free back-propagation (Fung et al. 2103.12803): the gradient of the last step
    alone. It is the first term of the Neumann series, in the memory of one step."""

    separable: ClassVar[bool] = True

    def record(self, circuit: Circuit, state: Parts, steps: int, report: AdjointReport) -> Recorded:
        before = as_leaves(state)
        after = circuit(before)
        return Recorded(before, after, [after])


class _Recomputed:
    """A step that is computed again in the backward pass, where batch norms must not count it."""

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self._weights: Sequence[Tensor] = ()
        self._buffers: Buffers = []

    def __call__(self, *parts: Tensor) -> Parts:
        weights = list(self._circuit.cell.parameters())
        if not self._weights:
            self._weights, self._buffers = weights, buffers_of(self._circuit.cell)
            return self._circuit(parts)
        refuse_other_weights(self._weights, weights)
        with step_again(self._circuit.cell, self._buffers):
            return self._circuit(parts)
