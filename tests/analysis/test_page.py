"""The page about trained models: its numbers, its pictures, its size, and its life in a browser."""

# Fixtures are imported, and their names come again as arguments.
# ruff: noqa: F811

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.page import load_recurrent_runs, shared_data_set, write_page
from crbp_d2.analysis.page.encode import fitted, jpeg, sheet
from crbp_d2.analysis.page.painters import painter_of
from crbp_d2.analysis.page.quality import image_quality
from crbp_d2.core import ConfigurationError
from crbp_d2.data import (
    build_test_loader,
    ensure_prepared,
    register_panoptic,
)
from crbp_d2.evaluation import PanopticEvaluator
from tests.analysis.page_runs import (
    DATA,
    LABEL,
    SHAPES,
    SMALLER,
    data_of,
    decoded,
    folders,  # noqa: F401  a fixture
    numbers_of,
    page,  # noqa: F401  a fixture
    run_to,
    write_run,
)
from tests.data.mixed_data import registered
from tests.data.panoptic_data import write_panoptic
from tests.data.shapes_data import registered_shapes
from tests.data.thin_data import write_halves
from tests.evaluation.models import annotations_as_predictions
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

PANOPTIC = [
    "INPUT.MIN_SIZE_TEST", 64, "CRBP.SOLVER.STEPS", 2, "CRBP.ADJOINT.TERMS", 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 6,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0,
]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "val"
    with registered_shapes(folder, SHAPES, scenes=2, seed=5) as made:
        yield made


def test_numbers_and_pictures_are_those_of_models_that_take_as_many_steps(folders, page):
    runs = load_recurrent_runs(list(map(str, folders)))
    found, data = numbers_of(page), data_of(page)
    assert found["steps"] == [1, 2, 3, 4, 5, 6] and found["score"] == "F1"
    trained = [{"label": "crbp", "trained_steps": 3}, {"label": LABEL, "trained_steps": 2}]
    assert found["runs"] == trained
    assert data["numbers"] == found
    records = [DatasetCatalog.get(DATA)[index] for index in range(3)]
    assert [image["name"] for image in found["images"]] == [f"{r['image_id']:06d}" for r in records]
    for number, run in enumerate(runs):
        loader = iter(build_test_loader(run.cfg, DATA, num_workers=0))
        for image, pictures in zip(found["images"], data["pictures"], strict=True):
            (record,) = next(loader)
            answers = pictures["answers"][number]
            opacity = np.asarray(decoded(answers["picture"]).convert("RGBA"))[..., 3]
            height, width = answers["cell"]
            for index, step in enumerate(found["steps"]):
                output, residual = run_to(run, record, step)
                claimed, true = output["sem_seg"].argmax(dim=0) == 1, record["sem_seg"] == 1
                f1 = 2 * (claimed & true).sum() / (claimed.sum() + true.sum())
                assert image["score"][number][index] == pytest.approx(float(f1), abs=1e-6)
                assert image["residual"][number][index] == pytest.approx(residual, rel=1e-4)
                row, column = divmod(answers["frames"][index], answers["columns"])
                frame = opacity[row * height :, column * width :][:height, :width]
                expected = 255 * output["sem_seg"].softmax(dim=0)[1].numpy()
                assert np.abs(frame - expected).max() < 1
        # So that the comparisons above mean something.
        assert len(set(found["images"][0]["score"][number])) > 2


def test_panoptic_numbers_are_those_of_models_that_take_as_many_steps(shapes, tmp_path):
    folder = write_run(
        tmp_path / "run", "quick/shapes_crbp.yaml", *PANOPTIC, "DATASETS.TEST", (SHAPES,)
    )
    runs = load_recurrent_runs([str(folder)])
    output = tmp_path / "page.html"
    written = write_page(runs, SHAPES, [1, 2, 4], images=12, megabytes=5, output=output)
    assert (written.images, written.left_out) == (2, "")
    found = numbers_of(output)
    loader = build_test_loader(runs[0].cfg, SHAPES, num_workers=0)
    truths = json.loads((shapes / "panoptic.json").read_text())
    categories = {category["id"]: category for category in truths["categories"]}
    for (record,), image, truth in zip(loader, found["images"], truths["annotations"], strict=True):
        for index, step in enumerate(found["steps"]):
            answer, residual = run_to(runs[0], record, step)
            assert image["residual"][0][index] == pytest.approx(residual, rel=1e-4)
            segments, infos = answer["panoptic_seg"]
            quality = image_quality(
                segments.numpy(), infos, truth, metadata=MetadataCatalog.get(SHAPES),
                categories=categories,
            )  # fmt: skip
            assert image["score"][0][index] == pytest.approx(quality)
    answers = data_of(output)["pictures"][0]["answers"][0]
    assert decoded(answers["picture"]).size == (2 * 320, 320 * (max(answers["frames"]) // 2 + 1))

    # Of an image without a region there is no residual.
    runs[0].model.roi_heads.box_predictor.test_score_thresh = 1.0
    write_page(runs, SHAPES, [1, 2], images=1, megabytes=5, output=output)
    assert numbers_of(output)["images"][0]["residual"] == [[None, None]]


def test_the_quality_of_one_image_is_that_of_a_data_set_of_one(tmp_path):
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    name = "test_page_one_image"
    content["images"], content["annotations"] = content["images"][:1], content["annotations"][:1]
    data.write(content)
    register_panoptic(name, **data.arguments())
    metadata = MetadataCatalog.get(name)
    ((record, output),) = annotations_as_predictions(name)
    # Registration has corrected the areas.
    content = json.loads(Path(metadata.panoptic_json).read_text())
    categories = {category["id"]: category for category in content["categories"]}

    def quality() -> float:
        ids, infos = output["panoptic_seg"]
        truth = content["annotations"][0]
        return image_quality(ids.numpy(), infos, truth, metadata=metadata, categories=categories)

    assert quality() == pytest.approx(100)
    ids, infos = output["panoptic_seg"]
    ids[:, :14] = 0
    ids[ids == infos[0]["id"]] = 0
    output["panoptic_seg"] = (ids, [one for one in infos if (ids == one["id"]).any()])
    found = quality()
    evaluator = PanopticEvaluator(name, workers=1)
    evaluator.process([record], [output])
    assert found == pytest.approx(evaluator.evaluate()["panoptic_seg"]["PQ"])
    assert 10 < found < 90


def test_frames_of_a_sheet_do_not_show_at_each_others_edges():
    frames = [np.full((20, 27, 3), shade, np.uint8) for shade in (0, 255, 0, 255, 0)]
    whole = sheet(frames)
    assert (whole.columns, whole.cell) == (3, (32, 32))
    picture = np.asarray(decoded(jpeg(whole.picture)))
    for number, frame in enumerate(frames):
        top, left = 32 * (number // 3), 32 * (number % 3)
        assert np.abs(picture[top : top + 20, left : left + 27].astype(int) - frame).max() < 3


@pytest.mark.parametrize("size", [(1, 256), (8, 4096), (1500, 3), (900, 700)], ids=str)
def test_images_of_any_size_have_pictures_in_bounds(size, tmp_path):
    name = "test_page_thin"
    with registered(name, write_halves(tmp_path / "data", *size).arguments()):
        ensure_prepared(name)
        painter = painter_of(name)
        ((record, output),) = annotations_as_predictions(name)
        scene = painter.scene(record)
        picture, quality = scene.answer(output)
    assert quality == pytest.approx(100)
    assert np.array_equal(picture, scene.truth) and picture.shape == scene.image.shape
    assert max(picture.shape) <= 320
    assert decoded(painter.encode_answers(sheet([picture] * 3).picture)).width >= picture.shape[1]
    grey = fitted(np.full(size, 7, np.uint8))
    assert max(grey.shape) <= 320 and min(grey.shape) >= 1 and (grey == 7).all()


def test_an_answer_keeps_the_colours_of_its_objects_from_step_to_step(shapes):
    ensure_prepared(SHAPES)
    record, output = next(annotations_as_predictions(SHAPES))
    scene = painter_of(SHAPES).scene(record)
    assert np.array_equal(scene.answer(output)[0], scene.truth)
    # The same objects in another order, under other ids.
    segments, infos = output["panoptic_seg"]
    renamed = [{**info, "id": info["id"] + 9} for info in reversed(infos)]
    other = {"panoptic_seg": (torch.where(segments > 0, segments + 9, 0), renamed)}
    assert scene.key(other) != scene.key(output)
    assert np.array_equal(scene.answer(other)[0], scene.truth)


def test_the_page_refers_to_nothing_outside_itself(page):
    text = page.read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text
    sources = re.findall(r"""\b(?:src|href|srcset|action)\s*=\s*["']([^"']*)""", text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "{{" not in text and text.count("<script") == text.count("</script>") == 2
    assert "default-src 'none'" in text


def test_figures_and_verdict_of_a_run_are_embedded_and_missing_ones_named(folders, tmp_path):
    run = shutil.copytree(folders[0], tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 255, (30, 2000, 3), np.uint8)
    Image.fromarray(noise).save(run / "steps.png")
    (run / "stability.json").write_text('{"verdict": "settles: rho < 1"}')
    output = tmp_path / "page.html"
    write_page(load_recurrent_runs([str(run)]), DATA, [1], images=1, megabytes=5, output=output)
    text = output.read_text()
    (source, alt) = re.search(r'<img src="([^"]*)"[^>]*alt="([^"]*)"', text).groups()
    assert decoded(source).size == (1400, 21)
    assert alt.startswith("run: Line charts of scores")
    assert "settles: rho &lt; 1" in text
    assert "tools/analyze.py steps" not in text and "tools/analyze.py stability" in text
    (run / "stability.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"stability\.json: has no line of text"):
        write_page(load_recurrent_runs([str(run)]), DATA, [1], images=1, megabytes=5, output=output)


@pytest.mark.parametrize("full", ["page.html", "page.json"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_on_a_full_disk_there_is_neither_page_nor_numbers(full, folders, tmp_path):
    (tmp_path / f".{full}.part").symlink_to("/dev/full")
    runs, output = load_recurrent_runs([str(folders[0])]), tmp_path / "page.html"
    with pytest.raises(OSError, match=r"No space left on device: .*page\.html"):
        write_page(runs, DATA, [1], images=1, megabytes=5, output=output)
    assert not list(tmp_path.glob("page.*"))


def test_figures_about_several_runs_are_taken_from_the_folder_of_the_page(folders, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "steps.png")
    runs = load_recurrent_runs(list(map(str, folders)))
    write_page(runs, DATA, [1], images=1, megabytes=5, output=tmp_path / "page.html")
    together = (tmp_path / "page.html").read_text()
    assert "<h3>Together</h3>" in together and 'alt="All runs: Line charts of scores' in together
    write_page(runs[:1], DATA, [1], images=1, megabytes=5, output=tmp_path / "page.html")
    assert "Together" not in (tmp_path / "page.html").read_text()


def test_the_size_is_kept_by_leaving_out_the_last_images(folders, page, tmp_path):
    runs = load_recurrent_runs([str(folders[0])])
    output = tmp_path / "page.html"
    write_page(runs, DATA, range(1, 7), images=3, megabytes=20, output=output)
    whole, everything = output.stat().st_size, numbers_of(output)
    bound = (whole - 1000) / 1e6
    written = write_page(runs, DATA, range(1, 7), images=3, megabytes=bound, output=output)
    assert output.stat().st_size <= 1e6 * bound
    assert written.images == 2
    assert written.left_out.startswith("Left out: the last 1 of 3 images")
    shown = re.search('<p class="notice">(Left out.*?)</p>', output.read_text())[1]
    assert re.sub("</?code>", "", shown) == written.left_out
    assert "Raise --megabytes" in written.left_out
    assert numbers_of(output)["images"] == everything["images"][:2]
    assert "Left out" not in page.read_text()
    with pytest.raises(ConfigurationError, match="--megabytes 0.01: the page with one image"):
        write_page(runs, DATA, [1, 2], images=3, megabytes=0.01, output=output)


def test_runs_that_cannot_be_compared_are_refused(folders, tmp_path):
    other = write_run(
        tmp_path / "other", "quick/pathfinder_crbp.yaml", *SMALLER,
        "DATASETS.TEST", ("pathfinder_small_val",),
    )  # fmt: skip
    texts = [str(folders[0]), str(other)]
    differs = "differs: crbp has pathfinder_tiny_val, other has pathfinder_small_val.*--dataset"
    with pytest.raises(ConfigurationError, match=differs):
        shared_data_set(load_recurrent_runs(texts))
    assert (
        shared_data_set(load_recurrent_runs(texts, data_sets=("pathfinder_tiny_test",)))
        == "pathfinder_tiny_test"
    )
    empty = write_run(
        tmp_path / "empty", "quick/pathfinder_crbp.yaml", *SMALLER, "DATASETS.TEST", ()
    )
    with pytest.raises(ConfigurationError, match="empty: DATASETS.TEST of config.yaml is empty"):
        shared_data_set(load_recurrent_runs([str(empty)]))
    with pytest.raises(ConfigurationError, match="several runs are called crbp"):
        load_recurrent_runs([str(folders[0]), str(folders[0])])
    forward = write_run(
        tmp_path / "forward", "quick/pathfinder_feedforward.yaml", "CRBP.CELL.CHANNELS", 4
    )
    with pytest.raises(ConfigurationError, match="forward.*has 0 recurrent circuits"):
        load_recurrent_runs([str(forward)])


def test_a_state_that_is_not_finite_names_the_run(folders, tmp_path):
    (run,) = load_recurrent_runs([f"diverging={folders[0]}"])
    with torch.no_grad():
        next(find_recurrence(run.model).parameters()).fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="diverging: .*give fewer --steps"):
        write_page([run], DATA, [1], images=1, megabytes=5, output=tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_other_files_are_not_overwritten_with_numbers(folders, tmp_path):
    runs = load_recurrent_runs([str(folders[0])])
    results = tmp_path / "results.json"
    results.write_text('{"panoptic_seg": {"PQ": 50}}')
    with pytest.raises(ConfigurationError, match=r"results\.json is in the way"):
        write_page(runs, DATA, [1], images=1, megabytes=5, output=tmp_path / "results.html")
    assert "PQ" in results.read_text()


def test_one_command_writes_the_page(folders, tmp_path):
    command = [
        sys.executable, CONFIGS.parent / "tools" / "analyze.py", "page", f"C-RBP={folders[0]}",
        "--output", tmp_path / "page.html", "--images", "2",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 images" in done.stdout
    assert numbers_of(tmp_path / "page.html")["steps"] == [1, 2, 3, 4, 5, 6]


def test_a_mistake_is_named_by_the_command(folders, tmp_path):
    command = [
        sys.executable, CONFIGS.parent / "tools" / "analyze.py", "page",
        folders[0], "--steps", "all",
        "--output", tmp_path / "page.html",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--steps: 'all' is no step" in done.stderr
    assert "Traceback" not in done.stderr
