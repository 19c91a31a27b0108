"""From a Pathfinder record to a model input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch.utils.data import get_worker_info

from .draw import Bytes
from .folder import read_pair
from .generator import generate
from .images import Record, resolve


def load_sample(record: Record) -> tuple[Bytes, Bytes]:
    """Image `(H, W)` in 0..255 and mask `(H, W)` in {0, 1} of a record, drawn or read from disk.

    Raises:
        DatasetError: its files can't be used.
    """
    if "file_name" in record:
        image_path, mask_path = Path(record["file_name"]), Path(record["sem_seg_file_name"])
        return read_pair(image_path, mask_path, record["height"])
    image, mask, _ = generate(resolve(record["preset"]), record["seed"], record["index"])
    return image, mask


class PathfinderMapper:
    """A Detectron2 mapper for drawn images and for those on disk.

    A mapped record has, besides its own entries, `image`, a uint8 tensor `(1, H, W)` in 0..255, and
    `sem_seg`, a long tensor `(H, W)` in {0, 1}. Flips draw from NumPy's global generator, as
    Detectron2's augmentations do.

    Args:
        is_train: whether to flip at all.
        flip: flip left-right and up-down, each with probability 1/2 (the authors' four flips).
        transpose: also exchange rows and columns, with probability 1/2.
    """

    @configurable
    def __init__(self, *, is_train: bool, flip: bool = True, transpose: bool = False) -> None:
        self.is_train = is_train
        self.flip = flip
        self.transpose = transpose

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "flip": cfg.INPUT.RANDOM_FLIP != "none",
            "transpose": cfg.INPUT.TRANSPOSE,
        }

    def __call__(self, record: Record) -> Record:
        if get_worker_info() is not None:
            # OpenCV's thread pool does not survive the fork of a worker.
            cv2.setNumThreads(0)
        image, mask = load_sample(record)
        if self.is_train:
            image, mask = self._augment(image, mask)
        return {
            **record,
            "image": torch.from_numpy(image.copy())[None],
            "sem_seg": torch.from_numpy(mask.astype(np.int64)),
        }

    def _augment(self, image: Bytes, mask: Bytes) -> tuple[Bytes, Bytes]:
        across, down, exchange = (np.random.random(3) < 0.5).tolist()
        if self.flip and across:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if self.flip and down:
            image, mask = image[::-1], mask[::-1]
        if self.transpose and exchange:
            image, mask = image.T, mask.T
        return image, mask
