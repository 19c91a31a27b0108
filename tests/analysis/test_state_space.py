"""State space and its test, on linear circuits whose trajectories are known in closed form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from crbp_d2.analysis.state_space import (
    collect_states,
    compare_distances,
    project,
    write_results,
)
from crbp_d2.core import ConfigurationError
from tests.analysis.linear import images, linear_model, state_factor
from tests.modeling.conftest import load_config  # noqa: F401  a fixture

N, LAST = 4, 16


def states_of(factor: float, count: int = 60):
    records = images(count)
    batches = [records[start : start + 8] for start in range(0, count, 8)]
    return collect_states(linear_model(factor, N), batches, steps=LAST, samples=count), records


def test_states_are_averaged_over_space_at_every_step():
    states, records = states_of(0.7, 10)
    assert states.shape == (10, LAST, 3) and states.dtype == np.float32
    for number, record in enumerate(records):
        mean = record["image"].double().mean(dim=(1, 2)).numpy()
        for step in range(1, LAST + 1):
            assert np.allclose(states[number, step - 1], mean * state_factor(0.7, step), rtol=1e-5)


def test_no_more_samples_are_collected_than_asked_for():
    records = images(9)
    read = []

    def batches():
        for start in range(0, 9, 3):
            read.append(start)
            yield records[start : start + 3]

    states = collect_states(linear_model(0.5, N), batches(), steps=N, samples=4)
    assert len(states) == 4 and read == [0, 3]
    with pytest.raises(ValueError, match="no image"):
        collect_states(linear_model(0.5, N), [], steps=N, samples=4)


def test_one_image_moves_along_one_component():
    states, _ = states_of(0.7, 1)
    space = project(states, N)
    assert space.explained[0] == pytest.approx(1, abs=1e-6)
    assert np.abs(space.projected[..., 1]).max() < 1e-5
    # Distances along the component are those of the states.
    moved = np.linalg.norm(states[0, -1] - states[0, 0])
    assert abs(space.projected[0, -1, 0] - space.projected[0, 0, 0]) == pytest.approx(moved, 1e-4)


def test_the_components_are_those_of_the_trained_steps():
    generator = np.random.default_rng(0)
    states = np.zeros((50, 8, 3), dtype=np.float32)
    states[:, :4, 0] = generator.normal(size=(50, 4)) * 3
    states[:, :4, 1] = generator.normal(size=(50, 4))
    states[:, 4:, 2] = 100.0  # after N: outside the plane of the components
    space = project(states, 4)
    assert space.explained.tolist() == pytest.approx([0.9, 0.1], abs=0.05)
    assert np.abs(space.projected[:, 4:]).max() < 1.0


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.05])
def test_the_distance_of_a_linear_circuit_is_known(factor):
    space = project(states_of(factor, 12)[0], N)
    expected = state_factor(factor, LAST) / state_factor(factor, N) - 1
    assert space.distance == pytest.approx([expected] * 12, rel=1e-3)


def test_fewer_steps_than_trained_for_are_refused():
    with pytest.raises(ConfigurationError, match="3 steps do not reach the trained 4"):
        project(np.zeros((2, 3, 3), dtype=np.float32), 4)


def test_runs_of_known_distances_are_told_apart_and_equal_ones_are_not():
    generator = np.random.default_rng(1)
    near, far = generator.uniform(0, 1, 200), generator.uniform(2, 3, 150)
    apart = compare_distances(near, far)
    assert apart["statistic"] == 1 and apart["p"] < 1e-50 and apart["median_ratio"] < 0.5
    assert (apart["n_first"], apart["n_second"]) == (200, 150)
    same = compare_distances(near, near)
    assert same["statistic"] == 0 and same["p"] == 1 and same["median_ratio"] == 1
    # A shift of a quarter of the range: the distribution functions differ by a quarter.
    shifted = compare_distances(np.linspace(0, 1, 1001), np.linspace(0, 1, 1001) + 0.25)
    assert shifted["statistic"] == pytest.approx(0.25, abs=0.002)


def test_results_are_written_with_their_numbers(tmp_path):
    spaces = {
        "settling": project(states_of(0.5)[0], N),
        "growing": project(states_of(1.05)[0], N),
    }
    tests = write_results(tmp_path / "new", spaces)
    assert tests["settling - growing"]["statistic"] == 1
    content = json.loads((tmp_path / "new" / "state_space.json").read_text())
    assert content["kolmogorov_smirnov"] == tests
    assert content["runs"]["settling"]["steps"] == LAST
    points = np.load(tmp_path / "new" / "state_space.npz")
    assert np.array_equal(points["growing"], spaces["growing"].projected)
    with Image.open(tmp_path / "new" / "state_space.png") as picture:
        assert picture.size[0] > 2500


def test_states_of_several_tensors_show_their_first(load_config):  # noqa: F811
    overrides = ("CRBP.CELL.NAME", "conv_lstm", "CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3)
    torch.manual_seed(0)
    model = build_model(load_config("quick/pathfinder_crbp.yaml", *overrides)).eval()
    records = [{**r, "image": 255 * r["image"][:1]} for r in images(5, size=12)]
    states = collect_states(model, [records], steps=6, samples=5)
    assert states.shape == (5, 6, 4) and np.abs(states[:, -1]).max() <= 1 and states.std() > 0
