"""State space and its test, on linear circuits whose trajectories are known in closed form."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from scipy.stats import ks_2samp

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands import COMMANDS
from crbp_d2.analysis.runs import load_run
from crbp_d2.analysis.state_space import (
    collect_states,
    compare_distances,
    project,
    write_results,
)
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import run_command
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
    relative, published = write_results(tmp_path / "new", spaces)
    assert relative["settling - growing"]["statistic"] == 1
    content = json.loads((tmp_path / "new" / "state_space.json").read_text())
    assert content["kolmogorov_smirnov"] == relative
    assert content["kolmogorov_smirnov_mean_square"] == published
    assert relative != published
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


@pytest.mark.parametrize("components", [2, 3])
def test_the_published_distance_is_a_mean_square_on_the_components(components):
    states = np.random.default_rng(2).normal(size=(7, 6, 3)).astype(np.float32)
    space = project(states, 4, components)
    fitted = states[:, :4].reshape(-1, 3)
    axes = np.linalg.svd(fitted - fitted.mean(axis=0), full_matrices=False)[2][:components]
    moved = (states[:, 5] - states[:, 3]) @ axes.T
    assert space.mean_square == pytest.approx(np.mean(moved**2, axis=1), rel=1e-4)
    assert space.projected.shape == (7, 6, components)
    if components == 3:  # all of them: a rotation keeps lengths
        size = np.linalg.norm(states[:, 3], axis=1)
        assert space.mean_square == pytest.approx((space.distance * size) ** 2 / 3, rel=1e-4)


@pytest.mark.parametrize("components", [1, 4])
def test_components_that_there_are_not_are_refused(components):
    states = np.zeros((5, 6, 3), dtype=np.float32)
    with pytest.raises(ConfigurationError, match=f"{components} components: 20 states of 3 chan"):
        project(states, 4, components)


@pytest.fixture
def runs(tmp_path, load_config):  # noqa: F811
    """Folders of two trainings over other numbers of steps, 2 and 5, with random weights."""
    folders = []
    for trained in (2, 5):
        keys = ("CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3, "CRBP.SOLVER.SPREAD", 0)
        cfg = load_config("quick/pathfinder_crbp.yaml", *keys, "CRBP.SOLVER.STEPS", trained)
        folders.append(tmp_path / f"over_{trained}")
        folders[-1].mkdir()
        (folders[-1] / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(trained)
        torch.save({"model": build_model(cfg).state_dict()}, folders[-1] / "model_final.pth")
    return folders


def mean_squares(folder, trained: int, last: int, samples: int):
    """The published distance, from the cell itself and a singular value decomposition."""
    run = load_run(str(folder))
    batch = next(iter(scoring_batches(run.cfg, run.data_set, samples)))
    states = []
    with torch.no_grad():
        images = torch.stack([record["image"] for record in batch])
        drive = run.model.backbone((images - run.model.pixel_mean) / run.model.pixel_std)["stem"]
        state = torch.zeros_like(drive)
        for _ in range(last):
            state = run.model.sem_seg_head.recurrence.cell(drive, state)
            states.append(state.double().mean(dim=(2, 3)).numpy())
    fitted = np.concatenate(states[:trained])
    axes = np.linalg.svd(fitted - fitted.mean(axis=0), full_matrices=False)[2][:2]
    return np.mean(((states[-1] - states[trained - 1]) @ axes.T) ** 2, axis=1)


def test_runs_of_other_numbers_of_steps_are_asked_at_one_last_step(runs, tmp_path, capsys):
    output = tmp_path / "out"
    given = ["--last-step", "7", "--samples", "9", "--output", str(output)]
    run_command("", COMMANDS, ["states", *map(str, runs), *given])
    content = json.loads((output / "state_space.json").read_text())
    squares = []
    for folder, trained in zip(runs, (2, 5), strict=True):
        found = content["runs"][folder.name]
        assert (found["trained_steps"], found["steps"]) == (trained, 7)
        squares.append(mean_squares(folder, trained, 7, 9))
        assert found["mean_square"] == pytest.approx(squares[-1], rel=1e-3)
        assert found["median_mean_square"] == pytest.approx(np.median(squares[-1]), rel=1e-3)
    test = content["kolmogorov_smirnov_mean_square"]["over_2 - over_5"]
    every = np.sort(np.concatenate(squares))
    heights = [np.searchsorted(np.sort(one), every, side="right") / 9 for one in squares]
    assert test["statistic"] == pytest.approx(np.abs(heights[0] - heights[1]).max())
    assert test["p"] == pytest.approx(ks_2samp(*squares).pvalue)
    assert "over_2 - over_5, mean square: KS statistic" in capsys.readouterr().out


def test_a_last_step_before_the_trained_one_is_refused_before_anything_runs(runs, tmp_path, capsys):
    output = tmp_path / "out"
    for given, message in (
        (["--last-step", "4"], "--last-step 4: b=.*over_5 was trained for 5 steps; give at least"),
        (["--last-step", "20000"], "--last-step is 20,000: more than 10,000"),
        (["--last-step", "7", "--factor", "3"], "not allowed with argument"),
        (["--components", "1"], "--components must be at least 2, got 1"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command(
                "",
                COMMANDS,
                ["states", f"a={runs[0]}", f"b={runs[1]}", *given, "--output", str(output)],
            )
        assert ended.value.code == 2 and re.search(message, capsys.readouterr().err)
        assert not output.exists()
