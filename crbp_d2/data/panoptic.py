"""Registering panoptic data sets with Detectron2, and preparing registered ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from .categories import class_metadata
from .derive import UNLABELLED, stuff_map_name
from .prepare import Manifest, prepare, read_categories
from .source import PanopticSource, PathLike
from .validate import DatasetError, Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Registered:
    source: PanopticSource
    make: Callable[[], None] | None


_CLASS_KEYS = (
    "thing_classes",
    "thing_colors",
    "thing_dataset_id_to_contiguous_id",
    "stuff_classes",
    "stuff_colors",
    "stuff_dataset_id_to_contiguous_id",
)

_registered: dict[str, _Registered] = {}


def register_panoptic(
    name: str,
    *,
    images: PathLike,
    panoptic_json: PathLike,
    panoptic_pngs: PathLike,
    instances_json: PathLike | None = None,
    cache: PathLike | None = None,
) -> None:
    """Makes a data set in COCO's panoptic format trainable with Detectron2's PanopticFPN.

    Stuff maps, instance annotations, boxes and areas are derived from the PNGs when the data set is
    first loaded (or by `ensure_prepared`), and kept. The metadata are those of Detectron2's own
    `*_panoptic_separated` data sets. Registering the same files again does nothing.

    Args:
        name: for `cfg.DATASETS.TRAIN` and `cfg.DATASETS.TEST`.
        images: folder of images.
        panoptic_json: COCO's panoptic format.
        panoptic_pngs: folder of PNGs with segment ids encoded in RGB.
        instances_json: COCO's instance format, if instances shall come from there.
        cache: folder for derived files, by default `crbp_d2_cache` beside the JSON (in the user's
            cache folder if that place is read-only).

    Raises:
        DatasetError: a file is missing, the JSON is not in the format, or another data set has the
            name. What only shows in the images is reported when they are prepared.
    """
    source = PanopticSource.locate(
        images=images,
        panoptic_json=panoptic_json,
        panoptic_pngs=panoptic_pngs,
        instances_json=instances_json,
        cache=cache,
    )
    if name in _registered and _registered[name].source == source:
        return
    add_to_catalog(name, source, class_metadata(read_categories(source)))


def add_to_catalog(
    name: str,
    source: PanopticSource,
    classes: dict[str, Any],
    make: Callable[[], None] | None = None,
) -> None:
    """Registers `source` with known classes, without reading anything.

    Args:
        classes: see `class_metadata`.
        make: called before the data set is prepared, to make the source files if they are missing.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"a data set named {name!r} is registered already; choose another name")
    _registered[name] = _Registered(source, make)
    DatasetCatalog.register(name, lambda: _load(name))
    MetadataCatalog.get(name).set(
        image_root=str(source.images),
        panoptic_root=str(source.panoptic_pngs),
        panoptic_json=str(source.measured_json),
        sem_seg_root=str(source.stuff_maps),
        json_file=str(source.used_instances_json),
        evaluator_type="coco_panoptic_seg",
        ignore_label=UNLABELLED,
        **classes,
    )


def ensure_prepared(name: str, *, workers: int | None = None) -> Manifest | None:
    """Makes what training and evaluation on a data set need and lack.

    Applies to what is registered here and to Detectron2's `coco_2017_*_panoptic_separated`. These
    are left as they are if their stuff maps exist, else registered anew under the same name with
    stuff maps in a cache. Nothing is done for other data sets.

    Args:
        name: a registered data set.
        workers: number of processes, the available cores (at most 8) if None.

    Returns:
        What was derived, or None where nothing had to be.

    Raises:
        DatasetError: the data can't be used; nothing is written.
    """
    if name not in _registered and _lacks_stuff_maps(name):
        _register_anew(name)
    if name not in _registered:
        return None
    entry = _registered[name]
    if entry.make is not None:
        entry.make()
    manifest = prepare(entry.source, workers=workers)
    if not _numbers_alike(class_metadata(manifest.categories), MetadataCatalog.get(name).as_dict()):
        raise DatasetError(
            f"{entry.source.panoptic_json}: not the categories that {name!r} was registered with; "
            "restore them, or register the data anew in a new process"
        )
    return manifest


def set_num_classes(cfg: CfgNode, name: str) -> None:
    """Sets the numbers of classes of both heads from a registered data set.

    A data set without any thing gets one thing class that never occurs, and the images stay in
    training although they have no instance (`DATALOADER.FILTER_EMPTY_ANNOTATIONS`). One without
    stuff leaves the stuff head the single class "things". Of data with labels of one kind only,
    that head's number is set.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes"):
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(metadata.thing_classes)
    if metadata.get("stuff_classes"):
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(metadata.stuff_classes)
    if metadata.get("thing_dataset_id_to_contiguous_id") == {}:
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False


def require_same_classes(names: Sequence[str]) -> None:
    """Data sets that train and test one model number their classes alike.

    Raises:
        DatasetError: naming those that don't.
    """
    for name in names[1:]:
        first, other = (MetadataCatalog.get(one).as_dict() for one in (names[0], name))
        if not _numbers_alike(first, other):
            raise DatasetError(
                f"{names[0]} and {name} have different categories: one model can't be trained or "
                "tested on both; correct DATASETS.TRAIN or DATASETS.TEST"
            )


def _load(name: str) -> list[Json]:
    """The data set in Detectron2's format: instances and `sem_seg_file_name`."""
    manifest = ensure_prepared(name)
    assert manifest is not None
    source = _registered[name].source
    classes = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    stuff_map = {
        image_id: str(source.stuff_maps / stuff_map_name(png))
        for image_id, _, png in manifest.files
    }
    # Given the data set's name, it would warn of every numbering other than 1, 2, ...
    records = load_coco_json(str(source.used_instances_json), str(source.images))
    records = [record for record in records if record["image_id"] in stuff_map]
    for record in records:
        record["sem_seg_file_name"] = stuff_map[record["image_id"]]
        for annotation in record["annotations"]:
            annotation["category_id"] = classes[annotation["category_id"]]
    return records


def _numbers_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
    return all(one.get(key) == other.get(key) for key in keys)


def _lacks_stuff_maps(name: str) -> bool:
    """Whether `name` is separated panoptic data of Detectron2's own without stuff maps."""
    if name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco_panoptic_seg" or not metadata.get("sem_seg_root"):
        return False
    pngs, stuff_maps = _png_names(metadata.panoptic_root), _png_names(metadata.sem_seg_root)
    return not stuff_maps or not pngs <= stuff_maps


def _png_names(folder: str) -> set[str]:
    path = Path(folder)
    return {entry.name for entry in path.glob("*.png")} if path.is_dir() else set()


def _register_anew(name: str) -> None:
    metadata = MetadataCatalog.get(name).as_dict()
    instances_json = Path(metadata["json_file"])
    source = PanopticSource.locate(
        images=metadata["image_root"],
        panoptic_json=metadata["panoptic_json"],
        panoptic_pngs=metadata["panoptic_root"],
        instances_json=instances_json if instances_json.is_file() else None,
    )
    try:
        categories = read_categories(source)
    except DatasetError as error:
        raise DatasetError(
            f"{error}\nDetectron2's own data sets, as {name}, are looked for in the folder "
            "$DETECTRON2_DATASETS (by default datasets); see datasets/README.md"
        ) from error
    if not _numbers_alike(class_metadata(categories), metadata):
        raise DatasetError(
            f"{source.panoptic_json}: its categories differ from those of {name}; "
            "register these data under a name of your own with register_panoptic"
        )
    logger.info("%s lacks stuff maps: they go to %s", name, source.derived)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    # Detectron2's names and colours, which the JSON may lack.
    add_to_catalog(name, source, {key: metadata[key] for key in _CLASS_KEYS if key in metadata})
