"""The loaders of a run: which mapper and which stream belong to a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm
from torch.utils.data import ConcatDataset, DataLoader

from crbp_d2.core import ConfigurationError, did_you_mean

from .fraction import fraction_of
from .mapper import PanopticMapper
from .pathfinder import PathfinderMapper
from .pathfinder.images import EVALUATOR_TYPE, PathfinderImages
from .sampler import build_resumable_train_loader
from .validate import DatasetError


def require_registered(name: str, key: str) -> None:
    """Refuse a name that no data set has.

    Args:
        name: of a data set.
        key: of the configuration that gives it, for the message.

    Raises:
        DatasetError: naming those that it may have been meant to be.
    """
    if name in DatasetCatalog:
        return
    meant = did_you_mean(name, DatasetCatalog.list())
    raise DatasetError(
        f"{key}: no data set is registered as {name!r}{f' ({meant})' if meant else ''}; register "
        "your own with register_panoptic or register_pathfinder (in every process: not below "
        "`if __name__ == '__main__'`), or name their YAML file in DATASETS.FILE"
    )


def require_even_batches(cfg: CfgNode, world_size: int) -> None:
    """Refuse a batch that the processes of a run can't share evenly.

    Raises:
        ConfigurationError: naming the key.
    """
    total, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    sharing = reference or world_size
    if total < 1 or total % sharing:
        whose = "of SOLVER.REFERENCE_WORLD_SIZE" if reference else "that train"
        raise ConfigurationError(
            f"SOLVER.IMS_PER_BATCH is {total}: must be a multiple of the {sharing} processes "
            f"{whose}, which share it"
        )


def require_fraction(cfg: CfgNode) -> None:
    """Refuse a `DATASETS.FRACTION` that is none, or of images that are drawn.

    Raises:
        ConfigurationError: naming the key.
    """
    fraction = cfg.DATASETS.FRACTION
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"DATASETS.FRACTION is {fraction}: must be above 0 and at most 1")
    if fraction < 1 and any(map(is_pathfinder, cfg.DATASETS.TRAIN)):
        raise ConfigurationError(
            f"DATASETS.FRACTION is {fraction}: Pathfinder images are as many as their data set is "
            "registered with; set it to 1.0, and register one of another size"
        )


def is_pathfinder(name: str) -> bool:
    """Whether a registered data set holds Pathfinder images."""
    return MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE


def build_train_loader(cfg: CfgNode) -> Any:
    """The endless stream of training batches of `DATASETS.TRAIN`.

    With a `SEED` of at least 0 and without `DATALOADER.ASPECT_RATIO_GROUPING` it depends on seed
    and iteration alone, so that it can be continued exactly (see `crbp_d2.data.sampler`);
    otherwise, or with another sampler than TrainingSampler, it is Detectron2's own. Pathfinder
    streams are always of the first kind. Of other data `DATASETS.FRACTION` leaves a part.

    Raises:
        ConfigurationError: see `require_even_batches`.
        DatasetError: Pathfinder and other data are mixed, or `DATALOADER.ENDLESS` is set for data
            that are not drawn.
    """
    require_even_batches(cfg, comm.get_world_size())
    kinds = {is_pathfinder(name) for name in cfg.DATASETS.TRAIN}
    if len(kinds) > 1:
        raise DatasetError(
            f"DATASETS.TRAIN mixes Pathfinder with other data: {', '.join(cfg.DATASETS.TRAIN)}"
        )
    common = {
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "seed": max(cfg.SEED, 0),
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }
    if kinds == {True}:
        images = [DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN]
        return build_resumable_train_loader(
            _joined(images, cfg.DATALOADER.ENDLESS),
            mapper=PathfinderMapper(cfg, is_train=True),
            endless=cfg.DATALOADER.ENDLESS,
            **common,
        )
    loader = cfg.DATALOADER
    mapper = PanopticMapper(cfg, is_train=True)
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=loader.FILTER_EMPTY_ANNOTATIONS
    )
    if cfg.DATASETS.FRACTION < 1:
        records = fraction_of(records, cfg.DATASETS.FRACTION, cfg.DATASETS.FRACTION_SEED)
    if cfg.SEED < 0 or loader.ASPECT_RATIO_GROUPING or loader.SAMPLER_TRAIN != "TrainingSampler":
        if cfg.SEED < 0:
            # Since May 2024 Detectron2 takes -1 for a seed: every run would have the same order.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SEED = comm.shared_random_seed()
        return build_detection_train_loader(cfg, mapper=mapper, dataset=records)
    return build_resumable_train_loader(records, mapper=mapper, **common)


def build_test_loader(cfg: CfgNode, name: str, **options: Any) -> DataLoader[Any]:
    """Detectron2's test loader, with the mapper that belongs to a data set; of Pathfinder images in
    batches of `TEST.IMS_PER_BATCH`.

    Args:
        options: for `build_detection_test_loader`.
    """
    mapper = PathfinderMapper if is_pathfinder(name) else PanopticMapper
    options.setdefault("mapper", mapper(cfg, is_train=False))
    if is_pathfinder(name) and cfg.TEST.IMS_PER_BATCH:
        options.setdefault("batch_size", cfg.TEST.IMS_PER_BATCH)
    loader: DataLoader[Any] = build_detection_test_loader(cfg, name, **options)
    return loader


def _joined(images: Sequence[Any], endless: bool) -> Any:
    if endless and (len(images) > 1 or not isinstance(images[0], PathfinderImages)):
        raise DatasetError(
            "DATALOADER.ENDLESS needs DATASETS.TRAIN to be one data set of drawn images, such as "
            "pathfinder_14_train"
        )
    return images[0] if len(images) == 1 else ConcatDataset(images)
