"""What all tests share: none hears another's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import detectron2
import pytest
from detectron2.utils.logger import setup_logger

PACKAGES = ("crbp_d2", "fvcore", "detectron2", detectron2.__name__)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Detectron2 sets a log up once a process, writes it to the standard output of that moment, and
    keeps it from the root: a later test would write to a closed file, and its `caplog` be deaf.
    """
    yield
    for name in PACKAGES:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    setup_logger.cache_clear()
