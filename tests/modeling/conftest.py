"""Configs and mask heads small enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from crbp_d2.config import add_crbp_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def load_config() -> Callable[..., CfgNode]:
    """A config of the repository with overrides, on the CPU and without weights to fetch."""

    def load(name: str, *overrides: object) -> CfgNode:
        cfg = get_cfg()
        add_crbp_config(cfg)
        cfg.merge_from_file(str(CONFIGS / name))
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *overrides])
        return cfg

    return load
