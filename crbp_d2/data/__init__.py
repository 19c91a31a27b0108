"""Data: own panoptic data, COCO and the embedded shapes as Detectron2 data sets."""

from .from_file import register_from_file
from .loaders import (
    build_test_loader,
    build_train_loader,
    require_even_batches,
    require_fraction,
    require_registered,
)
from .mapper import PanopticMapper
from .panoptic import (
    ensure_prepared,
    register_panoptic,
    require_same_classes,
    set_num_classes,
)
from .prepare import Manifest, prepare
from .reading import read_image
from .report import describe
from .shapes import make_shapes  # registers shapes_train, shapes_val
from .shapes_scene import ShapesConfig
from .source import PanopticSource
from .validate import DatasetError

__all__ = [
    "DatasetError",
    "Manifest",
    "PanopticMapper",
    "PanopticSource",
    "ShapesConfig",
    "build_test_loader",
    "build_train_loader",
    "ensure_prepared",
    "describe",
    "make_shapes",
    "prepare",
    "read_image",
    "register_from_file",
    "register_panoptic",
    "require_even_batches",
    "require_fraction",
    "require_registered",
    "require_same_classes",
    "set_num_classes",
]
