"""Every key that Detectron2's trainer takes is taken here, refused or reported."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap

import detectron2.data.build
import detectron2.data.dataset_mapper
import detectron2.data.detection_utils
import detectron2.solver.build
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer

from crbp_d2.config import add_crbp_config, read_config, value_of
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import Trainer, prepare
from crbp_d2.engine.keys import IGNORED, REFUSED, SCORED, require_trainable
from crbp_d2.engine.optimizers import build_optimizer
from crbp_d2.engine.values import CHOICES, FORMS, POSITIVE
from crbp_d2.evaluation.build import _EVALUATOR_TYPES
from tests.data.shapes_data import registered_shapes
from tests.engine.runs import train, trainer_of
from tests.modeling.conftest import CONFIGS

NAME = "test_keys_shapes"
SHAPES = CONFIGS / "quick" / "shapes_crbp.yaml"
SMALL = (
    *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "MODEL.DEVICE", "cpu"),
    *("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "CRBP.SOLVER.STEPS", 2),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "SOLVER.CHECKPOINT_PERIOD", 1),
)
# Detectron2's own `tools/train_net.py`, which not every copy has.
OF_ITS_TOOL = {"OUTPUT_DIR", "MODEL.WEIGHTS", "TEST.AUG.ENABLED"}
# Read only where a key that is refused is set.
BEHIND = {
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": "MODEL.LOAD_PROPOSALS",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": "MODEL.LOAD_PROPOSALS",
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": "MODEL.KEYPOINT_ON",
}

seen: set[str] = set()


class Recording(CfgNode):
    """A config that notes which of its keys are read."""

    def __init__(self, node: CfgNode, prefix: str = "") -> None:
        super().__init__()
        self.__dict__["prefix"] = prefix
        for name, value in node.items():
            is_node = isinstance(value, CfgNode)
            self[name] = Recording(value, f"{prefix}{name}.") if is_node else value

    def __getattr__(self, name):
        seen.add(f"{self.__dict__.get('prefix', '')}{name}")
        return super().__getattr__(name)

    def __reduce__(self):
        return Recording, (dict(self), self.__dict__["prefix"])


def of_detectron2() -> set[str]:
    """Full names of the keys that its trainer, loaders, mapper and solver read."""
    parts = (
        DefaultTrainer,
        detectron2.data.build,
        detectron2.data.dataset_mapper,
        detectron2.data.detection_utils.build_augmentation,
        detectron2.solver.build,
    )
    names = {
        ast.unparse(node).partition(".")[2]
        for part in parts
        for node in ast.walk(ast.parse(inspect.getsource(part)))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("cfg.", "self.cfg."))
    }
    names = {name.removeprefix("cfg.") for name in names}
    # What clips gradients is given one node.
    names |= {f"SOLVER.CLIP_GRADIENTS.{name}" for name in names if "CLIP" in name}
    default = get_cfg()
    return {name for name in names if is_value(default, name)}


def is_value(cfg: CfgNode, name: str) -> bool:
    try:
        return not isinstance(value_of(cfg, name), CfgNode)
    except (KeyError, TypeError):
        return False


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    with registered_shapes(tmp_path_factory.mktemp("shapes") / "train", NAME, scenes=4, seed=3):
        yield


def config(output, *overrides: object) -> CfgNode:
    return read_config(str(SHAPES), [*SMALL, "OUTPUT_DIR", str(output), *overrides])


def test_every_key_of_detectron2s_trainer_is_read_or_named(shapes, tmp_path):
    variants = (
        (
            *("TEST.EXPECTED_RESULTS", [["panoptic_seg", "PQ", 0.0, 100.0]]),
            *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        ),
        (
            *("SEED", -1, "DATALOADER.ASPECT_RATIO_GROUPING", True, "SOLVER.OPTIMIZER", "sgd"),
            *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATASETS.TEST", ()),
            *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "TEST.PRECISE_BN.ENABLED", True),
            *("INPUT.CROP.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 1),
        ),
        (
            *("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.WARMUP_ITERS", 0),
            *("DATASETS.TEST", ()),
        ),
    )
    configs = [config(tmp_path, *variant) for variant in variants]
    for cfg in configs:
        prepare(cfg, eval_only=False)
    seen.clear()
    first, *_ = [Trainer(Recording(cfg)) for cfg in configs]
    first.resume_or_load(resume=False)
    first.train()
    named = {rule.key for rule in (*REFUSED, *IGNORED)}
    assert named >= set(BEHIND.values())
    touched = of_detectron2() | OF_ITS_TOOL
    assert len(touched) > 50
    assert touched - seen - named - BEHIND.keys() == set()


def test_every_named_key_is_one():
    default = get_cfg()
    add_crbp_config(default)
    keys = {rule.key for rule in (*REFUSED, *IGNORED)} | {*CHOICES, *FORMS, *POSITIVE}
    assert all(is_value(default, key) for key in keys)


def test_every_kind_of_data_that_is_scored_has_its_architectures():
    assert set(SCORED) == set(_EVALUATOR_TYPES)


def test_the_trainer_has_all_that_detectron2s_has(tmp_path):
    tree = ast.parse(textwrap.dedent(inspect.getsource(DefaultTrainer.__init__)))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"
    }
    assert {"_trainer", "scheduler", "checkpointer", "start_iter", "register_hooks"} <= names
    trainer = trainer_of(tmp_path)
    assert all(hasattr(trainer, name) for name in names)
    kinds = [type(hook).__name__ for hook in trainer._hooks]
    expected = ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvaluateTrained"]
    own = ["EstimateDuration", "StopWhenAsked"]
    assert kinds == ["SeedIterations", *expected, "PeriodicWriter", *own]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.LOAD_PROPOSALS", True, "pickles"),
        ("MODEL.KEYPOINT_ON", True, "keypoints are not scored"),
        ("TEST.AUG.ENABLED", True, "no segments; set it to False"),
        ("OUTPUT_DIR", "", "nothing would be saved"),
        ("SOLVER.MAX_ITER", 0, "above 0"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "above 0"),
        ("SOLVER.IMS_PER_BATCH", -2, "above 0"),
        ("SOLVER.BASE_LR", 0.0, "above 0"),
        ("SOLVER.BASE_LR_END", 1.0, "between 0 and SOLVER.BASE_LR"),
        ("SOLVER.REFERENCE_WORLD_SIZE", -1, "0 to scale nothing"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosinLR", "did you mean WarmupCosineLR"),
        ("SOLVER.WARMUP_METHOD", "cosine", "constant, linear"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "global", "full_model, norm, value"),
        ("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler", "RepeatFactorTrainingSampler, Tr"),
        ("INPUT.RANDOM_FLIP", "both", "horizontal, none, vertical"),
        ("INPUT.RANDOM_ROTATION_SAMPLING", "list", "choice, range"),
        ("INPUT.MASK_FORMAT", "rle", "bitmask, polygon"),
        ("MODEL.DEVICE", "gpu", "choose cuda or cpu"),
        ("MODEL.DEVICE", "meta", "choose cuda or cpu"),
        ("MODEL.DEVICE", None, "choose cuda or cpu"),
        ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "choose from PanopticFPN"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "choose from PanopticFPN"),
    ],
)
def test_what_cannot_be_as_it_is_is_refused_before_anything_is_built(
    key, value, message, shapes, tmp_path
):
    cfg = config(tmp_path, key, value)
    with pytest.raises(ConfigurationError, match=rf"^{key} is {value!r}: .*{message}"):
        prepare(cfg, eval_only=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATASETS.TRAIN", ()),
        ("DATASETS.TRAIN", (1, 2, 3)),
        ("DATASETS.TEST", (None,)),
        ("MODEL.PIXEL_MEAN", ()),
        ("MODEL.PIXEL_MEAN", ("a",)),
        ("MODEL.PIXEL_MEAN", (float("inf"),) * 3),
        ("MODEL.PIXEL_STD", (1.0, 2.0)),
        ("MODEL.PIXEL_STD", (1.0, 2.0, 0.0)),
        ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ()),
        ("MODEL.RPN.IN_FEATURES", (5,)),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 10**20),
        ("INPUT.RANDOM_BRIGHTNESS", (0.8,)),
        ("INPUT.RANDOM_CONTRAST", (1.2, 0.8)),
        ("INPUT.RANDOM_SATURATION", (-0.5, 1.0)),
        ("INPUT.RANDOM_BRIGHTNESS", ("a", "b")),
        ("INPUT.RANDOM_ROTATION", (0, 90, 180)),
        ("INPUT.RANDOM_ROTATION", (10, -10)),
        ("INPUT.RANDOM_ROTATION", (-400, 400)),
        ("INPUT.RANDOM_ROTATION", (float("nan"), 0.0)),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATALOADER.NUM_WORKERS", 10**20),
        ("TEST.IMS_PER_BATCH", -1),
    ],
)
def test_a_value_of_another_form_is_refused_before_anything_is_built(key, value, shapes, tmp_path):
    cfg = config(tmp_path, key, value)
    with pytest.raises(ConfigurationError, match=rf"^{key} is .*: (must be|must have|there is)"):
        prepare(cfg, eval_only=False)


@pytest.mark.parametrize("key", ["MODEL.ROI_HEADS.IN_FEATURES", "MODEL.FPN.IN_FEATURES"])
def test_a_map_that_the_backbone_lacks_is_named(key, shapes, tmp_path):
    with pytest.raises(ConfigurationError, match=f"{key} has 'p9': there is no map of that name"):
        Trainer.build_model(config(tmp_path, key, ["p9"]))


def test_all_that_is_wrong_is_named_at_once(shapes, tmp_path):
    cfg = config(tmp_path, "TEST.AUG.ENABLED", True, "MODEL.KEYPOINT_ON", True)
    with pytest.raises(ConfigurationError, match=r"MODEL\.KEYPOINT_ON.*\nTEST\.AUG\.ENABLED"):
        prepare(cfg, eval_only=True)


def test_saturation_is_of_colours(shapes, tmp_path):
    grey = ("INPUT.FORMAT", "L", "INPUT.RANDOM_BRIGHTNESS", (0.8, 1.2))
    prepare(config(tmp_path, *grey), eval_only=False)
    cfg = config(tmp_path, *grey, "INPUT.RANDOM_SATURATION", (0.8, 1.2))
    with pytest.raises(ConfigurationError, match=r"^INPUT\.RANDOM_SATURATION is .*BGR or RGB"):
        prepare(cfg, eval_only=False)


def test_what_matters_in_training_alone_passes_in_evaluation(shapes, tmp_path):
    cfg = config(tmp_path, "SOLVER.MAX_ITER", 0, "SOLVER.BASE_LR_END", 1.0)
    prepare(cfg, eval_only=True)


@pytest.mark.parametrize(
    ("config_file", "key", "value"),
    [
        ("shapes_crbp", "SOLVER.MOMENTUM", 0.5),
        ("shapes_crbp", "SOLVER.NESTEROV", True),
        ("shapes_crbp", "GLOBAL.HACK", 2.0),
        ("shapes_crbp", "TEST.KEYPOINT_OKS_SIGMAS", [0.1]),
        ("shapes_crbp", "DATASETS.PROPOSAL_FILES_TEST", ("a.pkl",)),
        ("pathfinder_crbp", "VIS_PERIOD", 5),
        ("pathfinder_crbp", "INPUT.CROP.ENABLED", True),
        ("pathfinder_crbp", "INPUT.MIN_SIZE_TEST", 64),
        ("pathfinder_crbp", "INPUT.RANDOM_CONTRAST", (0.8, 1.2)),
        ("pathfinder_crbp", "INPUT.RANDOM_ROTATION", (-10, 10)),
        ("pathfinder_crbp", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ],
)
def test_what_has_no_effect_is_reported(config_file, key, value, shapes, tmp_path, caplog):
    names = () if "pathfinder" in config_file else SMALL
    cfg = read_config(str(CONFIGS / "quick" / f"{config_file}.yaml"), [*names, key, value])
    with caplog.at_level(logging.WARNING, "crbp_d2"):
        prepare(cfg, eval_only=False)
    assert f"{key} {value} has no effect: " in caplog.text
    caplog.clear()
    cfg = read_config(str(CONFIGS / "quick" / f"{config_file}.yaml"), names)
    prepare(cfg, eval_only=False)
    assert "has no effect" not in caplog.text


def test_a_warm_up_that_outlasts_the_training_is_reported(shapes, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "crbp_d2"):
        prepare(config(tmp_path, "SOLVER.WARMUP_ITERS", 5, "SOLVER.MAX_ITER", 5), eval_only=False)
    assert "SOLVER.WARMUP_ITERS 5: the learning rate does not reach" in caplog.text
    caplog.clear()
    prepare(config(tmp_path, "SOLVER.WARMUP_ITERS", 4, "SOLVER.MAX_ITER", 5), eval_only=False)
    assert "WARMUP" not in caplog.text


def test_momentum_has_its_effect_with_sgd(shapes, tmp_path, caplog):
    prepare(config(tmp_path, "SOLVER.OPTIMIZER", "sgd", "SOLVER.MOMENTUM", 0.5), eval_only=False)
    assert "has no effect" not in caplog.text


@pytest.mark.parametrize("key", ["MODEL.META_ARCHITECTURE", "MODEL.SEM_SEG_HEAD.NAME"])
def test_a_part_of_an_unknown_name_is_named(key, tmp_path):
    with pytest.raises(ConfigurationError, match=r"META_ARCHITECTURE: .*Nonsense"):
        trainer_of(tmp_path, key, "Nonsense")


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"])
def test_a_schedule_that_is_none_is_named(name, tmp_path):
    steps = ("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.STEPS", "(2, 1)")
    with pytest.raises(ConfigurationError, match=r"SOLVER gives no schedule .*ascend"):
        trainer_of(tmp_path, *steps)


@pytest.mark.parametrize(("key", "value"), [("WEIGHT_DECAY", -1.0), ("MOMENTUM", -1.0)])
def test_a_setting_that_no_optimizer_takes_is_named(key, value, tmp_path):
    with pytest.raises(ConfigurationError, match="SOLVER: Invalid"):
        trainer_of(tmp_path, "SOLVER.OPTIMIZER", "sgd", f"SOLVER.{key}", value)


def test_several_processes_need_plain_devices(tmp_path):
    cfg = trainer_of(tmp_path).cfg.clone()
    require_trainable(cfg, torch.device("cpu"), 2)
    for device in ("cuda:1", "mps"):
        require_trainable(cfg, torch.device(device), 1)
        with pytest.raises(ConfigurationError, match=r"MODEL\.DEVICE .*say cuda or cpu"):
            require_trainable(cfg, torch.device(device), 2)
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = True
    require_trainable(cfg, torch.device("cuda:0"), 1)
    with pytest.raises(ConfigurationError, match=r"SOLVER\.AMP\.ENABLED needs"):
        require_trainable(cfg, torch.device("mps"), 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gradients_of_the_full_model_are_clipped_together(optimizer, tmp_path):
    cfg = read_config(
        str(SHAPES),
        [
            *("SOLVER.OPTIMIZER", optimizer, "SOLVER.CLIP_GRADIENTS.ENABLED", True),
            *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5),
        ],
    )
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    stepping = build_optimizer(cfg, layer)
    for weight in layer.parameters():
        weight.grad = torch.full_like(weight, 3.0)
    before = torch.cat([weight.grad.flatten() for weight in layer.parameters()])
    stepping.step()
    after = torch.cat([weight.grad.flatten() for weight in layer.parameters()])
    assert float(after.norm()) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(after / after.norm(), before / before.norm())
    # The config is left as it is for others.
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED


def test_a_whole_training_clips_the_full_model(tmp_path):
    clipping = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3)
    train(tmp_path, *clipping, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    assert (tmp_path / "model_final.pth").is_file()


def test_precise_statistics_are_computed_or_refused_before_training(tmp_path):
    precise = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2)
    train(tmp_path, *precise, "MODEL.SEM_SEG_HEAD.OUTPUT_NORM", "BN")
    stored = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    # Two iterations of training alone would leave nearly all of the initial variance, 1.
    assert float(stored["sem_seg_head.readout.norm.running_var"].max()) < 0.5
    with pytest.raises(ConfigurationError, match=r"TEST\.PRECISE_BN\.ENABLED .*CRBP\.CELL\.NORM"):
        trainer_of(tmp_path, *precise, "CRBP.CELL.NORM", "BN")
    with pytest.raises(ConfigurationError, match=r"TEST\.PRECISE_BN\.ENABLED .*BatchBN has no"):
        trainer_of(tmp_path, *precise, "MODEL.SEM_SEG_HEAD.OUTPUT_NORM", "BatchBN")


def test_a_reference_number_of_processes_scales_the_penalties_schedule_too(tmp_path):
    trainer = trainer_of(
        tmp_path,
        *("SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 100),
        *("CRBP.PENALTY.SPECTRAL.WEIGHT", 1.0, "CRBP.PENALTY.SCHEDULE", "((50, 0.0), (80, 1.0))"),
    )
    assert (trainer.cfg.SOLVER.IMS_PER_BATCH, trainer.cfg.SOLVER.MAX_ITER) == (2, 200)
    assert trainer.cfg.CRBP.PENALTY.SCHEDULE == ((100, 0.0), (160, 1.0))
    assert trainer.cfg.SOLVER.CHECKPOINT_PERIOD == 2 and trainer.cfg.is_frozen()


def test_settings_of_the_whole_process_are_detectron2s(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    trainer_of(tmp_path, "CUDNN_BENCHMARK", True, "SEED", 5)
    assert torch.backends.cudnn.benchmark
