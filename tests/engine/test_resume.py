"""What a resumed run goes on with, where it is used from, and what it can't go on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from crbp_d2.analysis.runs import load_run
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import register_panoptic
from crbp_d2.engine import argument_parser, main, prepare
from tests.data.panoptic_data import write_panoptic
from tests.engine.runs import QUICK, TINY, train
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

LISTED = "test_resume_listed"


@pytest.mark.parametrize(
    ("first", "then"),
    [("adam", "sgd"), ("sgd", "adam"), ("adam", "adamw"), ("adamw", "adam")],
)
def test_another_optimizer_is_named(first, then, tmp_path):
    train(tmp_path, "SOLVER.OPTIMIZER", first)
    message = f"--resume: SOLVER.OPTIMIZER is {then}, but the checkpoint was written with {first}"
    with pytest.raises(ConfigurationError, match=message):
        train(tmp_path, "SOLVER.OPTIMIZER", then, flags=("--resume",))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_same_optimizer_goes_on_whether_or_not_it_clips(optimizer, tmp_path):
    train(tmp_path, "SOLVER.OPTIMIZER", optimizer, "SOLVER.CLIP_GRADIENTS.ENABLED", True)
    options = ("SOLVER.OPTIMIZER", optimizer, "SOLVER.MAX_ITER", 3)
    train(tmp_path, *options, flags=("--resume",))
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 2


def test_an_adam_of_an_older_pytorch_goes_on(tmp_path):
    train(tmp_path, "SOLVER.OPTIMIZER", "adamw")
    stored = torch.load(tmp_path / "model_final.pth", weights_only=True)
    for group in stored["trainer"]["_trainer"]["optimizer"]["param_groups"]:
        group.pop("decoupled_weight_decay", None)
    torch.save(stored, tmp_path / "model_final.pth")
    train(tmp_path, "SOLVER.OPTIMIZER", "adamw", "SOLVER.MAX_ITER", 3, flags=("--resume",))


def test_other_groups_of_weights_are_named(tmp_path):
    train(tmp_path)
    with pytest.raises(ConfigurationError, match=r"--resume: .*SOLVER\.WEIGHT_DECAY_NORM"):
        train(tmp_path, "SOLVER.BIAS_LR_FACTOR", 2.0, flags=("--resume",))


def test_a_checkpoint_of_another_form_is_named_and_the_one_before_taken(tmp_path):
    train(tmp_path)
    stored = torch.load(tmp_path / "model_final.pth", weights_only=True)
    forms = ({}, {"_trainer": {}}, {**stored["trainer"], "_trainer": {"iteration": 1}}, 3)
    for number, broken in enumerate(forms, 1):
        torch.save({**stored, "trainer": broken}, tmp_path / "model_final.pth")
        train(tmp_path, flags=("--resume",))
        log = log_of(tmp_path)
        assert log.count("model_final.pth: holds no state of such a training (") == number
        assert log.count(f"goes on from {tmp_path}/model_0000001.pth in its place") == number


def log_of(output: Path) -> str:
    return (output / "log.txt").read_text()


def test_settings_that_stay_as_they_were_are_reported(tmp_path):
    train(tmp_path, "SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.0)
    options = ("SOLVER.BASE_LR", 0.02, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.MAX_ITER", 3)
    train(tmp_path, *options, flags=("--resume",))
    said = "keeps SOLVER.BASE_LR 0.01, SOLVER.WEIGHT_DECAY 0.0 of its checkpoint"
    assert log_of(tmp_path).count(said) == 1
    train(tmp_path, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.01, flags=("--resume",))
    assert log_of(tmp_path).count("of its checkpoint") == 1


def test_a_run_without_a_checkpoint_says_that_it_starts_anew(tmp_path):
    train(tmp_path, flags=("--resume",))
    assert f"there is no checkpoint in {tmp_path}, the training starts anew" in log_of(tmp_path)


def test_a_period_beyond_the_end_is_reported(tmp_path):
    train(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 3)
    assert "SOLVER.CHECKPOINT_PERIOD 3: no checkpoint before the end" in log_of(tmp_path)


@pytest.fixture
def classes(tmp_path):
    """Data with two classes of things, and with none."""
    names = {"test_resume_things": True, "test_resume_stuff": False}
    for name, things in names.items():
        register_panoptic(name, **write_panoptic(tmp_path / name, things=things).arguments())
    yield list(names)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_data_of_other_classes_are_refused_as_evaluation_refuses_them(classes, tmp_path):
    def run(name: str, *flags: str) -> None:
        words = [
            *("--config-file", CONFIGS / "quick" / "shapes_crbp.yaml", *flags),
            *("OUTPUT_DIR", tmp_path / "run", "DATASETS.TRAIN", (name,), "DATASETS.TEST", "()"),
            *("INPUT.MIN_SIZE_TRAIN", "(32,)", "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 1),
            *("CRBP.SOLVER.STEPS", 2, "TEST.PICTURES", 0, "MODEL.DEVICE", "cpu"),
        ]
        main(argument_parser().parse_args(list(map(str, words))))

    run(classes[0])
    with pytest.raises(ConfigurationError, match="has in another shape .*box_predictor"):
        run(classes[1], "--resume")


def test_a_finished_run_can_be_used_from_any_folder(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    written = write_panoptic(here / "data")
    there.mkdir()
    files = {"images": "images", "panoptic_json": "panoptic.json", "panoptic_pngs": "pngs"}
    (written.folder / "sets.yaml").write_text(yaml.safe_dump([{"name": LISTED, **files}]))
    monkeypatch.chdir(here)
    train(Path("runs/start"))
    start = ("MODEL.WEIGHTS", "runs/start/model_final.pth")
    train(Path("runs/one"), *start, "DATASETS.FILE", "data/sets.yaml")
    monkeypatch.chdir(there)
    saved = read_config(str(here / "runs" / "one" / "config.yaml"))
    assert str(here / "runs" / "one") == saved.OUTPUT_DIR
    assert str(here / "runs" / "start" / "model_final.pth") == saved.MODEL.WEIGHTS
    assert str(here / "data" / "sets.yaml") == saved.DATASETS.FILE
    # Evaluated by its folder, resumed by its config.
    assert load_run("../here/runs/one").folder == Path("../here/runs/one")
    words = ["--config-file", "../here/runs/one/config.yaml", "SOLVER.MAX_ITER", "3", "--resume"]
    main(argument_parser().parse_args(words))
    assert not list(there.iterdir())
    assert torch.load(here / "runs/one/model_final.pth", weights_only=True)["iteration"] == 2
    DatasetCatalog.remove(LISTED)
    MetadataCatalog.remove(LISTED)


def test_the_config_of_a_run_stays_that_of_its_model(tmp_path):
    train(tmp_path)
    config, weights = tmp_path / "config.yaml", ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    before = config.read_text()
    train(tmp_path, *weights, "CRBP.SOLVER.TEST_STEPS", 5, flags=("--eval-only",))
    for flags in ((), ("--resume",)):
        with pytest.raises(ConfigurationError):
            train(tmp_path, "MODEL.WEIGHTS", "absent.pth", "CRBP.CELL.CHANNELS", 6, flags=flags)
    assert config.read_text() == before
    train(tmp_path, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    assert read_config(str(config)).SOLVER.MAX_ITER == 3
    train(tmp_path / "new", *weights, "CRBP.SOLVER.TEST_STEPS", 5, flags=("--eval-only",))
    assert read_config(str(tmp_path / "new" / "config.yaml")).CRBP.SOLVER.TEST_STEPS == 5


def test_addresses_stay_as_they_are():
    weights = "detectron2://COCO-Detection/a.pkl"
    cfg = read_config(str(QUICK), [*map(str, TINY), "MODEL.WEIGHTS", weights])
    prepare(cfg, eval_only=True)
    assert weights == cfg.MODEL.WEIGHTS


def test_a_training_that_goes_on_by_other_keys_says_so(tmp_path):
    train(tmp_path)
    train(tmp_path, "SOLVER.MAX_ITER", 4, flags=("--resume",))
    assert "goes on with other values" not in log_of(tmp_path)
    train(tmp_path, "SOLVER.MAX_ITER", 6, "CRBP.ALGORITHM", "rbp", flags=("--resume",))
    assert "goes on with other values: CRBP.ALGORITHM 'rbp' (was 'crbp')" in log_of(tmp_path)
