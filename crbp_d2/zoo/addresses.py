"""Addresses of the models, `crbp://NAME`, and their files for Detectron2's PathManager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

from crbp_d2.core import ConfigurationError
from crbp_d2.core.errors import choices, did_you_mean

PREFIX = "crbp://"
CONFIG, WEIGHTS = "config.yaml", "model_final.pth"
_PACKAGE = Path(__file__).parent


def names() -> list[str]:
    """Of the models that are there, sorted."""
    return sorted(path.parent.name for path in _PACKAGE.glob(f"*/{WEIGHTS}"))


def is_address(text: str) -> bool:
    """Whether a text is meant to be `crbp://NAME`."""
    return text.startswith(PREFIX)


def folder_of(address: str) -> Path:
    """The folder of a model, in which a training could have left it.

    Args:
        address: `crbp://NAME`.

    Raises:
        ConfigurationError: there is no model of that name.
    """
    name, known = address.removeprefix(PREFIX).rstrip("/"), names()
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigurationError(
            f"{address}: there is no such model in the package; there are {choices(known)}"
            + (f"; {near}" if near else "")
        )
    return _PACKAGE / name


def in_package(folder: Path) -> bool:
    """Whether a folder is that of one of the models, to which nothing is to be added."""
    return folder.resolve().parent == _PACKAGE.resolve()


class _Handler(PathHandler):
    """Lets Detectron2 read `MODEL.WEIGHTS crbp://NAME`."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **options: Any) -> str:
        return str(folder_of(path) / WEIGHTS)


PathManager.register_handler(_Handler())
