"""Trained models that come with the package, by address: `crbp://NAME`.

Each is a folder here with what a training leaves, `config.yaml` and `model_final.pth`, and a card
that says what it is. `tools/analyze.py pack` writes such a folder.
"""

from .addresses import (  # registers crbp:// with Detectron2's PathManager
    CONFIG,
    PREFIX,
    WEIGHTS,
    folder_of,
    in_package,
    is_address,
    names,
)
from .cards import CARD, Card, read_card

__all__ = [
    "CARD",
    "CONFIG",
    "Card",
    "PREFIX",
    "WEIGHTS",
    "folder_of",
    "in_package",
    "is_address",
    "names",
    "read_card",
]
