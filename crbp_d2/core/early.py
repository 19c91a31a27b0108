"""A state of an earlier step, for a loss that makes a circuit answer before its last step."""

from __future__ import annotations

import math

import torch

from crbp_d2.core.circuit import Circuit
from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.forward import Observer
from crbp_d2.core.state import Parts, as_leaves
from crbp_d2.core.unrolled import Estimator


class EarlyStep:
    """One step before the last, drawn at random, and recorded once more after the run.

    Its gradient is the one-step gradient, so that it costs one step of time and memory whatever the
    number of steps and the estimator of the last state.

    Args:
        steps: `T` of the run, at least 2.
        begin: the step is drawn uniformly from those after `begin * T`, the last left out.
    """

    def __init__(self, steps: int, begin: float) -> None:
        first = min(math.floor(begin * steps) + 1, steps - 1)
        # On the CPU, as reading it from a GPU would wait for all that runs there.
        self.step = int(torch.randint(first, steps, ()))
        self._before: Parts = ()

    def watch(self, start: Parts, observe: Observer | None) -> Observer:
        """An observer that keeps the state before the drawn step, and passes all on.

        Args:
            start: `h_0` of the run to watch.
            observe: where to pass states on to.
        """
        self._before = start

        def seen(step: int, parts: Parts) -> None:
            if step == self.step - 1:
                self._before = parts
            if observe is not None:
                observe(step, parts)

        return seen

    def record(self, circuit: Circuit) -> Parts:
        """The state of the drawn step, recorded with one step of gradients."""
        return circuit(as_leaves(self._before))


def require_early(begin: float | None, steps: int, estimator: Estimator) -> None:
    """A fraction in [0, 1), and an earlier step to draw.

    Raises:
        ConfigurationError: it isn't, or there is none.
    """
    if begin is None:
        return
    if not 0 <= begin < 1:
        raise ConfigurationError(
            f"early_from must lie in [0, 1), or be None, got {begin}", option="early_from"
        )
    if steps < 2:
        raise ConfigurationError("early_from needs at least 2 steps", option="early_from")
    if not estimator.plain_steps:
        raise ConfigurationError(
            "early_from does not go with deq or forward_acceleration: what a solver evaluates are "
            "no steps of the circuit",
            option="early_from",
        )
