"""The tools on a panoptic model and images of mixed sizes, drawn and real ones."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from crbp_d2.analysis.batches import CONTOUR_BATCH, scoring_batches
from crbp_d2.analysis.commands import steps as command
from crbp_d2.analysis.observed import observe_circuit
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.runs import load_run
from crbp_d2.analysis.steps import (
    DifferingScoresError,
    StepScores,
    read_csv,
    require_alike,
)
from crbp_d2.core import ConfigurationError
from crbp_d2.data import ensure_prepared
from crbp_d2.evaluation.drawing import GAP, drawn_size, title_height
from tests.analysis.panoptic_models import tiny_model, write_own_answers, write_run
from tests.data.mixed_data import registered, write_mixed
from tests.data.panoptic_data import Written
from tests.data.real_data import needs_real_data, real_arguments
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

DRAWN, NAME = "test_tools_drawn", "test_tools_mixed"
TRAINED, IMAGES = 2, 4
KINDS = ["mixed", pytest.param("nuclei", marks=needs_real_data)]


# Of tests that are not about the data.
once = pytest.mark.parametrize("run", ["mixed"], indirect=True)


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """A run whose answers at its trained step are the truth of its test data."""
    folder = tmp_path_factory.mktemp("tools")
    if request.param == "mixed":
        arguments = write_mixed(folder / "drawn").arguments()
    else:
        arguments = real_arguments(request.param, folder / "drawn", images=IMAGES, first=4)
    resized = ("INPUT.MIN_SIZE_TEST", 64, "CRBP.SOLVER.STEPS", TRAINED)
    with registered(DRAWN, arguments):
        cfg, model = tiny_model(DRAWN, *resized)
        written = write_own_answers(folder / "data", DRAWN, cfg, model)
        with registered(NAME, written.arguments()):
            cfg, model = tiny_model(NAME, *resized)
            yield write_run(folder / "run", cfg, model)


@pytest.fixture
def tool(monkeypatch, capsys):
    def call(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(CONFIGS.parent / "tools" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def of_steps(run, tmp_path, *more: object) -> tuple:
    return "analyze.py", "steps", run, "--output", tmp_path / "out", *more


def test_scores_at_every_step_are_those_of_an_evaluation_for_each(run, tool, tmp_path):
    shown = tool(*of_steps(run, tmp_path, "--steps", "N/2,N,4N", "--check-repeated"))
    assert "largest difference of a score 0\n" in shown
    found = read_csv(tmp_path / "out" / "steps.csv")["run"].scores[NAME]
    quality = {one.step: one.scores["PQ"] for one in found}
    assert quality[TRAINED] == pytest.approx(100)
    assert quality[1] < 99.9
    assert all(value < 100 for step, value in quality.items() if step != TRAINED)


@once
def test_scores_that_differ_end_in_an_error(run, tool, tmp_path, monkeypatch, capsys):
    evaluate = command.evaluate_at_each

    def wrong(*arguments: object) -> list[dict]:
        return [{**scores, "PQ": scores["PQ"] - 0.02} for scores in evaluate(*arguments)]

    monkeypatch.setattr(command, "evaluate_at_each", wrong)
    with pytest.raises(SystemExit) as end:
        tool(*of_steps(run, tmp_path, "--steps", "N", "--check-repeated"))
    assert f"{NAME}: scores of one pass differ" in end.value.code
    assert "at step 2: PQ 100 against 99.98" in end.value.code
    assert not (tmp_path / "out" / "steps.csv").exists()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [(50.0, 50.009, True), (50.0, 50.011, False), (math.nan, math.nan, True), (math.nan, 0, False)],
)
def test_only_rounding_may_differ(one, other, alike):
    found = [StepScores(step, {"PQ": 1.0, "mask_AP": one}, 0.0) for step in (1, 3)]
    repeated = [{"PQ": 1.0, "mask_AP": one}, {"PQ": 1.0, "mask_AP": other}]
    if alike:
        assert require_alike("mine", found, repeated).size <= 1e-4
        return
    with pytest.raises(DifferingScoresError, match=r"mine: .* at step 3: mask_AP"):
        require_alike("mine", found, repeated)


def test_a_verdict_is_about_images_as_training_scores_them(run, tool, tmp_path):
    shown = tool("analyze.py", "stability", run, "--output", tmp_path, "--samples", 4)
    scores = json.loads((tmp_path / "stability.json").read_text())["scores"]
    assert scores[str(TRAINED)] == pytest.approx(100)
    assert f"PQ 100.0 -> {scores[str(4 * TRAINED)]:.1f} at 4N" in shown


@once
def test_stopping_early_is_measured_on_some_of_the_images(run, tool, tmp_path):
    shown = tool("analyze.py", "stopping", run, "--batches", 3, "--output", tmp_path)
    lines = shown.splitlines()
    assert lines[2].startswith("| all steps | 2.0 | 1.00") and "| 100.00 | 100.00 |" in lines[2]
    assert lines[-1] == f"Of the first 3 of {IMAGES} batches alone."
    assert (tmp_path / "early_stopping.md").read_text() == shown


def test_the_page_has_the_scores_of_every_step(run, tool, tmp_path):
    tool("analyze.py", "page", run, "--output", tmp_path / "page.html", "--images", IMAGES)
    images = json.loads((tmp_path / "page.json").read_text())["images"]
    assert len(images) == IMAGES
    assert [image["score"][0][TRAINED - 1] for image in images] == pytest.approx([100] * IMAGES)
    assert any(min(image["score"][0]) < 99.9 for image in images)


def test_the_demo_draws_image_answer_and_truth(run, tool, tmp_path):
    tool("demo.py", run, "--count", 2, "--output", tmp_path)
    metadata = MetadataCatalog.get(NAME)
    images = json.loads(Path(metadata.panoptic_json).read_text())["images"][:2]
    pictures = {path.stem: Image.open(path).size for path in tmp_path.iterdir()}
    for image in images:
        height, width = drawn_size(image["height"], image["width"])
        size = (3 * width + 2 * GAP, height + title_height(height))
        assert pictures.pop(Path(image["file_name"]).stem) == size
    assert not pictures


@once
def test_string_ids_and_images_of_one_name_are_told_apart(run, tool, tmp_path):
    ensure_prepared(NAME)
    written = Written(tmp_path / "data")
    shutil.copytree(MetadataCatalog.get(NAME).panoptic_root, written.pngs)
    content = json.loads(Path(MetadataCatalog.get(NAME).panoptic_json).read_text())
    for number, (image, annotation) in enumerate(
        zip(content["images"], content["annotations"], strict=True)
    ):
        target = written.images / str(number) / f"same{Path(image['file_name']).suffix}"
        target.parent.mkdir(parents=True)
        shutil.copy(Path(MetadataCatalog.get(NAME).image_root) / image["file_name"], target)
        image.update(id=f"case {number}", file_name=f"{number}/{target.name}")
        annotation["image_id"] = image["id"]
    written.write(content)
    with registered("test_tools_strings", written.arguments()):
        common = ("--dataset", "test_tools_strings", "--output")
        tool("analyze.py", "page", run, *common, tmp_path / "page.html", "--steps", "N")
        images = json.loads((tmp_path / "page.json").read_text())["images"]
        assert [image["name"] for image in images] == ["same", "same_2", "same_3", "same_4"]
        assert [image["score"] for image in images] == [[[pytest.approx(100)]]] * IMAGES
        shown = tool("analyze.py", "stopping", run, *common, tmp_path, "--batches", 2)
        assert "| 100.00 | 100.00 |" in shown.splitlines()[2]
        tool("demo.py", run, *common, tmp_path / "o")
    pictures = sorted((tmp_path / "o").iterdir())
    assert [path.name for path in pictures] == [
        "same.png",
        "same_2.png",
        "same_3.png",
        "same_4.png",
    ]
    # With the truth beside each: three panels.
    sizes = [(image["height"], image["width"]) for image in content["images"]]
    widths = [3 * drawn_size(*size)[1] + 2 * GAP for size in sizes]
    assert [Image.open(path).width for path in pictures] == widths


@once
def test_photographs_come_one_by_one_and_contours_in_batches(run):
    cfg = load_run(str(run)).cfg
    assert [len(batch) for batch in scoring_batches(cfg, NAME)] == [1] * IMAGES
    assert scoring_batches(cfg, NAME, 1).batch_size == 1
    with pytest.raises(ConfigurationError, match="--batch-size 8: only images of a Pathfinder"):
        scoring_batches(cfg, NAME, 8)
    contours = scoring_batches(cfg, "pathfinder_tiny_val")
    assert len(next(iter(contours))) == CONTOUR_BATCH
    for size in (0, -1):
        with pytest.raises(ConfigurationError, match="--batch-size must be at least 1"):
            scoring_batches(cfg, NAME, size)


@once
def test_commands_refuse_batches_of_photographs(run, tool, capsys):
    for name in ("stability", "states", "stopping", "steps"):
        with pytest.raises(SystemExit):
            tool("analyze.py", name, run, "--batch-size", 4)
        assert "come one by one" in capsys.readouterr().err


@once
def test_dynamics_are_those_of_a_circuit_that_is_not_stopped(run):
    loaded = load_run(str(run), ["CRBP.SOLVER.TEST_TOLERANCE", "0.9"])
    batch = next(iter(scoring_batches(loaded.cfg, NAME)))
    moving = observe_circuit(loaded.model, batch, [6]).changes
    assert find_recurrence(loaded.model).solver.test_tolerance == 0.9
    assert (moving > 0).all()
