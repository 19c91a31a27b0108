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

from .categories import class_metadata, different_classes
from .derive import UNLABELLED, converted_image_name, stuff_map_name
from .fields import Json
from .prepare import Manifest, prepare, read_categories, read_counts
from .reading import IntensityRange
from .source import PanopticSource, PathLike
from .validate import DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Registered:
    """What `DatasetCatalog` holds of a data set that is registered here: calling it loads it."""

    name: str
    source: PanopticSource
    make: Callable[[], None] | None

    def __call__(self) -> list[Json]:
        return _load(self)


_CLASS_KEYS = (
    "thing_classes",
    "thing_colors",
    "thing_dataset_id_to_contiguous_id",
    "stuff_classes",
    "stuff_colors",
    "stuff_dataset_id_to_contiguous_id",
)


def register_panoptic(
    name: str,
    *,
    images: PathLike,
    panoptic_json: PathLike,
    panoptic_pngs: PathLike,
    instances_json: PathLike | None = None,
    cache: PathLike | None = None,
    intensity_range: IntensityRange | None = None,
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
        intensity_range: the values that become 0 and 255 where images have more than eight bits;
            they are converted linearly between them and cut beyond. Without a range such images
            are refused. Images of eight bits stay as they are.

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
        intensity_range=intensity_range,
    )
    registered = _registered(name)
    if registered is not None and registered.source == source:
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
    if source.intensity_range is not None:
        classes = {**classes, "intensity_range": source.intensity_range}
    try:
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
    except AssertionError as error:
        raise DatasetError(
            f"MetadataCatalog holds other metadata under {name!r}, as of a data set that was "
            f"removed; choose another name, or call MetadataCatalog.remove({name!r})"
        ) from error
    DatasetCatalog.register(name, _Registered(name, source, make))


def _registered(name: str) -> _Registered | None:
    """The entry of a data set that is registered here."""
    # DatasetCatalog.get() would load it.
    entry = dict(DatasetCatalog).get(name)
    return entry if isinstance(entry, _Registered) else None


def ensure_prepared(name: str, *, workers: int | None = None) -> Manifest | None:
    """Makes what training and evaluation on a data set need and lack.

    Applies to what is registered here and to Detectron2's `coco_2017_*_panoptic_separated`. These
    are left as they are if their stuff maps exist, else registered anew under the same name with
    stuff maps in a cache. Instance data that Detectron2 registered are loaded once if their class
    names aren't known before. Nothing is done for other data sets.

    Args:
        name: a registered data set.
        workers: number of processes, the available cores (at most 8) if None.

    Returns:
        What was derived, or None where nothing had to be.

    Raises:
        DatasetError: the data can't be used; nothing is written.
    """
    if _registered(name) is None and _lacks_stuff_maps(name):
        _register_anew(name)
    entry = _registered(name)
    if entry is None:
        if _lacks_class_names(name):
            DatasetCatalog.get(name)
        return None
    if entry.make is not None:
        entry.make()
    manifest = prepare(entry.source, workers=workers)
    classes = class_metadata(manifest.categories)
    difference = different_classes(classes, MetadataCatalog.get(name).as_dict(), capitals=False)
    if difference:
        raise DatasetError(
            f"{entry.source.panoptic_json}: not the categories that {name!r} was registered with: "
            f"{difference[0]} there was {difference[1]}; restore them, or register the data anew "
            "in a new process"
        )
    return manifest


def counted_categories(name: str) -> list[tuple[Json, int]] | None:
    """The categories of a data set, each with the number of its segments, crowds included; None of
    one that is not registered here, or not prepared."""
    entry = _registered(name)
    return None if entry is None else read_counts(entry.source)


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
    """Data sets that train and test one model have the same classes: ids, names and kinds.

    Args:
        names: those that are not registered don't count.

    Raises:
        DatasetError: naming the first that differs, and where.
    """
    known = [name for name in names if name in DatasetCatalog]
    for name in known[1:]:
        first, other = (MetadataCatalog.get(one).as_dict() for one in (known[0], name))
        difference = different_classes(first, other)
        if difference:
            raise DatasetError(
                f"{known[0]} and {name} have different categories: {difference[0]} there is "
                f"{difference[1]} here; one model can't be trained or tested on both: correct "
                "DATASETS.TRAIN or DATASETS.TEST, or number and name the categories alike"
            )


def _load(entry: _Registered) -> list[Json]:
    """The data set in Detectron2's format: instances and `sem_seg_file_name`."""
    manifest = ensure_prepared(entry.name)
    assert manifest is not None
    source = entry.source
    classes = MetadataCatalog.get(entry.name).thing_dataset_id_to_contiguous_id
    files = {image_id: (image, png) for image_id, image, png in manifest.files}
    converted = set(manifest.converted)
    # Given the data set's name, it would warn of every numbering other than 1, 2, ...
    records = load_coco_json(str(source.used_instances_json), str(source.images))
    for record in records:
        image, png = files[record["image_id"]]
        record["sem_seg_file_name"] = str(source.stuff_maps / stuff_map_name(png))
        if record["image_id"] in converted:
            record["file_name"] = str(source.converted_images / converted_image_name(image))
        for annotation in record["annotations"]:
            annotation["category_id"] = classes[annotation["category_id"]]
    return records


def _lacks_class_names(name: str) -> bool:
    """Whether `name` is instance data whose classes Detectron2 learns when it loads them."""
    if name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "coco" and not metadata.get("thing_classes")


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
    difference = different_classes(class_metadata(categories), metadata, capitals=False)
    if difference:
        raise DatasetError(
            f"{source.panoptic_json}: its categories differ from those of {name}: {difference[0]} "
            f"there is {difference[1]}; register these data under a name of your own with "
            "register_panoptic"
        )
    logger.info("%s lacks stuff maps: they go to %s", name, source.derived)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    # Detectron2's names and colours, which the JSON may lack.
    add_to_catalog(name, source, {key: metadata[key] for key in _CLASS_KEYS if key in metadata})
