"""The results that `TEST.EXPECTED_RESULTS` asks for, looked at before they are computed."""

from __future__ import annotations

from detectron2.config import CfgNode

from crbp_d2.core import ConfigurationError
from crbp_d2.core.errors import choices, did_you_mean
from crbp_d2.evaluation.build import tasks_of


def require_expected_tasks(cfg: CfgNode) -> None:
    """Refuse results that Detectron2 would look for in vain once all is computed.

    Args:
        cfg: with its data sets registered.

    Raises:
        ConfigurationError: they are of a task that the test set is not scored in, or of one of
            several test sets.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return
    if len(cfg.DATASETS.TEST) != 1:
        raise ConfigurationError(
            f"TEST.EXPECTED_RESULTS is {expected!r}: Detectron2 compares those of one data set, "
            f"and DATASETS.TEST names {len(cfg.DATASETS.TEST)}; name one, or set it to []"
        )
    tasks = tasks_of(cfg, cfg.DATASETS.TEST[0])
    for task, *_ in expected:
        if task not in tasks:
            meant = did_you_mean(task, tasks)
            raise ConfigurationError(
                f"TEST.EXPECTED_RESULTS has {task!r}: {cfg.DATASETS.TEST[0]} is scored in "
                f"{choices(tasks)}{f'; {meant}' * bool(meant)}"
            )
