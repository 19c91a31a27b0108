"""What a check returns, and how a check imports what it examines."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable
from enum import Enum
from types import ModuleType
from typing import NamedTuple

PIP = f"{sys.executable} -m pip"


class Status(Enum):
    OK = "ok"
    # Works, though somebody might expect more.
    NOTE = "note"
    # The main job can't run.
    TROUBLE = "TROUBLE"
    # Not looked at, because of a trouble elsewhere.
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """The result of a check. `cure` is empty where there is nothing to mend."""

    name: str
    status: Status
    detail: str
    cure: str = ""


class CheckError(Exception):
    """A check can't go on: `finding` is its result. `__cause__` is the error behind it, if any."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


def load(name: str, module: str, requirement: str) -> ModuleType:
    """Imports a module.

    Args:
        name: of the check.
        module: its import name.
        requirement: what pip has to be told to install it.

    Raises:
        CheckError: the import failed, for whatever reason.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package, missing = module.partition(".")[0], error.name or "?"
        detail = f"can't be imported, because the module {missing} is missing"
        if missing == package:
            detail = "not installed"
            cure = f"{PIP} install {requirement}"
        elif missing.startswith(package + "."):
            # Damaged, of another version, or another package of that name.
            cure = f"{PIP} install --force-reinstall {requirement}"
        else:
            provider = missing.partition(".")[0]
            cure = f"install what provides it, probably with {PIP} install {provider}"
        raise CheckError(Finding(name, Status.TROUBLE, detail, cure)) from error
    except Exception as error:
        # Not only ImportError: a damaged or mismatched package raises anything when it is imported.
        detail = f"can't be imported: {type(error).__name__}: {error}"
        cure = f"{PIP} install --force-reinstall {requirement}"
        raise CheckError(Finding(name, Status.TROUBLE, detail, cure)) from error


def load_prerequisite(name: str, module: str) -> ModuleType:
    """Imports a module that has a check of its own.

    Raises:
        CheckError: the import failed. The reason is left to the module's own check.
    """
    try:
        return load(name, module, module)
    except CheckError as error:
        detail = f"{module} has to be mended first"
        raise CheckError(Finding(name, Status.SKIPPED, detail)) from error


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Version by name, of those distributions that are installed."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
