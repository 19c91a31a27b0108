"""Pathfinder contour segmentation: images drawn on the fly or read from disk."""

from .config import SMALL, TINY, PathfinderConfig, preset, standard
from .folder import register_pathfinder_folder
from .generator import generate
from .images import (  # registers pathfinder_14_train and the other presets
    PathfinderImages,
    register_pathfinder,
)
from .mapper import PathfinderMapper, load_sample
from .sheet import contact_sheet
from .write import write_images

__all__ = [
    "SMALL",
    "TINY",
    "PathfinderConfig",
    "PathfinderImages",
    "PathfinderMapper",
    "contact_sheet",
    "generate",
    "load_sample",
    "preset",
    "register_pathfinder",
    "register_pathfinder_folder",
    "standard",
    "write_images",
]
