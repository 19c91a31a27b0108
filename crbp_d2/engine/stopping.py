"""Hooks about the end of a training: by itself, or because a signal asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from detectron2.engine import EvalHook, HookBase
from detectron2.utils import comm

from crbp_d2.interruption import Interrupted, asked, at_once, held_back

from .stall import Stall

logger = logging.getLogger(__name__)


class EvaluateTrained(EvalHook):
    """Detectron2's, but for what it does after a failure in the last iteration: there it evaluates
    the model, which waits for processes that have not failed and train on."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            # Detectron2 counts one too many where a resumed training had none left to train.
            self.trainer.storage.iter = max(self.trainer.start_iter, self.trainer.max_iter)
            super().after_train()


class StopWhenAsked(HookBase):
    """Ends a training after the iteration in which a signal came to one of its processes, with a
    checkpoint. To be the last of the hooks.

    Args:
        stall: tells where one does not answer.

    Raises:
        Interrupted: in all processes, after the same iteration.
    """

    def __init__(self, stall: Stall) -> None:
        self._stall = stall

    def after_step(self) -> None:
        # An iteration is not left before all know: none would wait for one that has ended.
        with self._stall.told(self.trainer.iter):
            number = max(comm.all_gather(asked()))
        if not number:
            return
        trainer = self.trainer
        name = f"model_{trainer.iter:07d}"
        if comm.is_main_process() and trainer.iter + 1 < trainer.max_iter:
            trainer.checkpointer.save(name, iteration=trainer.iter)
        end = Interrupted(
            number,
            f"stopped after {trainer.iter + 1} of {trainer.max_iter} iterations; the same command "
            f"with --resume goes on, from {trainer.cfg.OUTPUT_DIR}",
        )
        logger.warning(end.line)
        comm.synchronize()
        raise end


def batches(loader: Iterable[Any]) -> Generator[Any, None, None]:
    """The batches of a loader; closed, it ends the data workers, which nobody else can: a signal to
    all processes would leave the last iteration without data."""
    iterator = iter(loader)
    with held_back():
        first = next(iterator)
    yield first
    yield from iterator


def evaluated(trainer: Any, evaluate: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The results of an evaluation in or after a training, which a signal cuts short.

    Within a training of several processes it doesn't, as each waits for the others.

    Args:
        trainer: of the training.
        evaluate: does it, and returns the results.

    Returns:
        Nothing, of one that was cut short within a training: `StopWhenAsked` ends that.

    Raises:
        Interrupted: it was cut short after the training.
    """
    within = trainer.iter < trainer.max_iter
    if within and comm.get_world_size() > 1:
        return evaluate()
    try:
        with at_once():
            return evaluate()
    # The signal may have ended a data worker, which PyTorch then reports.
    except (Interrupted, RuntimeError) as error:
        if not asked():
            raise
        if within:
            return {}
        raise Interrupted(
            asked(), "the training has ended; the same command with --resume evaluates the model"
        ) from error
