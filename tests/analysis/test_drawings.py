"""Drawings of one's own: dark or bright, clear or coloured, photographed, of any size."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from crbp_d2.analysis.drawings import (
    LONGEST_SIDE,
    Strokes,
    line_width,
    prepare_drawing,
    read_drawing,
    strokes_of,
)
from crbp_d2.analysis.images import own_sample
from crbp_d2.analysis.predictions import claim_figure
from crbp_d2.analysis.runs import load_run
from crbp_d2.data import DatasetError
from crbp_d2.data.pathfinder import PathfinderImages, load_sample
from crbp_d2.data.pathfinder.config import TINY

STROKES = Strokes(width=1.5, dash=3.0, gap=2.0, dot=3.5)
MODEL = "crbp://pathfinder_tiny_bptt"


def pathfinder_image(index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return load_sample(PathfinderImages(TINY, seed=9, size=index + 1)[index])


def enlarged(factor: int = 8) -> np.ndarray:
    """A Pathfinder image drawn with lines `factor` times as wide, `(H, W)`; not square."""
    image, _ = load_sample(PathfinderImages(TINY.scaled(40 * factor), seed=9, size=1)[0])
    return np.pad(image, ((0, 0), (0, 4 * factor)))


def line(width: int, angle: float = 0.0, size: tuple[int, int] = (200, 300)) -> np.ndarray:
    drawing = np.zeros(size, np.uint8)
    rows, columns = size
    along = np.array([math.cos(angle), math.sin(angle)]) * rows / 3
    ends = (np.array([columns / 2, rows / 2]) + along * np.array([[-1], [1]])).astype(int)
    cv2.line(drawing, ends[0].tolist(), ends[1].tolist(), 255, width)
    return drawing


@pytest.mark.parametrize("index", range(3))
def test_an_image_of_the_training_stays_as_it_is(index, tmp_path):
    image, _ = pathfinder_image(index)
    Image.fromarray(image).save(tmp_path / "one.png")
    sample = own_sample(tmp_path / "one.png", STROKES)
    assert sample.notices == [] and sample.load()[1] is None
    assert (sample.load()[0] == image).all()


@pytest.mark.parametrize(("dtype_levels", "notices"), [((255, 0), 1), ((40, 225), 2)])
def test_dark_lines_on_light_become_bright_ones_on_black(dtype_levels, notices):
    ground, lines = dtype_levels
    image, _ = pathfinder_image()
    drawn = np.rint(ground + (lines - ground) * (image / 255)).astype(np.uint8)
    if lines > ground:
        drawn = 255 - drawn
    found, told = prepare_drawing(drawn, STROKES)
    assert told[0] == "dark on light: turned over" and len(told) == notices
    assert np.abs(found.astype(int) - image).mean() < 8
    assert ((found > 127) == (image > 127)).mean() > 0.95


def test_a_drawing_on_nothing_is_laid_on_what_its_lines_are_not(tmp_path):
    image, _ = pathfinder_image()
    for ink in ((255, 255, 255), (0, 0, 0), (200, 30, 60)):
        clear = np.dstack([np.full((*image.shape, 3), ink, np.uint8), image])
        Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
        found, _ = prepare_drawing(read_drawing(tmp_path / "clear.png"), STROKES)
        assert ((found > 127) == (image > 127)).mean() > 0.95
        assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.98


def test_palettes_and_grey_with_opacity_are_read_as_colours_are(tmp_path):
    image, _ = pathfinder_image()
    Image.fromarray(np.dstack([image, np.full_like(image, 255)]), "LA").save(tmp_path / "la.png")
    palette = Image.fromarray(image).quantize(256, dither=Image.Dither.NONE)
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "p_clear.png", transparency=0)
    for name in ("la", "p"):
        assert (read_drawing(tmp_path / f"{name}.png") == image).all()
    assert (read_drawing(tmp_path / "p_clear.png") == image)[image > 0].mean() > 0.9


def test_a_photograph_under_uneven_light_becomes_lines_on_black(tmp_path):
    drawn = enlarged(16)
    rows, columns = np.indices(drawn.shape) / max(drawn.shape)
    light = 0.45 + 0.55 * np.exp(-((rows - 0.2) ** 2) - (columns - 0.3) ** 2)
    paper = 230 - 190 * cv2.GaussianBlur(drawn / 255, (0, 0), 2)
    noise = np.random.default_rng(0).normal(0, 5, (*drawn.shape, 3))
    photo = np.clip((paper * light)[..., None] + noise, 0, 255).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=80)
    sample = own_sample(tmp_path / "photo.jpg", STROKES)
    found = sample.load()[0]
    clean, _ = prepare_drawing(drawn, STROKES)
    assert [notice.partition(":")[0].partition(" from")[0] for notice in sample.notices] == [
        "dark on light", "its ground was made black and its lines white", "scaled down",
    ]  # fmt: skip
    clean = cv2.resize(clean, found.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.corrcoef(found.ravel(), clean.ravel())[0, 1] > 0.9
    assert np.median(found) == 0 and found.max() > 240


@pytest.mark.parametrize("width", [3, 4, 9, 20])
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.1])
def test_the_width_of_lines_is_measured(width, angle):
    drawing = line(width, angle)
    across = (drawing[:, drawing.shape[1] // 2] > 0).sum() * math.cos(angle)
    assert line_width(drawing) == pytest.approx(across, abs=0.8)


def test_a_drawing_without_a_dot_is_told_so():
    crossed = np.maximum(line(9, 0.4), line(9, -1.2))
    for drawing in (crossed, np.bitwise_not(crossed)):
        assert any("no dot" in notice for notice in prepare_drawing(drawing, STROKES)[1])
    with_dot = cv2.circle(crossed.copy(), (60, 60), 10, 255, -1)
    assert not any("no dot" in notice for notice in prepare_drawing(with_dot, STROKES)[1])
    # A model of unknown strokes may look for something else.
    assert not any("no dot" in notice for notice in prepare_drawing(crossed, None)[1])


def test_nothing_has_no_width_and_stays():
    for value in (0, 80, 255):
        empty = np.full((30, 50), value, np.uint8)
        found, told = prepare_drawing(empty, STROKES)
        assert (found == empty).all() and told == []
    assert line_width(np.zeros((30, 50), np.uint8)) == 0


@pytest.mark.parametrize("factor", [4, 8, 20])
def test_wide_lines_are_scaled_down_to_those_of_the_training(factor):
    found, (told,) = prepare_drawing(enlarged(factor), STROKES)
    assert told.startswith(f"scaled down from {44 * factor} x {40 * factor} to ")
    assert found.shape == pytest.approx((40, 44), rel=0.2)
    # Of unknown strokes only the size counts.
    found, told = prepare_drawing(enlarged(factor), None)
    assert max(found.shape) == min(44 * factor, LONGEST_SIDE)
    assert len(told) == (44 * factor > LONGEST_SIDE)


def test_thin_lines_of_a_very_large_drawing_are_still_seen():
    large = line(2, 0.4, (2000, 3100))
    found, (_, told) = prepare_drawing(large, STROKES)
    assert "scaled down from 3100 x 2000 to 320 x 206 pixels" in told
    assert found.max() > 200
    assert line_width(found) <= 3.5


def test_strokes_are_those_of_the_data_that_the_model_was_trained_on():
    assert strokes_of(load_run(MODEL)) == STROKES
    reduced = strokes_of(load_run(MODEL, data_sets=["pathfinder_14_val"]))
    assert reduced == Strokes(width=0.75, dash=2.5, gap=3.0, dot=3.0)
    assert str(STROKES).startswith("lines 1.5 pixels wide, in dashes of 3 with gaps of 2")


def test_what_would_lose_something_is_refused(tmp_path):
    deep = (np.arange(1200).reshape(30, 40) * 50).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pages = [Image.fromarray(np.zeros((9, 9, 4), np.uint8), "RGBA") for _ in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for name in ("deep.png", "pages.tif"):
        with pytest.raises(DatasetError, match=name.replace(".", r"\.")):
            read_drawing(tmp_path / name)


def test_a_picture_says_where_nothing_was_found():
    image = np.zeros((20, 30), np.uint8)
    claims = [(label, np.full(image.shape, step), 4) for label, step in (("one", 0), ("two", 3))]
    titles = [axis.get_title() for axis in claim_figure(image, claims, 6).axes]
    assert "one: nothing found" in titles and "two" in titles


def test_the_tool_traces_a_drawing_and_says_what_it_changed(tmp_path, demo, capsys):
    drawn = enlarged(4)
    clear = np.dstack([np.zeros((*drawn.shape, 3), np.uint8), drawn])
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    image, mask = pathfinder_image()
    Image.fromarray(image).save(tmp_path / "small.png")
    demo(
        *("BPTT=" + MODEL, "--input", tmp_path / "clear.png", tmp_path / "small.png"),
        *("--steps", 6, "--output", tmp_path / "out"),
    )
    told = capsys.readouterr().err
    assert f"{tmp_path / 'clear.png'}: dark on light: turned over; scaled down from 176 x" in told
    assert f"{tmp_path / 'small.png'}:" not in told
    assert f"BPTT was trained on {STROKES}" in told
    traced = np.loadtxt(tmp_path / "out" / "small.csv", delimiter=",") > 0
    assert (traced & (mask > 0)).sum() > 0.9 * (traced | (mask > 0)).sum()
    shape = np.loadtxt(tmp_path / "out" / "clear.csv", delimiter=",").shape
    assert shape == pytest.approx((40, 44), rel=0.2)
