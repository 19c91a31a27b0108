"""The stability report, on a linear circuit whose numbers are known in closed form."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image

from crbp_d2.analysis.stability import (
    Dynamics,
    measure_dynamics,
    radius_after,
    verdict,
    write_report,
)
from tests.analysis.linear import images, linear_model, state_factor

STEPS = 5


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, -0.7])
def test_a_linear_circuit_is_measured_exactly(factor):
    torch.manual_seed(0)
    records = images(5)
    dynamics = measure_dynamics(
        linear_model(factor, STEPS),
        [records[:2], records[2:]],
        trained_steps=STEPS,
        samples=4,
        bound=0.4,
    )
    assert dynamics.radius == pytest.approx([abs(factor)] * 4, rel=1e-6)
    assert dynamics.lcp == pytest.approx(max(factor - 0.4, 0) ** 2, rel=1e-9)
    assert len(dynamics.change) == 4 * STEPS and all(len(row) == 4 for row in dynamics.change)
    for step, row in enumerate(dynamics.change, start=1):
        expected = abs(factor ** (step - 1) / state_factor(factor, step))
        assert row == pytest.approx([expected] * 4, rel=1e-9)
    # Both runs end at a^4N h_0 from each other; the random start has the norm of the state at N.
    bound = abs(factor) ** (4 * STEPS) * state_factor(factor, STEPS)
    bound /= abs(state_factor(factor, 4 * STEPS))
    assert all(d <= bound * 1.01 + abs(factor) ** (4 * STEPS) for d in dynamics.distance)
    if abs(factor) < 0.8:
        assert dynamics.agreement == pytest.approx([1.0] * 4) and max(dynamics.distance) < 1e-3
    if factor > 1:
        assert min(dynamics.distance) > 0.01


def test_the_radius_is_that_at_the_step_asked_for():
    found = radius_after(linear_model(0.3, STEPS), images(3), steps=2)
    assert found.tolist() == pytest.approx([0.3] * 3)


def test_without_a_sample_there_is_no_report():
    with pytest.raises(ValueError, match="no image was given"):
        measure_dynamics(linear_model(0.5, 2), [], trained_steps=2, samples=3, bound=0.9)


def settling(radius: float, change: float) -> Dynamics:
    return Dynamics(
        trained_steps=2,
        change=[[change, change]] * 8,
        radius=[radius - 0.1, radius + 0.1],
        lcp=0.0,
        agreement=[1.0, 0.5],
        distance=[0.0, 0.0],
    )


@pytest.mark.parametrize(
    ("radius", "change", "later", "word"),
    [
        (0.8, 0.001, 0.949, "contracting"),
        (0.8, 0.001, 0.93, "drifting"),
        (1.2, 0.001, 0.95, "settled"),
        (0.8, 0.1, 0.96, "restless"),
        (1.2, 0.1, 0.3, "forgetting"),
    ],
)
def test_the_verdict_follows_from_radius_change_and_score(radius, change, later, word):
    line = verdict(settling(radius, change), {2: 0.95, 4: 0.95, 8: later}, "F1", 1)
    assert line.startswith(f"{word}: rho {radius:.2f} +- 0.14, F1 0.950 -> {later:.3f} at 4N")
    assert "IoU 0.75" in line
    in_percent = verdict(settling(radius, change), {2: 95.0, 8: 100 * later}, "PQ", 100)
    assert in_percent.startswith(f"{word}: ") and f"PQ 95.0 -> {100 * later:.1f}" in in_percent


def test_a_circuit_that_has_learned_nothing_is_not_praised_for_keeping_it():
    assert verdict(settling(0.8, 0.0), {2: 0.01, 8: 0.01}, "F1", 1).startswith("unlearned: ")
    assert verdict(settling(0.8, 0.0), {2: 0.5, 8: 0.5}, "PQ", 100).startswith("unlearned: ")
    nothing = verdict(settling(0.8, 0.0), {2: math.nan, 8: math.nan}, "PQ", 100)
    assert nothing.startswith("unlearned: ")


def test_a_radius_is_shown_on_its_side_of_one():
    scores = {2: 0.9, 8: 0.9}
    assert "rho 0.9987 +-" in verdict(settling(0.9987, 0.0), scores, "F1", 1)
    assert "rho 1.0013 +-" in verdict(settling(1.0013, 0.0), scores, "F1", 1)
    assert "rho 0.99 +-" in verdict(settling(0.99, 0.0), scores, "F1", 1)


def test_the_report_is_written_with_its_numbers(tmp_path):
    dynamics = dataclasses.replace(settling(0.8, 0.0), change=[[0.5, 0.25], [0.0, 0.0]] * 4)
    line = write_report(tmp_path / "new", dynamics, {2: 0.9, 4: 0.9, 8: 0.9}, "F1", 1)
    content = json.loads((tmp_path / "new" / "stability.json").read_text())
    assert content["verdict"] == line and content["scores"] == {"2": 0.9, "4": 0.9, "8": 0.9}
    assert content["radius"] == dynamics.radius and content["change"] == dynamics.change
    with Image.open(tmp_path / "new" / "stability.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]
