"""The import name ``detectron2`` for the copy of Detectron2 inside LabGym.

Importing this package replaces it by the module ``LabGym.detectron2`` and installs one meta-path
finder that answers every later import of ``detectron2.x`` with the module object of
``LabGym.detectron2.x``. Classes, registries and module state therefore exist once, under both
names. Because the package does this itself when it is imported, it holds in spawned worker
processes too.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

_ALIAS = "detectron2"
_REAL = "LabGym.detectron2"

_LABGYM_MISSING = (
    "the installed `detectron2` is only an alias for the Detectron2 inside the package LabGym, "
    "and LabGym is not installed. Install it with\n"
    "    pip install --no-deps --ignore-requires-python LabGym==3.1.2\n"
    "or remove the alias (pip uninstall detectron2-from-labgym) and install Detectron2 itself."
)


def _real_name(name: str) -> str:
    return _REAL + name[len(_ALIAS) :]


class _AliasLoader(importlib.abc.InspectLoader):
    """Loads ``detectron2.x`` by handing out the module ``LabGym.detectron2.x``.

    Besides importing it serves what `runpy` (``python -m detectron2.x``) and `inspect` ask of a
    loader, by passing the question to the real module's loader under the real name.
    """

    def __init__(self, real_spec: importlib.machinery.ModuleSpec) -> None:
        self._real_spec = real_spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real_spec.name)
        self._spec_of_module = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module has been executed under its real name. The import system has just put the
        # alias's spec on it; resource lookup and circular imports need the real one.
        module.__spec__ = self._spec_of_module

    def is_package(self, fullname: str) -> bool:
        return self._real_spec.submodule_search_locations is not None

    def get_code(self, fullname: str) -> CodeType | None:
        return self._inspect_loader().get_code(self._real_spec.name)

    def get_source(self, fullname: str) -> str | None:
        return self._inspect_loader().get_source(self._real_spec.name)

    def get_filename(self, fullname: str) -> str:
        return str(self._real_spec.origin)

    def _inspect_loader(self) -> Any:
        return self._real_spec.loader


class _AliasFinder(importlib.abc.MetaPathFinder):
    """Answers for ``detectron2`` and everything below it, and for nothing else."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _ALIAS and not fullname.startswith(_ALIAS + "."):
            return None
        real_spec = importlib.util.find_spec(_real_name(fullname))
        if real_spec is None:
            return None
        spec = importlib.machinery.ModuleSpec(
            fullname, _AliasLoader(real_spec), origin=real_spec.origin
        )
        spec.submodule_search_locations = real_spec.submodule_search_locations
        spec.has_location = real_spec.has_location
        spec.cached = real_spec.cached
        return spec


def _install() -> None:
    finder = _AliasFinder()
    # First, because the ordinary path finder would also find `detectron2.x` in the directory of
    # `LabGym.detectron2` and execute a second copy of it; and before the import, because a module
    # named by DETECTRON2_ENV_MODULE is imported during it and may itself import detectron2.x.
    sys.meta_path.insert(0, finder)
    try:
        sys.modules[_ALIAS] = importlib.import_module(_REAL)
    except BaseException as error:
        sys.meta_path.remove(finder)
        if isinstance(error, ModuleNotFoundError) and error.name in ("LabGym", _REAL):
            raise ImportError(_LABGYM_MISSING, name=_ALIAS) from error
        raise


_install()
