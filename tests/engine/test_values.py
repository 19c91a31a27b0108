"""Values that Detectron2 takes and fails by are refused before anything is built."""

from __future__ import annotations

import argparse

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils.env import seed_all_rng

from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import Trainer, argument_parser, prepare, setup
from crbp_d2.engine.keys import check_keys
from crbp_d2.engine.values import CHANNELS, CHOICES, LARGEST_SEED
from crbp_d2.mistakes import TRACEBACK, refuse, told
from tests.data.shapes_data import registered_shapes
from tests.engine.runs import trainer_of
from tests.modeling.conftest import CONFIGS

SHAPES = CONFIGS / "quick" / "shapes_feedforward.yaml"


def config(*overrides: object) -> CfgNode:
    return read_config(str(SHAPES), ["MODEL.DEVICE", "cpu", *map(str, overrides)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.MIN_SIZE_TEST", -1),
        ("INPUT.MAX_SIZE_TEST", -1),
        ("INPUT.MAX_SIZE_TEST", 0),
        ("INPUT.MAX_SIZE_TRAIN", -1),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("INPUT.MIN_SIZE_TRAIN", (64, -1)),
        ("TEST.EXPECTED_RESULTS", ["bbox", "AP", 38.5, 0.2]),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5]]),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", "38.5", 0.2]]),
        ("TEST.EXPECTED_RESULTS", [0]),
        ("SEED", 5_000_000_000),
        ("SOLVER.WEIGHT_DECAY_BIAS", "bogus"),
        ("SOLVER.WEIGHT_DECAY_BIAS", (1,)),
        ("SOLVER.BIAS_LR_FACTOR", -1.0),
        ("SOLVER.IMS_PER_BATCH", 10**20),
        ("SOLVER.MAX_ITER", 10**20),
        ("SOLVER.STEPS", (3, 10**20)),
        ("MODEL.PIXEL_MEAN", (10**22,)),
        ("MODEL.RESNETS.DEPTH", 51),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", -1),
        ("MODEL.FPN.OUT_CHANNELS", 0),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", -7),
        ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 0),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 10**20),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1)),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 0)),
        ("MODEL.RPN.CONV_DIMS", ()),
        ("MODEL.RPN.CONV_DIMS", ("a",)),
        ("MODEL.RPN.CONV_DIMS", (-1, 0)),
        ("MODEL.RPN.IOU_THRESHOLDS", (0.7, 0.3)),
        ("MODEL.RPN.IOU_THRESHOLDS", ("a",)),
        ("MODEL.RPN.IOU_LABELS", ("a", 0, 1)),
        ("MODEL.RPN.IOU_LABELS", (0, 1)),
        ("MODEL.ROI_HEADS.IOU_LABELS", ()),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", (0.0,)),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ()),
        ("MODEL.ANCHOR_GENERATOR.SIZES", ((32,), (64,))),
        ("MODEL.ANCHOR_GENERATOR.SIZES", (None,)),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", 1.0),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 3),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
    ],
)
def test_a_number_that_detectron2_fails_by_is_refused_with_its_range(key, value):
    with pytest.raises(ConfigurationError, match=rf"^{key} is .*: must (be|have)") as caught:
        check_keys(config(key, value), eval_only=False)
    assert "\n" not in str(caught.value)


def test_as_many_labels_as_thresholds_ask_for():
    both = ("MODEL.ROI_HEADS.IOU_THRESHOLDS", (0.5, 0.7), "MODEL.ROI_HEADS.IOU_LABELS", (0, -1, 1))
    check_keys(config(*both), eval_only=False)
    with pytest.raises(ConfigurationError, match=r"ROI_HEADS\.IOU_LABELS is .*one more than"):
        check_keys(config(*both[:2]), eval_only=False)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("INPUT.FORMAT", "rgb", "RGB"),
        ("INPUT.FORMAT", "bgr", "BGR"),
        ("MODEL.RESNETS.NORM", "bn", "BN"),
        ("MODEL.FPN.NORM", "gn", "GN"),
        ("MODEL.SEM_SEG_HEAD.NORM", "SyncBn", "SyncBN"),
        ("MODEL.ROI_MASK_HEAD.NORM", "ln", "LN"),
        ("MODEL.ROI_BOX_HEAD.NORM", "frozenbn", "FrozenBN"),
        ("MODEL.RETINANET.NORM", "bn", "BN"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "roialign", "ROIAlign"),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignv2", "ROIAlignV2"),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "smoothl1", "smooth_l1"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "GIoU", "giou"),
        ("MODEL.FPN.FUSE_TYPE", "SUM", "sum"),
    ],
)
def test_a_name_that_detectron2_lacks_is_refused_with_those_it_has(key, value, meant):
    with pytest.raises(ConfigurationError, match=rf"^{key} is '{value}': choose from .*{meant}"):
        check_keys(config(key, value), eval_only=False)
    with pytest.raises(ConfigurationError, match=rf"did you mean .*\b{meant}\b"):
        check_keys(config(key, value), eval_only=False)
    check_keys(config(key, meant), eval_only=False)


def test_the_names_that_are_allowed_are_detectron2s():
    for norm in filter(None, CHOICES["MODEL.FPN.NORM"]):
        assert isinstance(get_norm(norm, 32), torch.nn.Module)
    with pytest.raises(KeyError):
        get_norm("bn", 32)
    for pooler in CHOICES["MODEL.ROI_BOX_HEAD.POOLER_TYPE"]:
        ROIPooler(7, (0.25,), 0, pooler)


@pytest.mark.parametrize("value", ["None", "''"])
def test_no_norm_may_be_written_in_two_ways(value):
    check_keys(config("MODEL.FPN.NORM", value), eval_only=False)


def test_images_have_the_channels_that_the_model_takes():
    check_keys(config("INPUT.FORMAT", "L"), eval_only=False)
    with pytest.raises(ConfigurationError, match=r"^INPUT\.FORMAT is 'RGBA': must have as many"):
        check_keys(config("INPUT.FORMAT", "RGBA"), eval_only=False)
    four = ("MODEL.PIXEL_MEAN", (1.0,) * 4, "MODEL.PIXEL_STD", (1.0,) * 4)
    check_keys(config("INPUT.FORMAT", "RGBA", *four), eval_only=False)
    assert CHANNELS["RGBA"] == 4


def test_a_range_of_sizes_has_two_ends():
    sizes = ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN")
    check_keys(config(*sizes, (32, 64)), eval_only=False)
    for wrong in ((32, 48, 64), (64, 32)):
        with pytest.raises(ConfigurationError, match=r"^INPUT\.MIN_SIZE_TRAIN is .*two sizes"):
            check_keys(config(*sizes, wrong), eval_only=False)
        check_keys(config(*sizes, wrong), eval_only=True)


def test_the_largest_seed_is_one_of_every_process():
    check_keys(config("SEED", LARGEST_SEED), eval_only=False)
    seed_all_rng(LARGEST_SEED + 1023)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_project_passes(path):
    cfg = read_config(str(path))
    check_keys(cfg, eval_only=not cfg.DATASETS.TRAIN)


def test_expected_results_are_of_what_is_scored(tmp_path):
    name = "test_values_shapes"
    with registered_shapes(tmp_path / "data", name, scenes=2, seed=3):
        data = ("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR", tmp_path / "o")

        def expecting(task: str, *more: object) -> None:
            wanted = ("TEST.EXPECTED_RESULTS", [[task, "PQ", 38.5, 0.2]])
            prepare(config(*data, *wanted, *more), eval_only=True)

        expecting("panoptic_seg")
        with pytest.raises(ConfigurationError, match=r"has 'panoptic_sg'.*did you mean panoptic_"):
            expecting("panoptic_sg")
        with pytest.raises(ConfigurationError, match=r"DATASETS\.TEST names 0; name one"):
            expecting("panoptic_seg", "DATASETS.TEST", ())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("MODEL.RESNETS.RES5_DILATION", 3, "AssertionError: res5_dilation cannot be 3"),
        ("MODEL.FPN.IN_FEATURES", (), "AssertionError"),
        ("MODEL.RESNETS.NUM_GROUPS", 5, "AssertionError: Must set"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "AssertionError: assert len"),
    ],
)
def test_a_model_that_detectron2_can_not_build_ends_in_a_line(key, value, reason):
    with pytest.raises(ConfigurationError, match="can't be built with this config") as caught:
        Trainer.build_model(config(key, value))
    message = str(caught.value)
    assert reason in message and f"{TRACEBACK}=1" in message and "\n" not in message


def test_the_key_is_named_where_a_variable_of_detectron2_has_its_value():
    with pytest.raises(ConfigurationError, match=r"look at MODEL\.FPN\.FUSE_TYPE 'mean'"):
        Trainer.build_model(config("MODEL.FPN.FUSE_TYPE", "mean"))
    # Its variable has the value of both.
    pooled = (f"MODEL.{part}_HEAD.POOLER_TYPE" for part in ("ROI_BOX", "ROI_MASK"))
    overrides = [word for key in pooled for word in (key, "roialign")]
    with pytest.raises(ConfigurationError, match=r"ROI_BOX_HEAD\.POOLER_TYPE 'roialign' or MODEL"):
        Trainer.build_model(config(*overrides))


def test_the_key_is_named_below_a_part_of_this_project_too(tmp_path):
    timm = CONFIGS / "quick" / "lite0_feedforward.yaml"
    words = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "-1"]
    with pytest.raises(ConfigurationError, match=r"look at MODEL\.FPN\.OUT_CHANNELS -1"):
        Trainer.build_model(read_config(str(timm), words))


def test_a_fault_of_a_part_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_: object, **__: object) -> None:
        # PyTorch fails, and nothing in the config asked for this.
        torch.zeros(-3)

    monkeypatch.setattr("crbp_d2.modeling.stem.GaborStem.__init__", broken)
    with pytest.raises(RuntimeError, match="must be non-negative"):
        trainer_of(tmp_path)


def test_a_variable_shows_every_traceback(monkeypatch):
    error = ConfigurationError("MODEL.RESNETS.DEPTH is 51")
    assert told(error) == str(error)
    parser = argparse.ArgumentParser()
    with pytest.raises(SystemExit):
        refuse(parser, error)
    monkeypatch.setenv(TRACEBACK, "1")
    assert told(error) == ""
    with pytest.raises(ConfigurationError):
        refuse(parser, error)


def test_no_folder_is_refused_before_a_log_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config-file", str(SHAPES), "OUTPUT_DIR", ""]
    with pytest.raises(ConfigurationError, match=r"^OUTPUT_DIR is '': nothing would be saved"):
        setup(argument_parser().parse_args(words))
    assert list(tmp_path.iterdir()) == []
