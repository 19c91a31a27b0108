"""How a recurrent head is trained, and phases of training that differ in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crbp_d2.core import ConfigurationError, Recurrence, RecurrenceResult, wrapped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """One way to train a recurrent head.

    Attributes:
        recurrence: the circuit with its learning algorithm.
        chunk_samples: compute at most this many samples at a time; `None` for all at once.
        every_step: the loss is the mean over all recorded steps.
        early_loss_weight: factor of `loss_early`.
        early_from: see `crbp_d2.core.EarlyState`; `None` for no such loss.

    Raises:
        ConfigurationError: they don't go together.
    """

    recurrence: Recurrence
    chunk_samples: int | None = None
    every_step: bool = False
    early_loss_weight: float = 0.0
    early_from: float | None = None

    def __post_init__(self) -> None:
        # Refused here if it does not go together, and not at the first batch.
        _ = self.run

    @property
    def run(self) -> Callable[..., RecurrenceResult]:
        """The recurrence, wrapped as asked for; a wrapper holds nothing of its own."""
        return wrapped(
            self.recurrence, chunk_samples=self.chunk_samples, early_from=self.early_from
        )

    def __str__(self) -> str:
        found = self.recurrence
        spread = f" +- {found.spread}" if found.spread else ""
        penalties = "".join(f", {penalty.name} penalty" for penalty in found.penalties)
        early = ", early loss" if self.early_from is not None else ""
        return f"{found.steps}{spread} steps, {found.adjoint}{penalties}{early}"


@dataclass(frozen=True)
class Phase:
    """A part of training before the last one.

    Attributes:
        end: the first iteration after it; where it is that of the phase before, there is none.
        recipe: how the head is trained in it. Its recurrence has the cell of the head's.
    """

    end: int
    recipe: Recipe


class Phases:
    """The recipes of a training, by iteration.

    Args:
        earlier: phases before the last one, by their ends.
        last: from then on, and without a training loop.

    Raises:
        ConfigurationError: ends do not ascend, or a phase trains another cell.
    """

    def __init__(self, earlier: Sequence[Phase], last: Recipe) -> None:
        ends = [phase.end for phase in earlier]
        if ends != sorted(ends):
            raise ConfigurationError(f"phases must end one after the other, not at {ends}")
        if any(phase.recipe.recurrence.cell is not last.recurrence.cell for phase in earlier):
            raise ConfigurationError("all phases must train the same cell")
        self._earlier, self._last = tuple(earlier), last
        self._current: int | None = None

    def at(self, iteration: int) -> Recipe:
        """The recipe of an iteration; logs where another one begins."""
        number = sum(iteration >= phase.end for phase in self._earlier)
        recipe = self._earlier[number].recipe if number < len(self._earlier) else self._last
        if self._earlier and number != self._current:
            count = len(self._earlier) + 1
            logger.info("iteration %d: phase %d of %d: %s", iteration, number + 1, count, recipe)
        self._current = number
        return recipe

    @property
    def number(self) -> int | None:
        """Of the phase of the last `at`, from 1; `None` where there is but one."""
        return None if self._current is None or not self._earlier else self._current + 1
