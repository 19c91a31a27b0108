"""Pictures of predictions: claim maps, panels, and the tool on tiny models with random weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from crbp_d2.analysis.images import (
    PanopticTruth,
    find_images,
    load_predictors,
    model_input,
    output_names,
    panoptic_truth,
)
from crbp_d2.analysis.predictions import (
    DARKEST,
    claim_colours,
    claim_map,
    claimed_at,
    panoptic_picture,
)
from crbp_d2.analysis.runs import load_run
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError, ensure_prepared, register_panoptic, set_num_classes
from crbp_d2.data.pathfinder import PathfinderImages, load_sample
from crbp_d2.evaluation import drawing
from crbp_d2.evaluation.drawing import GAP, MINIMUM_SIDE, side_by_side, title_height
from tests.data.mixed_data import registered
from tests.data.panoptic_data import HEIGHT, WIDTH, write_panoptic
from tests.evaluation.models import tiny_config
from tests.modeling.conftest import CONFIGS

NAME = "test_predictions_panoptic"
CONTOUR = "quick/pathfinder_bptt.yaml"
PANOPTIC = "quick/shapes_crbp.yaml"
SMALLER = {
    # Without a prior of the background an untrained model claims pixels.
    CONTOUR: [
        *["CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3, "CRBP.SOLVER.STEPS", 3],
        *["MODEL.SEM_SEG_HEAD.PRIOR", 0.5],
    ],
    PANOPTIC: [
        *["CRBP.CELL.CHANNELS", 8, "CRBP.SOLVER.STEPS", 2, "INPUT.MIN_SIZE_TEST", 64],
        *["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)],
        *["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 5],
        *["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0],
    ],
}  # fmt: skip
PANEL = round(WIDTH * MINIMUM_SIDE / HEIGHT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    written = write_panoptic(tmp_path_factory.mktemp("predictions") / "data")
    with registered(NAME, written.arguments()):
        ensure_prepared(NAME)
        yield written


@pytest.fixture
def run_of(tmp_path):
    """The folder of a tiny model with random weights, as a training leaves it."""

    def make(config: str, name: str = "tiny") -> Path:
        cfg = read_config(str(CONFIGS / config), ["MODEL.DEVICE", "cpu", *SMALLER.get(config, ())])
        if config == PANOPTIC:
            set_num_classes(cfg, NAME)
        torch.manual_seed(0)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
        return folder

    return make


def test_pixels_are_claimed_at_the_step_from_which_on_they_stay():
    histories = ["0000", "1111", "0011", "0101", "1110", "1011", "0001"]
    masks = np.array([[step == "1" for step in history] for history in histories]).T
    claimed = claimed_at(masks.reshape(4, 1, 7))
    assert claimed.tolist() == [[0, 1, 3, 4, 0, 3, 4]]


def test_only_claimed_pixels_have_the_colour_of_their_step():
    image = np.array([[0, 100, 200, 255]], dtype=np.uint8)
    found = claim_colours(image, np.array([[0, 1, 5, 0]]), 5)
    first, last = (viridis(at) for at in (DARKEST, 1.0))
    assert found.tolist() == [[[0] * 3, first, last, [255] * 3]]
    longer = claim_colours(image, np.array([[0, 1, 5, 0]]), 9)
    assert longer[0, 1].tolist() == first and longer[0, 2].tolist() == viridis(0.5 + DARKEST / 2)


def viridis(at: float) -> list[int]:
    return list(mpl.colormaps["viridis"](at, bytes=True)[:3])


def test_panels_stand_side_by_side_under_their_titles():
    panels = [
        ("image", np.full((80, 60, 3), 10, np.uint8)),
        ("a name much too long for its panel", np.full((80, 90, 3), 200, np.uint8)),
    ]
    found = side_by_side(panels)
    strip = title_height(80)
    assert found.shape == (80 + strip, 60 + GAP + 90, 3)
    assert (found[strip:, :60] == 10).all() and (found[strip:, 60 + GAP :] == 200).all()
    assert (found[:, 60 : 60 + GAP] == 255).all()
    titles = found[:strip].min(axis=(0, 2)) < 128
    assert titles[:60].any() and titles[60 + GAP :].any()
    # Cut before the edge of the panel.
    assert not titles[-GAP:].any()


def test_inputs_are_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.PNG", "a/1.jpg", "a/notes.txt", "b/3.png", "b/1.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    found = find_images(["b/3.png", "a", "b/*.png"])
    assert list(map(str, found)) == ["b/3.png", "a/1.jpg", "a/2.PNG", "b/1.png"]
    names = output_names(found, Path("out"))
    assert list(map(str, names)) == ["out/3", "out/1", "out/2", "out/1_2"]
    for wrong in ("c", "b/*.jpg", "c.png"):
        with pytest.raises(ConfigurationError, match=r"--input .*: no image there"):
            find_images([wrong])
    with pytest.raises(ConfigurationError, match=r"--output: .*3\.png is one of the images"):
        output_names(found, tmp_path / "b")


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_input_is_prepared_as_by_the_default_predictor(channels, data, tmp_path):
    cfg = tiny_config(NAME)
    cfg.INPUT.FORMAT, cfg.INPUT.MAX_SIZE_TEST = channels, 80
    cfg.MODEL.WEIGHTS = ""
    predictor = DefaultPredictor(cfg)
    predictor.model = lambda batch: batch
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    rotated = Image.Exif()
    rotated[274] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=rotated)
    found = model_input(tmp_path / "image.png", cfg)
    expected = predictor(np.rot90(pixels, -1)[..., ::-1])
    assert (found["height"], found["width"]) == (50, 30) == (expected["height"], expected["width"])
    assert found["image"].shape[-2:] == (80, 48)
    assert torch.equal(found["image"], expected["image"])


def test_the_truth_is_that_of_the_same_file_alone(data, tmp_path):
    truth = PanopticTruth(MetadataCatalog.get(NAME))
    assert truth.images(2) == [data.images / "0.jpg", data.images / "1.jpg"]
    segments, infos = truth.of(data.images / "1.jpg")
    assert segments.shape == (HEIGHT, WIDTH) and len(infos) == 5
    shutil.copy(data.images / "1.jpg", tmp_path / "other.jpg")
    assert truth.of(tmp_path / "other.jpg") is None
    shutil.copy(data.images / "0.jpg", tmp_path / "1.jpg")
    assert truth.of(tmp_path / "1.jpg") is None
    shutil.copy(data.images / "1.jpg", tmp_path / "1.jpg")
    assert (truth.of(tmp_path / "1.jpg")[0] == segments).all()


def test_panoptic_pictures_have_the_truth_of_known_images(data, tmp_path, run_of, demo):
    Image.open(data.images / "0.jpg").convert("L").save(tmp_path / "grey.png")
    output = tmp_path / "out"
    arguments = ("--input", data.images / "2.jpg", tmp_path / "grey.png", "--output", output)
    demo(run_of(PANOPTIC), *arguments)
    assert {path.name for path in output.iterdir()} == {"2.png", "grey.png"}
    height = MINIMUM_SIDE + title_height(MINIMUM_SIDE)
    sizes = [Image.open(output / name).size for name in ("2.png", "grey.png")]
    assert sizes == [(3 * PANEL + 2 * GAP, height), (2 * PANEL + GAP, height)]


def test_several_models_draw_the_first_images_of_the_data_set(data, tmp_path, run_of, demo, capsys):
    run = run_of(PANOPTIC)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    common = ("--count", 1, "--output", tmp_path / "out")
    demo(run, other, f"third={run}", *common)
    (picture,) = (tmp_path / "out").iterdir()
    assert picture.name == "0.png"
    assert Image.open(picture).width == 5 * PANEL + 4 * GAP
    for arguments, message in (
        ((run, f"tiny={other}"), "several runs are called tiny"),
        ((run, "--steps", 3), "CRBP.SOLVER.TEST_STEPS"),
        ((run, run_of(CONTOUR, "contour")), "tiny is a PanopticFPN, contour a SemanticSegmentor"),
    ):
        with pytest.raises(SystemExit):
            demo(*arguments, *common)
        assert message in capsys.readouterr().err


def test_a_photograph_is_drawn_smaller_than_it_is_segmented(data, tmp_path, run_of, monkeypatch):
    monkeypatch.setattr(drawing, "LONGEST_SIDE", 600)
    run = load_run(str(run_of(PANOPTIC)))
    large = tmp_path / "large.png"
    Image.open(data.images / "0.jpg").resize((900, 600)).save(large)
    assert (model_input(large, run.cfg)["height"], run.label) == (600, "tiny")
    picture = panoptic_picture(large, [run], MetadataCatalog.get(NAME))
    assert picture.shape == (400 + title_height(400), 2 * 600 + GAP, 3)


def test_own_images_need_the_classes_of_the_data_set_alone(tmp_path, run_of):
    name = "test_predictions_missing"
    written = write_panoptic(tmp_path / "data")
    register_panoptic(name, **written.arguments())
    own = shutil.copy(written.images / "0.jpg", tmp_path)
    shutil.rmtree(written.folder)
    folder = str(run_of(PANOPTIC))
    try:
        with pytest.raises(DatasetError, match="no such folder"):
            load_predictors([folder], data_set=name)
        (run,) = load_predictors([folder], data_set=name, needs_data=False)
        assert panoptic_truth(run) is None and run.cfg.DATASETS.TEST[0] == name
        picture = panoptic_picture(Path(own), [run], MetadataCatalog.get(name))
        assert picture.shape[1] == 2 * PANEL + GAP
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_model_whose_classes_have_no_name_is_refused(tmp_path, run_of):
    folder = run_of(CONTOUR)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"TEST:\n  - \w+\n", "TEST: []\n", config))
    with pytest.raises(ConfigurationError, match="name a data set with --dataset"):
        load_predictors([str(folder)], needs_data=False)


def test_claim_maps_end_in_the_mask_of_the_last_step(run_of):
    run = load_run(str(run_of(CONTOUR)))
    image, _ = load_sample(PathfinderImages("tiny", seed=1, size=1)[0])
    claimed = claim_map(run, image, 5)
    run.model.sem_seg_head.recurrence.test_steps = 5
    with torch.no_grad():
        background, contour = run.model([{"image": torch.from_numpy(image)[None]}])[0]["sem_seg"]
    assert 0 < (claimed > 0).mean() < 1
    assert ((claimed > 0) == (contour > background).numpy()).all()
    assert claimed.max() <= 5


def test_contour_models_write_pictures_and_steps(tmp_path, run_of, demo):
    run = run_of(CONTOUR)
    demo(run, "--count", 1, "--output", tmp_path / "out")
    names = {"000000.png", "000000.pdf", "000000.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    claimed = np.loadtxt(tmp_path / "out" / "000000.csv", delimiter=",", dtype=int)
    assert claimed.shape == (40, 40) and set(np.unique(claimed)) <= set(range(7))
    # Any grey image of any size, and colour becomes grey.
    pixels = np.random.default_rng(0).integers(0, 256, (30, 51, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    demo(run, "--input", tmp_path / "own.png", "--output", tmp_path / "own", "--steps", 2)
    claimed = np.loadtxt(tmp_path / "own" / "own.csv", delimiter=",", dtype=int)
    assert claimed.shape == (30, 51) and set(np.unique(claimed)) <= {0, 1, 2}


def test_models_of_similar_names_have_tables_of_their_own(tmp_path, run_of, demo):
    run = run_of(CONTOUR)
    count = ("--count", 1, "--steps", 2, "--output", tmp_path / "out")
    demo(f"C-RBP={run}", f"C RBP={run}", *count)
    tables = sorted(path.name for path in (tmp_path / "out").glob("*.csv"))
    assert tables == ["000000_C_RBP.csv", "000000_C_RBP_2.csv"]


def test_a_broken_image_is_named_before_anything_is_written(tmp_path, run_of, demo, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(images / "whole.png")
    content = (images / "whole.png").read_bytes()
    (images / "cut.png").write_bytes(content[: len(content) // 2])
    (images / "text.png").write_text("no image")
    with pytest.raises(SystemExit) as end:
        demo(run_of(CONTOUR), "--input", images, "--output", tmp_path / "out")
    error = capsys.readouterr().err
    assert end.value.code == 2 and "copy it anew" in error
    assert all(
        f"{images / name}: not a readable image" in error for name in ("cut.png", "text.png")
    )
    assert "whole.png" not in error and not (tmp_path / "out").exists()


def test_models_without_a_circuit_have_no_claim_map(tmp_path, run_of, demo, capsys):
    with pytest.raises(SystemExit):
        demo(run_of("quick/pathfinder_feedforward.yaml"), "--output", tmp_path / "out")
    assert "RecurrentSemSegHead" in capsys.readouterr().err


def test_deep_images_are_converted_as_those_of_the_data_set(data, tmp_path, run_of, demo, capsys):
    name = "test_predictions_deep"
    written = write_panoptic(tmp_path / "data")
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + 1000).astype(np.uint16)
    Image.fromarray(values).save(written.images / "0.jpg", "png")
    shutil.copy(written.images / "0.jpg", tmp_path / "own.png")
    folder = run_of(PANOPTIC)
    own = ("--input", tmp_path / "own.png", "--output", tmp_path / "own")
    with pytest.raises(SystemExit):
        demo(folder, *own)
    assert "own.png: values of more than the 8 bits" in capsys.readouterr().err
    register_panoptic(name, **written.arguments(), intensity_range=(1000, 3399))
    try:
        record = DatasetCatalog.get(name)[0]
        shown = np.asarray(Image.open(record["file_name"]))
        assert len(np.unique(shown)) == 256
        run = load_run(str(folder), data_sets=[name])
        for path in (tmp_path / "own.png", written.images / "0.jpg"):
            batch = model_input(path, run.cfg)
            expected = model_input(Path(record["file_name"]), run.cfg)
            assert torch.equal(batch["image"], expected["image"])
        demo(folder, *own, "--dataset", name)
        demo(folder, "--count", 1, "--output", tmp_path / "out", "--dataset", name)
        # The second with the ground truth.
        assert Image.open(tmp_path / "own" / "own.png").width == 2 * PANEL + GAP
        assert Image.open(tmp_path / "out" / "0.png").width == 3 * PANEL + 2 * GAP
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
