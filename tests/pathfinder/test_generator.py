"""The generator: one image per (config, seed, index), and the geometry that the task promises."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from crbp_d2.data import DatasetError
from crbp_d2.data.parallel import ordered_map
from crbp_d2.data.pathfinder import TINY, PathfinderConfig, contact_sheet, generate, preset
from crbp_d2.data.pathfinder.draw import reduce_bicubic
from crbp_d2.data.pathfinder.growth import turn_table

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_pathfinder.py"
PRESETS = ["14@300", "25@300", "6@300", "14@150", "9@450", "small", "tiny"]


def _digest(config: PathfinderConfig, seed: int, index: int) -> str:
    image, mask, metadata = generate(config, seed, index)
    content = image.tobytes() + mask.tobytes() + metadata["target"].tobytes()
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["tiny", "14@150"])
def test_an_image_depends_on_config_seed_and_index_alone(name):
    draw = functools.partial(_digest, preset(name), 5)
    forward = [draw(index) for index in range(10)]
    backward = [draw(index) for index in reversed(range(10))]
    in_two_processes = list(ordered_map(draw, range(10), workers=2))
    assert forward == backward[::-1] == in_two_processes
    assert len({*forward, *(_digest(preset(name), 6, index) for index in range(10))}) == 20


@functools.lru_cache
def _drawn(name: str) -> list:
    return [generate(preset(name), 7, index) for index in range(12)]


def _scale(config: PathfinderConfig) -> float:
    return config.image_size / config.size


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances (n, m) of the ends of dashes to other dashes, both ways the smaller.

    For dashes that cross this is at most half their length, which is less than any clearance.
    """

    def ends_to_dashes(dashes: np.ndarray, others: np.ndarray) -> np.ndarray:
        ends = dashes.reshape(-1, 2, 1, 2)
        tail, along = others[:, :2], others[:, 2:] - others[:, :2]
        share = ((ends - tail) * along).sum(-1) / (along**2).sum(-1)
        nearest = tail + np.clip(share, 0, 1)[..., None] * along
        return np.linalg.norm(ends - nearest, axis=-1).min(axis=1)

    return np.minimum(ends_to_dashes(first, second), ends_to_dashes(second, first).T)


@pytest.mark.parametrize("name", PRESETS)
def test_no_two_dashes_touch(name):
    config = preset(name)
    for _, _, metadata in _drawn(name):
        contours = [metadata["target"], metadata["rival"], *metadata["distractors"]]
        dashes = np.concatenate(contours)
        contour = np.repeat(np.arange(len(contours)), [len(dashes) for dashes in contours])
        order = np.arange(len(dashes))
        follows = (contour[:, None] == contour) & (np.abs(order[:, None] - order) <= 1)
        distances = np.where(follows, np.inf, _distances(dashes, dashes))
        assert distances.min() >= config.clearance * _scale(config) - 1e-9
        border = config.padding * _scale(config) - 1e-9
        assert border <= dashes.min() and dashes.max() <= config.image_size - border


@pytest.mark.parametrize("name", PRESETS)
def test_contours_turn_within_limits_about_the_middle_of_their_gaps(name):
    config = preset(name)
    margin = config.margin * _scale(config)
    limit = math.pi / 2 / config.continuity
    for _, _, metadata in _drawn(name):
        contours = [metadata["target"], metadata["rival"], *metadata["distractors"]]
        lengths = [config.contour_length] * 2 + [config.distractor_length] * (len(contours) - 2)
        assert [len(contour) for contour in contours] == lengths
        for contour in contours:
            along = contour[:, 2:] - contour[:, :2]
            length = np.linalg.norm(along, axis=1, keepdims=True)
            assert np.allclose(length, config.dash_length * _scale(config))
            along = along / length
            middle_of_gap = contour[:-1, 2:] + margin * along[:-1]
            assert np.allclose(contour[1:, :2], middle_of_gap + margin * along[1:])
            turn = np.arccos(np.clip((along[:-1] * along[1:]).sum(axis=1), -1, 1))
            assert turn.max() <= limit


@pytest.mark.parametrize("name", PRESETS)
def test_long_contours_start_side_by_side_away_from_the_border(name):
    config = preset(name)
    starts = [(m["target"][0, :2], m["rival"][0, :2]) for _, _, m in _drawn(name)]
    for target, rival in starts:
        apart = np.linalg.norm(target - rival)
        assert apart == pytest.approx(config.seed_distance * _scale(config))
        free = min(min(*end, *(config.image_size - end)) for end in (target, rival))
        most = max(min(*end, *(config.image_size - end)) for end in (target, rival))
        assert free >= config.padding * _scale(config) - 1e-9
        assert most >= config.edge_keep * _scale(config) - 1e-9


def test_either_long_contour_is_the_target_with_equal_chance():
    # Only the contour that is grown second may start near the border.
    second = []
    for index in range(600):
        metadata = generate(TINY, 7, index)[2]
        ends = np.array([metadata["target"][0, :2], metadata["rival"][0, :2]])
        near = np.minimum(ends, TINY.size - ends).min(axis=1) < TINY.edge_keep
        if near.any():
            second.append(near[0])
    assert len(second) > 60
    assert abs(np.mean(second) - 0.5) < 3 * 0.5 / math.sqrt(len(second))


@pytest.mark.parametrize("name", PRESETS)
def test_dot_is_at_the_free_end_of_the_target(name):
    config = preset(name)
    radius = config.marker_radius * _scale(config)
    for image, mask, metadata in _drawn(name):
        x, y = metadata["marker"]
        target = metadata["target"]
        assert (x, y) == tuple(target[0, :2])
        # The free end: the first dash leads away from it, to the second.
        ends = target[:2].reshape(4, 2) - (x, y)
        assert np.all(np.diff(np.linalg.norm(ends, axis=1)) > 0)
        rows, columns = np.mgrid[: config.image_size, : config.image_size] + 0.5
        dot = np.hypot(columns - x, rows - y) <= radius - 0.75
        assert dot.any() and mask[dot].all() and image[dot].min() > 200
        # No second dot: a dash is narrower than the dot everywhere else.
        elsewhere = np.hypot(columns - x, rows - y) > 2 * radius + 1
        wider = max(math.ceil(config.thickness * _scale(config)) + 1, 3)
        core = cv2.erode((image > 127).astype(np.uint8), np.ones((wider, wider), np.uint8))
        assert not core[elsewhere].any()


@pytest.mark.parametrize("name", PRESETS)
def test_mask_is_the_target_and_nothing_else(name):
    config = preset(name)
    for image, mask, metadata in _drawn(name):
        assert image.shape == mask.shape == (config.image_size, config.image_size)
        assert image.dtype == mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
        middles = (metadata["target"][:, :2] + metadata["target"][:, 2:]) / 2
        columns, rows = np.floor(middles.T).astype(int)
        assert mask[rows, columns].all()
        others = np.concatenate([metadata["rival"], *metadata["distractors"]])
        drawn = np.zeros_like(mask)
        for tail_x, tail_y, head_x, head_y in np.floor(others).astype(int).tolist():
            cv2.line(drawn, (tail_x, tail_y), (head_x, head_y), 1)
        assert image[drawn > 0].any() and not mask[drawn > 0].any()
        # No light but on contours and dot.
        lit = np.zeros_like(mask)
        thickness = 2 * math.ceil((config.thickness / 2 + 1.5) * max(_scale(config), 1)) + 1
        for contour in (others, metadata["target"]):
            for tail_x, tail_y, head_x, head_y in np.floor(contour).astype(int).tolist():
                cv2.line(lit, (tail_x, tail_y), (head_x, head_y), 1, thickness)
        radius = math.ceil(config.marker_radius * _scale(config) + 1.5)
        cv2.circle(lit, tuple(int(end) for end in metadata["marker"]), radius, 1, cv2.FILLED)
        assert not image[lit == 0].any()


def test_target_falls_into_its_dashes_and_joins_through_its_gaps():
    config = preset("14@300")
    for _, mask, _ in _drawn("14@300"):
        # The dot hides the first dash; background is a component too.
        assert cv2.connectedComponents(mask)[0] == 1 + config.contour_length
        bridge = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
        assert cv2.connectedComponents(cv2.dilate(mask, bridge))[0] == 2


def test_image_at_150_is_the_authors_reduction_of_the_reference():
    for index in range(8):
        reference, mask, _ = generate(preset("14@300"), 1, index)
        reduced, reduced_mask, _ = generate(preset("14@150"), 1, index)
        assert np.array_equal(reduced, _pillow(reference, 150))
        assert np.array_equal(reduced_mask, _pillow(mask * np.uint8(255), 150) > 0.2 * 255)


def _pillow(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [150, 128, 100, 299])
def test_reduction_equals_pillows_on_any_content(size):
    image = np.zeros((300, 300), np.uint8)
    random = np.random.default_rng(0)
    for content in ((0, 0, 300, 300), (40, 60, 171, 283), (0, 21, 33, 34)):
        left, top, right, bottom = content
        image[:] = 0
        image[top:bottom, left:right] = random.integers(0, 256, (bottom - top, right - left))
        assert np.array_equal(reduce_bicubic(image, size, content), _pillow(image, size))


def test_larger_images_show_the_same_task_larger():
    areas = [
        np.mean([generate(preset(f"9@{size}"), 1, i)[1].sum() for i in range(20)])
        for size in (300, 600)
    ]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.06)


def test_turns_follow_a_squared_cosine():
    for continuity in (1.0, 1.8):
        turns = np.array(turn_table(continuity))
        # The variance of the density 2/pi cos^2(y) on |y| < pi/2 is pi^2/12 - 1/2.
        assert turns.std() * continuity == pytest.approx(math.sqrt(math.pi**2 / 12 - 0.5), rel=1e-3)
        assert abs(turns.mean()) < 1e-9 and turns.max() * continuity < math.pi / 2
        inner = np.mean(np.abs(turns) * continuity < math.pi / 4)
        assert inner == pytest.approx(0.5 + 1 / math.pi, abs=1e-3)


def test_contact_sheet_shows_three_tiles_an_image():
    sheet = contact_sheet(TINY, seed=0, count=2)
    assert sheet.shape == (3 * (280 + 8), 2 * (280 + 8), 3)
    assert np.array_equal(sheet, contact_sheet(TINY, seed=0, count=2))


def _prepare(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_contact_sheet_needs_no_images_on_disk(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "tiny.png"
    _prepare(monkeypatch, "--preset", "tiny", "--seed", "3", "--sheet", path)
    assert capsys.readouterr().out == f"{path}\n"
    assert np.array_equal(cv2.imread(str(path)), contact_sheet(TINY, seed=3))
    assert list(tmp_path.rglob("*")) == [path.parent, path]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sheet", "sheet.jpg"], "sheet.jpg: a contact sheet is a PNG; give a name that ends"),
        (["--sheet", "sheet.png", "--preset", "huge"], "unknown Pathfinder preset 'huge'"),
        ([], "give --output FOLDER for images, --sheet FILE.png for a contact sheet, or both"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        _prepare(monkeypatch, *words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["huge", "14", "14@", "@300", "14@60", "2@300", "-6@300"])
def test_unknown_presets_are_refused(name):
    with pytest.raises(ValueError, match=r"preset|dashes"):
        preset(name)


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0},
        {"continuity": 0.5},
        {"padding": 21},
        {"marker_radius": 3},
        {"resize_to": 80},
        {"distractor_count": -1},
        {"contour_length": 1001},
        {"size": 8193},
    ],
)
def test_impossible_configs_are_refused_by_name(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}"):
        dataclasses.replace(TINY, **change)


def test_contours_without_room_end_in_an_error():
    crowded = dataclasses.replace(TINY, contour_length=40)
    with pytest.raises(DatasetError, match="contour_length=40 dashes found no room .* take fewer"):
        generate(crowded, 0, 0)


def test_negative_seed_and_index_are_refused():
    for seed, index in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            generate(TINY, seed, index)
