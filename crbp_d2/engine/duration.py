"""A first estimate of how long a training takes, before Detectron2 logs one."""

from __future__ import annotations

import datetime
import logging

from detectron2.engine import HookBase

logger = logging.getLogger(__name__)

AFTER = 3
"""Iterations: in the first ones data workers start, and kernels are chosen. Detectron2 times those
from this one on."""


class EstimateDuration(HookBase):
    """Logs once, after the third iteration of a training or of its resumed rest, about how long the
    others take. To follow Detectron2's `IterationTimer`, in the main process.

    Args:
        has_phases: whether others may do more or less than these, which the line then says.
    """

    def __init__(self, *, has_phases: bool = False) -> None:
        self._but = "; another phase may be slower or faster" if has_phases else ""

    def after_step(self) -> None:
        trainer = self.trainer
        left = trainer.max_iter - trainer.iter - 1
        if trainer.iter - trainer.start_iter + 1 != AFTER or not left:
            return
        seconds = trainer.storage.history("time").latest()
        logger.info(
            "the %d iterations to come take about %s, as the last one took %.2f s; evaluations are "
            "not included%s",
            left,
            datetime.timedelta(seconds=round(seconds * left)),
            seconds,
            self._but,
        )
