"""Configs and mask heads small enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from crbp_d2.config import read_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def load_config() -> Callable[..., CfgNode]:
    """A config of the repository with overrides, on the CPU and without weights to fetch."""

    def load(name: str, *overrides: object) -> CfgNode:
        usual = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", ""]
        return read_config(str(CONFIGS / name), [*usual, *overrides])

    return load
