"""Hides installed packages, so that they are missing in the way the import system means it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


class _Without:
    """A finder of `sys.meta_path` that no longer finds some packages."""

    def __init__(self, finder: Any, packages: tuple[str, ...]) -> None:
        self._finder = finder
        self._packages = packages

    def __getattr__(self, name: str) -> Any:
        # importlib.metadata asks the finders too.
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self._packages:
            return None
        find_spec = getattr(self._finder, "find_spec", None)
        return find_spec and find_spec(name, path, target)


def finders_without(*packages: str) -> list[Any]:
    return [_Without(finder, packages) for finder in sys.meta_path]


def loaded(*packages: str) -> Iterator[str]:
    """The names in `sys.modules` of the packages and of what is in them."""
    return (name for name in list(sys.modules) if name.partition(".")[0] in packages)


def hide(*packages: str) -> None:
    """For the rest of this process. In pytest's own use the fixture `without`."""
    for name in loaded(*packages):
        del sys.modules[name]
    sys.meta_path[:] = finders_without(*packages)
