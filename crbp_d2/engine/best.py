"""The model of the best score, kept beside the checkpoints of its training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import BestCheckpointer

from crbp_d2.core import ConfigurationError
from crbp_d2.core.errors import choices, did_you_mean
from crbp_d2.evaluation.scores import scores_of
from crbp_d2.weights import read_checkpoint

from .checkpoint import BEST, Checkpointer

logger = logging.getLogger(__name__)

_SCORE = "score"


class KeepBest(BestCheckpointer):
    """Detectron2's, which would let a training resume from the best model, and forget its score.

    The file holds the score, so that a resumed training replaces it only by a better one. To follow
    `EvaluateTrained`, in the main process.

    Args:
        period: iterations between evaluations; 0 for one at the end alone.
        checkpointer: of the training.
        metric: a score as the event storage calls it; higher is better.
    """

    def __init__(self, period: int, checkpointer: Checkpointer, metric: str) -> None:
        # Its own saving adds the score.
        super().__init__(period, self, metric, file_prefix=BEST)
        self._target, self._metric = checkpointer, metric

    def save(self, name: str, iteration: int) -> None:
        """Write the model with its score.

        Args:
            name: of the file, without its ending.
            iteration: of the evaluation.

        Raises:
            OSError: it can't be written; an earlier one is as before.
        """
        value, _ = self.trainer.storage.latest()[self._metric]
        self._target.save_model(name, iteration=iteration, **{_SCORE: {self._metric: value}})

    def before_train(self) -> None:
        """Go on from the score of the file, if the training goes on."""
        path = Path(self._target.save_dir) / f"{BEST}.pth"
        if not self.trainer.start_iter or not path.is_file():
            return
        try:
            stored = read_checkpoint(str(path))
            value, iteration = float(stored[_SCORE][self._metric]), stored["iteration"]
        except ConfigurationError as error:
            logger.warning("--resume: %s: %s; the next evaluation replaces it", path, error)
        except (KeyError, TypeError, ValueError):
            logger.warning(
                "--resume: %s is not the best by TEST.BEST_METRIC %s; the next evaluation "
                "replaces it",
                path,
                self._metric,
            )
        else:
            self.best_metric, self.best_iter = value, iteration


def require_best_metric(cfg: CfgNode) -> None:
    """Refuse a `TEST.BEST_METRIC` that the test data have no score of, before anything is trained.

    Args:
        cfg: with its data sets registered and prepared.

    Raises:
        ConfigurationError: naming the scores that there are.
    """
    metric = cfg.TEST.BEST_METRIC
    if not metric:
        return
    scores = scores_of(cfg)
    if metric not in scores:
        meant = did_you_mean(metric, scores)
        raise ConfigurationError(
            f"TEST.BEST_METRIC is {metric!r}: {_allowed(scores)}{f'; {meant}' * bool(meant)}"
        )
    if not 0 < cfg.TEST.EVAL_PERIOD < cfg.SOLVER.MAX_ITER:
        logger.warning(
            "TEST.BEST_METRIC %s: the model at the end is the only one that is scored; set "
            "TEST.EVAL_PERIOD to fewer iterations than SOLVER.MAX_ITER",
            metric,
        )


def _allowed(scores: Mapping[str, str]) -> str:
    """What to choose from: of the scores of single classes, which may be hundreds, their form."""
    if not scores:
        return "nothing is scored, as DATASETS.TEST is empty; name a data set there"
    return f"no score of DATASETS.TEST; choose from {choices(set(scores.values()))}"
