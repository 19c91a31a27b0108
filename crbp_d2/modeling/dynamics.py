"""The dynamics of a recurrence in Detectron2's event storage."""

from __future__ import annotations

from detectron2.utils.events import get_event_storage

from crbp_d2.core import Diagnostics


class DynamicsLog:
    """Logs `recurrence/<name>` for what `Diagnostics.scalars` names, and `recurrence/phase` of a
    training in phases, one iteration late.

    Half of it is known only after the backward pass, whose end a module does not see.
    """

    def __init__(self) -> None:
        self.previous: Diagnostics | None = None

    def begin(self, phase: int | None = None) -> int:
        """Log the iteration before; the number of this one, 0 outside a training loop.

        Args:
            phase: number of that before, `None` where there is but one.
        """
        try:
            storage = get_event_storage()
        except (AssertionError, IndexError):
            # There is none. Detectron2 0.6 can't be asked for that beforehand.
            return 0
        if self.previous is not None:
            scalars = self.previous.scalars()
            if phase is not None:
                scalars = {**scalars, "phase": float(phase)}
            storage.put_scalars(
                smoothing_hint=False, **{f"recurrence/{name}": v for name, v in scalars.items()}
            )
        self.previous = None
        return int(storage.iter)

    def keep(self, diagnostics: Diagnostics) -> None:
        """Remember this iteration's, whose backward pass is to come."""
        self.previous = diagnostics
