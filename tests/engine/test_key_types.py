"""Every key of `CRBP` with values of the wrong type: one line, or a value that it takes."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from crbp_d2.config import add_crbp_config, keys_of, read_config
from crbp_d2.config.limits import MOST_STEPS
from crbp_d2.core import ConfigurationError
from crbp_d2.data import set_num_classes
from crbp_d2.engine import Trainer
from tests.engine.runs import QUICK, TINY

WRONG = (
    "some text",
    "[1, 2]",
    "{'a': 1}",
    "-3",
    "1.5",
    "1e400",
    "nan",
    "True",
    "()",
    "[[1]]",
    "''",
)
DATA = ("MODEL.DEVICE", "cpu", "DATASETS.TEST", "()")


def keys() -> list[str]:
    cfg = get_cfg()
    add_crbp_config(cfg)
    return [f"CRBP.{key}" for key in keys_of(cfg.CRBP)]


def build(*overrides: str) -> None:
    cfg = read_config(str(QUICK), [*map(str, TINY), *DATA, *overrides])
    set_num_classes(cfg, cfg.DATASETS.TRAIN[0])
    Trainer.build_model(cfg)


def test_there_are_keys_to_walk():
    assert len(keys()) > 50 and "CRBP.PENALTY.SPECTRAL.POWER_STEPS" in keys()


@pytest.mark.slow
@pytest.mark.parametrize("key", keys())
def test_a_value_of_the_wrong_type_is_told_in_one_line(key):
    refused = 0
    for value in WRONG:
        try:
            build(key, value)
        except ConfigurationError as error:
            refused += 1
            assert "\n" not in str(error)
            assert key.rpartition(".")[2].lower() in str(error).lower(), (value, error)
    assert refused


@pytest.mark.parametrize("key", ["SOLVER.STEPS", "SOLVER.TEST_STEPS", "ADJOINT.TERMS"])
def test_numbers_of_steps_have_a_limit_that_is_named(key):
    build(f"CRBP.{key}", "40")
    with pytest.raises(ConfigurationError, match=rf"CRBP\.{key} is 1,000,000: more than 10,000"):
        build(f"CRBP.{key}", "1000000")
    assert MOST_STEPS == 10_000


def test_the_limit_holds_in_every_phase():
    phases = "[{'FROM': 0.5, 'SOLVER': {'STEPS': 20000}}]"
    with pytest.raises(ConfigurationError, match=r"PHASES, phase 1: SOLVER\.STEPS is 20,000"):
        build("CRBP.PHASES", phases)
