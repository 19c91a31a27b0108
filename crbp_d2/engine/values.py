"""Values of single keys that Detectron2 takes, and would fail by: late, or with a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite, log2
from typing import Any

from detectron2.config import CfgNode

from crbp_d2.config import keys_of, value_of
from crbp_d2.core.errors import choices, did_you_mean

CHANNELS = {
    "BGR": 3,
    "CMYK": 4,
    "HSV": 3,
    "L": 1,
    "RGB": 3,
    "RGBA": 4,
    "YCbCr": 3,
    "YUV-BT.601": 3,
}
"""Channels of the formats of images that hold numbers from 0 to 255."""

_NORMS = (
    *("", "BN", "FrozenBN", "GN", "LN", "SyncBN"),
    *("naiveSyncBN", "naiveSyncBN_N", "nnSyncBN"),
)
_WITH_NORM = ("FPN", "RESNETS", "RETINANET", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
_WITH_BOXES = ("RETINANET", "ROI_BOX_HEAD", "RPN")
_POOLED = ("ROI_BOX_HEAD", "ROI_MASK_HEAD")
_MATCHED = ("RETINANET", "ROI_HEADS", "RPN")

CHOICES: dict[str, tuple[str, ...]] = {
    "DATALOADER.SAMPLER_TRAIN": ("RepeatFactorTrainingSampler", "TrainingSampler"),
    "INPUT.CROP.TYPE": ("absolute", "absolute_range", "relative", "relative_range"),
    "INPUT.FORMAT": tuple(CHANNELS),
    "INPUT.MASK_FORMAT": ("bitmask", "polygon"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none", "vertical"),
    "INPUT.RANDOM_ROTATION_SAMPLING": ("choice", "range"),
    "MODEL.FPN.FUSE_TYPE": ("avg", "sum"),
    **{f"MODEL.{part}.NORM": _NORMS for part in _WITH_NORM},
    **{
        f"MODEL.{part}.BBOX_REG_LOSS_TYPE": ("ciou", "diou", "giou", "smooth_l1")
        for part in _WITH_BOXES
    },
    **{
        f"MODEL.{part}.POOLER_TYPE": ("ROIAlign", "ROIAlignRotated", "ROIAlignV2", "ROIPool")
        for part in _POOLED
    },
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupCosineLR",
        "WarmupMultiStepLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("constant", "linear"),
}
"""Values that work. Detectron2 refuses others, too, some of them in the first iteration."""

POSITIVE = (
    "SOLVER.BASE_LR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
)
"""Numbers above 0 in training, by which Detectron2 divides."""

MOST_WORKERS = 1024
"""Processes that load data: more would be started one after the other, without end."""
LARGEST = 2**31 - 1
"""Of whole numbers; what counts or reserves memory by a larger one fails, if it does not hang."""
LARGEST_SEED = 2**32 - 2**16
"""Every process adds its rank, and NumPy takes no sum of 2**32."""


def are_numbers(value: Any) -> bool:
    """Whether a value holds finite numbers that an array takes, and at least one."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(
            isinstance(one, (int, float)) and isfinite(one) and abs(one) <= LARGEST for one in value
        )
    )


def are_ordered(value: Any) -> bool:
    """Whether a value is two numbers, the lower first."""
    return are_numbers(value) and len(value) == 2 and value[0] <= value[1]


def _are_names(value: Any) -> bool:
    return all(isinstance(one, str) for one in value)


def _are_positive(value: Any) -> bool:
    return are_numbers(value) and min(value) > 0


def _are_positive_of_maps(value: Any) -> bool:
    """Of all maps together, or a list of each."""
    return _are_positive(value) or (bool(value) and all(map(_are_positive, value)))


def _are_thresholds(value: Any) -> bool:
    return _are_positive(value) and list(value) == sorted(value)


def _are_expected(value: Any) -> bool:
    return all(
        isinstance(one, (list, tuple))
        and len(one) == 4
        and _are_names(one[:2])
        and are_numbers(one[2:])
        for one in value
    )


def _is_decay(value: Any) -> bool:
    return value is None or (are_numbers([value]) and value >= 0)


AUGMENTED = tuple(f"INPUT.RANDOM_{name}" for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"))
"""Intervals of this project, of which any can be empty."""

_AT_LEAST_ONE = (
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MAX_SIZE_TRAIN",
    "MODEL.FPN.OUT_CHANNELS",
    *(f"MODEL.ROI_BOX_HEAD.{name}" for name in ("CONV_DIM", "FC_DIM", "POOLER_RESOLUTION")),
    *(f"MODEL.ROI_MASK_HEAD.{name}" for name in ("CONV_DIM", "POOLER_RESOLUTION")),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM",
    *(f"MODEL.RESNETS.{name}" for name in ("NUM_GROUPS", "WIDTH_PER_GROUP")),
    *(f"MODEL.RESNETS.{name}_OUT_CHANNELS" for name in ("RES2", "STEM")),
)

FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "DATALOADER.NUM_WORKERS": (
        lambda value: 0 <= value <= MOST_WORKERS,
        f"must be from 0 to {MOST_WORKERS}",
    ),
    "DATASETS.TRAIN": (_are_names, "must be names of data sets, in quotes"),
    "DATASETS.TEST": (_are_names, "must be names of data sets, in quotes"),
    **{
        key: (lambda value: 1 <= value <= LARGEST, f"must be from 1 to {LARGEST}")
        for key in _AT_LEAST_ONE
    },
    "INPUT.MIN_SIZE_TEST": (
        lambda value: 0 <= value <= LARGEST,
        f"must be from 1 to {LARGEST}, or 0 to leave sizes as they are",
    ),
    "INPUT.MIN_SIZE_TRAIN": (
        lambda value: are_numbers(value) and min(value) >= 0,
        "must be at least one size, as (640, 800), or (0,) to leave sizes as they are",
    ),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (
        _are_positive_of_maps,
        "must be numbers above 0, as [[0.5, 1.0, 2.0]], or a list of them for each map",
    ),
    "MODEL.ANCHOR_GENERATOR.SIZES": (
        _are_positive_of_maps,
        "must be numbers above 0, as [[32], [64], [128], [256], [512]]: a list for each map",
    ),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (lambda value: 0 <= value < 1, "must be in [0, 1)"),
    "MODEL.FPN.IN_FEATURES": (_are_names, "must be names of the backbone's maps, in quotes"),
    "MODEL.PIXEL_MEAN": (are_numbers, "must be a number for each channel"),
    "MODEL.PIXEL_STD": (_are_positive, "must be a number above 0 for each channel"),
    **{
        f"MODEL.{part}.IN_FEATURES": (
            lambda value: bool(value) and _are_names(value),
            "must be names of the FPN's maps, in quotes",
        )
        for part in ("RPN", "ROI_HEADS", "SEM_SEG_HEAD")
    },
    **{
        f"MODEL.{part}.BBOX_REG_WEIGHTS": (
            lambda value: _are_positive(value) and len(value) in (4, 5),
            "must be four numbers above 0, or five of rotated boxes",
        )
        for part in _WITH_BOXES
    },
    **{
        f"MODEL.{part}.IOU_THRESHOLDS": (
            _are_thresholds,
            "must be numbers above 0 that ascend, as [0.3, 0.7]",
        )
        for part in _MATCHED
    },
    **{
        f"MODEL.{part}.IOU_LABELS": (
            lambda value: bool(value) and all(one in (-1, 0, 1) for one in value),
            "must be -1 (left out), 0 (background) or 1 (object) below, between and above the "
            "IOU_THRESHOLDS",
        )
        for part in _MATCHED
    },
    "MODEL.RPN.CONV_DIMS": (
        lambda value: are_numbers(value) and all(one == -1 or one > 0 for one in value),
        "must be numbers of channels, or [-1] for those of the maps",
    ),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (
        lambda value: 1 <= value <= LARGEST and log2(value).is_integer(),
        "must be a power of two, as 4",
    ),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": (
        lambda value: abs(value) < 2**31,
        "must be a label, as 255",
    ),
    "SEED": (
        lambda value: value <= LARGEST_SEED,
        f"must be from 0 to {LARGEST_SEED}, or -1 for another one in every run",
    ),
    **{
        f"SOLVER.{name}": (_is_decay, "must be a number of at least 0, or None for the usual one")
        for name in ("BIAS_LR_FACTOR", "WEIGHT_DECAY_BIAS", "WEIGHT_DECAY_NORM")
    },
    "TEST.EXPECTED_RESULTS": (
        _are_expected,
        "must be a list of lists [TASK, SCORE, VALUE, TOLERANCE], as [['bbox', 'AP', 38.5, 0.2]]",
    ),
    **{
        key: (
            lambda value: not value or (are_ordered(value) and value[0] >= 0),
            "must be two numbers of at least 0, the lower first, or () for none",
        )
        for key in AUGMENTED
    },
    "INPUT.RANDOM_ROTATION": (
        lambda value: not value or (are_numbers(value) and max(map(abs, value)) <= 360),
        "must be angles from -360 to 360, or () for none",
    ),
    "SOLVER.PRETRAINED_FACTOR": (lambda value: 0 < value < float("inf"), "must be above 0"),
    "TEST.IMS_PER_BATCH": (lambda value: value >= 0, "must be a number of images, or 0"),
}
"""What keys must be, beyond the type that Detectron2 asks for."""


def unfit_values(cfg: CfgNode, *, eval_only: bool) -> Iterator[str]:
    """A line for each key whose value can't be, whatever the others are.

    Args:
        cfg: a config.
        eval_only: what only a training uses passes.
    """
    for key, allowed in CHOICES.items():
        value = value_of(cfg, key)
        # Of a norm `None` is none.
        if (value or "") not in allowed:
            meant = did_you_mean(str(value), allowed)
            listed = choices(name or '""' for name in allowed)
            yield f"{key} is {value!r}: choose from {listed}{f'; {meant}' * bool(meant)}"
    for key, (is_so, wanted) in FORMS.items():
        value = value_of(cfg, key)
        if not is_so(value):
            yield f"{key} is {value!r}: {wanted}"
    for key in () if eval_only else POSITIVE:
        value = value_of(cfg, key)
        if not value > 0:
            yield f"{key} is {value!r}: must be above 0"
    for key in keys_of(cfg):
        if key not in FORMS and _is_too_large(value_of(cfg, key)):
            yield f"{key} is {value_of(cfg, key)!r}: must be at most {LARGEST}"


def _is_too_large(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_too_large, value))
    return isinstance(value, int) and abs(value) > LARGEST
