"""Keys that this project does not take as Detectron2's own trainer does, and its own of data.

Each is refused where the run would be another than the one asked for, or would fail after hours,
and reported where it only has no effect. Every other key means what it means in Detectron2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from fvcore.nn.precise_bn import get_bn_modules

from crbp_d2.config import add_crbp_config, value_of
from crbp_d2.core import ConfigurationError, Recurrence
from crbp_d2.core.errors import choices
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.data.pathfinder.images import EVALUATOR_TYPE

from .values import AUGMENTED, CHANNELS, are_ordered, unfit_values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """A key, when it is not as in Detectron2, and why.

    Attributes:
        key: its full name.
        applies: whether it is so in a config.
        reason: with what to do, if there is something.
        training: it matters in training alone.
    """

    key: str
    applies: Callable[[CfgNode], bool]
    reason: str
    training: bool = False


RESNETS = (
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
)
"""Detectron2's backbones that `MODEL.RESNETS` describes; others may read its keys otherwise."""


def _traces(cfg: CfgNode) -> bool:
    """Whether Pathfinder images are among the data."""
    return any(map(is_pathfinder, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))


def _maps_with_anchors(cfg: CfgNode) -> Sequence[str]:
    """Names of the maps that Detectron2's own architectures put anchors on."""
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind == "RetinaNet":
        return tuple(cfg.MODEL.RETINANET.IN_FEATURES)
    proposes = kind in ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
    return tuple(cfg.MODEL.RPN.IN_FEATURES) if proposes else ()


def _has_other_labels(part: str, cfg: CfgNode) -> bool:
    node = cfg.MODEL[part]
    return len(node.IOU_LABELS) != len(node.IOU_THRESHOLDS) + 1


def _is_of_other_maps(name: str, cfg: CfgNode) -> bool:
    values, maps = cfg.MODEL.ANCHOR_GENERATOR[name], _maps_with_anchors(cfg)
    nested = isinstance(values[0], (list, tuple))
    return nested and bool(maps) and len(values) not in (1, len(maps))


def _is_finer_elsewhere(cfg: CfgNode) -> bool:
    """Whether Detectron2's head is to bring a map to a coarser stride than its own, which it can't;
    maps are named by the logarithms of their strides, as p2."""
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME != "SemSegFPNHead":
        return False
    found = [re.fullmatch(r"(?:p|res)(\d)", name) for name in head.IN_FEATURES]
    return any(one and 2 ** int(one[1]) < head.COMMON_STRIDE for one in found)


REFUSED = (
    Rule(
        "DATASETS.TRAIN",
        lambda cfg: not cfg.DATASETS.TRAIN,
        "there is nothing to learn from; name a data set",
        training=True,
    ),
    Rule(
        "MODEL.PIXEL_STD",
        lambda cfg: len(cfg.MODEL.PIXEL_STD) != len(cfg.MODEL.PIXEL_MEAN),
        "must have as many numbers as MODEL.PIXEL_MEAN, one for each channel",
    ),
    Rule(
        "MODEL.LOAD_PROPOSALS",
        lambda cfg: cfg.MODEL.LOAD_PROPOSALS,
        "proposals are kept as pickles, which can run code when they are read; set it to False",
    ),
    Rule(
        "MODEL.KEYPOINT_ON",
        lambda cfg: cfg.MODEL.KEYPOINT_ON,
        "keypoints are not scored here; set it to False",
    ),
    Rule(
        "TEST.AUG.ENABLED",
        lambda cfg: cfg.TEST.AUG.ENABLED,
        "augmentation of test images is not done here, as Detectron2's gives boxes and masks, but "
        "no segments; set it to False",
    ),
    Rule(
        "INPUT.RANDOM_ROTATION",
        lambda cfg: (
            bool(cfg.INPUT.RANDOM_ROTATION)
            and cfg.INPUT.RANDOM_ROTATION_SAMPLING == "range"
            and not are_ordered(cfg.INPUT.RANDOM_ROTATION)
        ),
        "must be two angles, the lower first; for a list of angles set "
        "INPUT.RANDOM_ROTATION_SAMPLING to choice",
        training=True,
    ),
    Rule(
        "INPUT.RANDOM_SATURATION",
        lambda cfg: bool(cfg.INPUT.RANDOM_SATURATION) and cfg.INPUT.FORMAT not in ("BGR", "RGB"),
        "only images whose INPUT.FORMAT is BGR or RGB have colours to change; set it to ()",
        training=True,
    ),
    Rule(
        "INPUT.FORMAT",
        lambda cfg: (
            CHANNELS[cfg.INPUT.FORMAT] not in (1, len(cfg.MODEL.PIXEL_MEAN))
            and bool(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)
            and not _traces(cfg)
        ),
        "must have as many channels as MODEL.PIXEL_MEAN has numbers",
    ),
    Rule(
        "INPUT.MIN_SIZE_TRAIN",
        lambda cfg: (
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
            and not are_ordered(cfg.INPUT.MIN_SIZE_TRAIN)
        ),
        "must be two sizes, the lower first; for a list of sizes set "
        "INPUT.MIN_SIZE_TRAIN_SAMPLING to choice",
        training=True,
    ),
    Rule(
        "MODEL.RESNETS.DEPTH",
        lambda cfg: (
            cfg.MODEL.BACKBONE.NAME in RESNETS
            and cfg.MODEL.RESNETS.DEPTH not in (18, 34, 50, 101, 152)
        ),
        "must be 18, 34, 50, 101 or 152",
    ),
    *(
        Rule(
            f"MODEL.{part}.IOU_LABELS",
            partial(_has_other_labels, part),
            f"must have one more than MODEL.{part}.IOU_THRESHOLDS: below, between and above them",
        )
        for part in ("RETINANET", "ROI_HEADS", "RPN")
    ),
    *(
        Rule(
            f"MODEL.ANCHOR_GENERATOR.{name}",
            partial(_is_of_other_maps, name),
            "must have one list for all maps, or one for each: as many as IN_FEATURES of "
            "MODEL.RPN, or of MODEL.RETINANET",
        )
        for name in ("ASPECT_RATIOS", "SIZES")
    ),
    Rule(
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
        _is_finer_elsewhere,
        "must be at most the stride of the finest map in IN_FEATURES, 4 of p2",
    ),
    Rule(
        "SOLVER.BASE_LR_END",
        lambda cfg: (
            cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
            and not 0 <= cfg.SOLVER.BASE_LR_END <= cfg.SOLVER.BASE_LR
        ),
        "WarmupCosineLR lowers the rate: it must lie between 0 and SOLVER.BASE_LR",
        training=True,
    ),
    Rule(
        "SOLVER.REFERENCE_WORLD_SIZE",
        lambda cfg: cfg.SOLVER.REFERENCE_WORLD_SIZE < 0,
        "it is a number of processes, or 0 to scale nothing",
        training=True,
    ),
)

IGNORED = (
    Rule(
        "SOLVER.MOMENTUM",
        lambda cfg: cfg.SOLVER.OPTIMIZER != "sgd",
        "only SOLVER.OPTIMIZER sgd takes it",
        training=True,
    ),
    Rule(
        "SOLVER.NESTEROV",
        lambda cfg: cfg.SOLVER.OPTIMIZER != "sgd",
        "only SOLVER.OPTIMIZER sgd takes it",
        training=True,
    ),
    Rule(
        "SOLVER.PRETRAINED_FACTOR",
        lambda cfg: not (cfg.MODEL.WEIGHTS or cfg.MODEL.TIMM.WEIGHTS),
        "no weights are given to start from",
        training=True,
    ),
    Rule("DATASETS.PROPOSAL_FILES_TRAIN", lambda cfg: True, "no proposals are read"),
    Rule("DATASETS.PROPOSAL_FILES_TEST", lambda cfg: True, "no proposals are read"),
    Rule("TEST.KEYPOINT_OKS_SIGMAS", lambda cfg: True, "keypoints are not scored here"),
    Rule("GLOBAL.HACK", lambda cfg: True, "nothing here reads it"),
    Rule(
        "VIS_PERIOD",
        lambda cfg: cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor",
        "this model draws nothing in training",
        training=True,
    ),
    *(
        Rule(
            key,
            _traces,
            "Pathfinder images are taken as they are, in random order",
        )
        for key in (
            "DATALOADER.ASPECT_RATIO_GROUPING",
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
            "DATALOADER.REPEAT_THRESHOLD",
            "DATALOADER.SAMPLER_TRAIN",
            "INPUT.CROP.ENABLED",
            "INPUT.FORMAT",
            "INPUT.MAX_SIZE_TEST",
            "INPUT.MAX_SIZE_TRAIN",
            "INPUT.MIN_SIZE_TEST",
            "INPUT.MIN_SIZE_TRAIN",
            *AUGMENTED,
            "INPUT.RANDOM_ROTATION",
            "INPUT.RANDOM_ROTATION_SAMPLING",
        )
    ),
)
"""Keys that are reported if they have another value than the default."""

SCORED = {
    "coco": ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork", "RetinaNet", "FCOS"),
    "coco_panoptic_seg": ("PanopticFPN",),
    EVALUATOR_TYPE: ("SemanticSegmentor",),
    "sem_seg": ("PanopticFPN", "SemanticSegmentor"),
}
"""Detectron2's architectures whose answers are what the evaluators of a kind of data ask for."""


def check_keys(cfg: CfgNode, *, eval_only: bool) -> None:
    """Refuse or report what is not as in Detectron2; before anything is built.

    Raises:
        ConfigurationError: naming all keys that can't be as they are, a line each.
    """
    for broken in unfit_values(cfg, eval_only=eval_only), _of_rules(cfg, eval_only):
        lines = list(broken)
        if lines:
            raise ConfigurationError("\n".join(lines))
    default = get_cfg()
    add_crbp_config(default)
    for rule in IGNORED:
        value = value_of(cfg, rule.key)
        skipped = rule.training and eval_only
        if not skipped and value != value_of(default, rule.key) and rule.applies(cfg):
            logger.warning("%s %s has no effect: %s", rule.key, value, rule.reason)
    if not eval_only and cfg.SOLVER.CHECKPOINT_PERIOD >= cfg.SOLVER.MAX_ITER:
        logger.warning(
            "SOLVER.CHECKPOINT_PERIOD %s: no checkpoint before the end, at SOLVER.MAX_ITER %s, but "
            "at a signal: killed, the training would start anew",
            cfg.SOLVER.CHECKPOINT_PERIOD,
            cfg.SOLVER.MAX_ITER,
        )
    if not eval_only and cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        logger.warning(
            "SOLVER.WARMUP_ITERS %s: the learning rate does not reach SOLVER.BASE_LR before the "
            "end, at SOLVER.MAX_ITER %s",
            cfg.SOLVER.WARMUP_ITERS,
            cfg.SOLVER.MAX_ITER,
        )


def require_scored(cfg: CfgNode, names: Sequence[str]) -> None:
    """The architecture answers what the evaluators of data sets ask for.

    Args:
        names: of registered data sets.

    Raises:
        ConfigurationError: it answers something else, or has another number of classes.
    """
    kind = cfg.MODEL.META_ARCHITECTURE
    known = {one for some in SCORED.values() for one in some}
    for name in names:
        metadata = MetadataCatalog.get(name)
        scoring = metadata.get("evaluator_type")
        if scoring not in SCORED:
            raise ConfigurationError(
                f"DATASETS.TEST: {name} has the evaluator_type {scoring!r} in its metadata, which "
                f"nothing here scores; it can be {choices(SCORED)}"
            )
        fitting = SCORED[scoring]
        # One of a user's own may answer anything.
        if kind in known and kind not in fitting:
            raise ConfigurationError(
                f"MODEL.META_ARCHITECTURE is {kind!r}: {name} is scored by answers that it does "
                f"not give; choose from {choices(fitting)}, or another data set"
            )
        things = len(metadata.get("thing_classes") or ())
        if kind == "RetinaNet" and things and things != cfg.MODEL.RETINANET.NUM_CLASSES:
            raise ConfigurationError(
                f"MODEL.RETINANET.NUM_CLASSES is {cfg.MODEL.RETINANET.NUM_CLASSES}: {name} has "
                f"{things} classes; set it to that"
            )


def require_device(name: Any) -> None:
    """Refuse a `MODEL.DEVICE` that PyTorch does not know, or that is not there.

    Without any GPU `cuda` passes, as the CPU takes its place. GPUs are only counted: what starts
    several processes is to hold nothing on them.

    Raises:
        ConfigurationError: naming the device.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda":
            present = torch.cuda.device_count()
            if present and (device.index or 0) >= present:
                raise RuntimeError(f"there are {present} GPUs, numbered from 0")
        else:
            torch.zeros(1, device=device).item()
    # What is raised depends on the kind of device.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"MODEL.DEVICE is {name!r}: it can't be used ({reason}); choose cuda or cpu"
        ) from error


def require_trainable(cfg: CfgNode, device: torch.device, processes: int) -> None:
    """Refuse what one device, or several processes, can't do.

    Raises:
        ConfigurationError: naming the key.
    """
    if cfg.SOLVER.AMP.ENABLED and device.type != "cuda":
        raise ConfigurationError("SOLVER.AMP.ENABLED needs MODEL.DEVICE cuda; set it to False")
    if processes > 1 and (device.index is not None or device.type not in ("cpu", "cuda")):
        raise ConfigurationError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: each of {processes} processes has a device of "
            "its own; say cuda or cpu"
        )


def require_norms_used_once(model: torch.nn.Module) -> None:
    """Refuse `TEST.PRECISE_BN` of a model whose circuit has norms that it asks for, or which has
    norms without running statistics.

    Raises:
        ConfigurationError: every step would use them, or there is nothing to compute.
    """
    if not all(norm.track_running_stats for norm in get_bn_modules(model)):
        raise ConfigurationError(
            "TEST.PRECISE_BN.ENABLED is True: a norm BatchBN has no statistics; set it to False"
        )
    circuits = [module for module in model.modules() if isinstance(module, Recurrence)]
    if any(get_bn_modules(circuit) for circuit in circuits):
        raise ConfigurationError(
            "TEST.PRECISE_BN.ENABLED is True: it can't be computed for a norm that every step of "
            "the circuit uses; set it to False, or CRBP.CELL.NORM to GN or IN"
        )


def _of_rules(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    for rule in REFUSED:
        if not (rule.training and eval_only) and rule.applies(cfg):
            yield f"{rule.key} is {value_of(cfg, rule.key)!r}: {rule.reason}"
