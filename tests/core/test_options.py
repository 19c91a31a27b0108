"""Numbers and switches of every part: whatever is one is taken, and nothing else."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from crbp_d2.core import (
    ADJOINTS,
    CELLS,
    PENALTIES,
    SOLVERS,
    Chunks,
    ConfigurationError,
    EarlyState,
    Recurrence,
    Registry,
    WeightSchedule,
)
from tests.core.circuits import TanhCell

REGISTRIES = {registry.kind: registry for registry in (SOLVERS, ADJOINTS, PENALTIES, CELLS)}
ALWAYS = {"cell": {"channels": 8}}


def options_of_type(*kinds: str) -> list[tuple[str, str, str, Any]]:
    """Kind of part, its name, the option and its default, of all options of some types."""
    found = []
    for kind, registry in REGISTRIES.items():
        for name in registry:
            for option, parameter in registry.options(name).items():
                annotation = str(parameter.annotation).replace(" | None", "")
                if annotation in kinds:
                    found.append((kind, name, option, parameter.default))
    return found


def make(kind: str, name: str, option: str, value: object) -> object:
    options = {**ALWAYS.get(kind, {}), option: value}
    return REGISTRIES[kind].build(name, **options)


def example(default: Any, fallback: Any) -> Any:
    return fallback if default in (None, inspect.Parameter.empty) else default


@pytest.mark.parametrize(("kind", "name", "option", "default"), options_of_type("int"))
def test_whole_numbers_of_any_kind_are_taken_and_nothing_else(kind, name, option, default):
    if (kind, name) == ("solver", "torchdeq"):
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    number = example(default, 8)
    for same in (np.int64(number), torch.tensor(number)):
        made = make(kind, name, option, same)
        kept = getattr(made, option, number)
        assert kept == number and type(kept) is int
    for wrong in (True, np.True_, float(number), str(number), -3, float("nan")):
        with pytest.raises(ConfigurationError):
            make(kind, name, option, wrong)


@pytest.mark.parametrize(("kind", "name", "option", "default"), options_of_type("float", "Weight"))
def test_finite_numbers_are_taken_and_nothing_else(kind, name, option, default):
    number = example(default, 0.5)
    make(kind, name, option, np.float32(number))
    for wrong in (True, str(number), float("nan"), float("inf"), None, [number]):
        if wrong is None and default is None:
            continue
        with pytest.raises(ConfigurationError):
            make(kind, name, option, wrong)


@pytest.mark.parametrize(("kind", "name", "option", "default"), options_of_type("bool"))
def test_a_switch_is_no_number_and_no_text(kind, name, option, default):
    make(kind, name, option, not default)
    for wrong in (1, 0, "false", "True", None):
        with pytest.raises(ConfigurationError):
            make(kind, name, option, wrong)


def test_a_part_that_does_not_look_at_its_options_gets_none_of_another_kind():
    registry = Registry("solver")

    @registry.register("careless")
    class Careless:
        def __init__(self, *, count=3, rate=0.5, signed=False, method="one", other=None):
            self.given = count, rate, signed, method, other

    made = registry.build("careless", count=4, rate=1, signed=True, method="two", other="any")
    assert made.given == (4, 1, True, "two", "any")
    for option, wrong, kind in (
        ("count", 4.5, "an integer"), ("count", True, "an integer"), ("rate", "fast", "a number"),
        ("rate", False, "a number"), ("signed", 3, "True or False"), ("method", 2, "a name"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=f"{option} must be {kind}") as found:
            registry.build("careless", **{option: wrong})
        assert found.value.option == f"solver.{option}"


@pytest.mark.parametrize("option", ["steps", "test_steps", "spread"])
def test_numbers_of_steps_are_whole(option):
    steps = {"steps": 5, option: 3}
    recurrence = Recurrence(TanhCell(), **{**steps, option: np.int64(3)})
    drive = torch.rand(2, 6, dtype=torch.float64)
    assert type(getattr(recurrence, option)) is int
    assert recurrence(drive, steps=np.int64(2)).diagnostics.steps.tolist() == [2, 2]
    for wrong in (True, 3.0, "3", -1):
        with pytest.raises(ConfigurationError, match=option):
            Recurrence(TanhCell(), **{**steps, option: wrong})
        with pytest.raises(ConfigurationError, match="steps"):
            recurrence(drive, steps=wrong)


def test_numbers_of_wrappers_are_checked_too():
    recurrence = Recurrence(TanhCell(), steps=5)
    assert Chunks(recurrence, np.int64(2)).samples == 2
    for wrong in (True, 2.0, 0):
        with pytest.raises(ConfigurationError, match="chunk_samples"):
            Chunks(recurrence, wrong)
    for begin in (True, "0.5", 1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="early_from"):
            EarlyState(recurrence, begin)
    with pytest.raises(ConfigurationError, match="compile_steps"):
        Recurrence(TanhCell(), compile_steps="False")
    for points in (((0, float("nan")),), (("0", 1.0),), ((0, True),)):
        with pytest.raises(ConfigurationError, match="schedule"):
            WeightSchedule(points)
