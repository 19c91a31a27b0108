"""Checks of the GPU and of the data folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .finding import Finding, Status, load_prerequisite

_COCO_FILES = tuple(
    f"{pattern.format(split)}2017{suffix}"
    for split in ("train", "val")
    for pattern, suffix in (
        ("{}", ""),
        ("panoptic_{}", ""),
        ("annotations/panoptic_{}", ".json"),
        ("annotations/instances_{}", ".json"),
    )
)


def check_gpu() -> Finding:
    torch = load_prerequisite("GPU", "torch")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        each = [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices]
        return Finding("GPU", Status.OK, "; ".join(each))
    detail = "none that PyTorch can use; everything runs on the CPU"
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if not has_driver:
        return Finding("GPU", Status.NOTE, detail)
    if torch.version.cuda is None:
        cure = "a driver is there, but this PyTorch is a CPU build: install one for CUDA"
    else:
        cure = (
            f"a driver is there: see with nvidia-smi whether it works and is new enough for CUDA "
            f"{torch.version.cuda}, and whether CUDA_VISIBLE_DEVICES hides the GPU"
        )
    return Finding("GPU", Status.NOTE, detail, cure)


def data_root() -> Path:
    """`$DETECTRON2_DATASETS`, or `datasets` in the current folder, as Detectron2 has it."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser().absolute()


def check_data_root() -> Finding:
    name, root = "data folder", data_root()
    if not os.environ.get("DETECTRON2_DATASETS"):
        detail = f"{root}, because DETECTRON2_DATASETS is not set"
        return Finding(name, Status.OK, detail)
    # Not pathlib's is_dir and exists, which raise where a folder on the way may not be entered.
    if os.path.isdir(root):
        return Finding(name, Status.OK, f"{root}, from DETECTRON2_DATASETS")
    cure = "set it to the folder that has coco/ in it, or make the folder"
    detail = f"DETECTRON2_DATASETS names {root}: no such folder, or closed to you"
    return Finding(name, Status.NOTE, detail, cure)


def check_coco() -> Finding:
    """Whether COCO 2017 is there; only the configurations for COCO need it."""
    folder = data_root() / "coco"
    missing = [file for file in _COCO_FILES if not os.path.exists(folder / file)]
    if not missing:
        return Finding("COCO", Status.OK, str(folder))
    cure = (
        "if you want to use it: images and annotations are at https://cocodataset.org/#download; "
        "the panoptic PNGs are in a zip file inside the zip file of the panoptic annotations"
    )
    lack = "lacks" if os.path.isdir(folder) else "is not there; it would hold"
    return Finding("COCO", Status.NOTE, f"{folder} {lack} {', '.join(missing)}", cure)


def check_shapes() -> Finding:
    """Whether the embedded data set has been made."""
    shapes = load_prerequisite("shapes", "crbp_d2.data.shapes")
    try:
        folder = shapes.shapes_root()
    except OSError as error:
        cure = "set DETECTRON2_DATASETS to a folder that you may enter"
        return Finding("shapes", Status.TROUBLE, f"no folder for it: {error}", cure)
    absent = [split for split in shapes.SPLITS if not os.path.isdir(folder / split)]
    if absent:
        return Finding("shapes", Status.OK, f"not made yet; its first use does that, in {folder}")
    return Finding("shapes", Status.OK, str(folder))
