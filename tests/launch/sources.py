"""The project's own files, for tests that all of them keep to a rule."""

from __future__ import annotations

from pathlib import Path

from tests.distributed import ROOT


def sources(*left_out: str) -> list[Path]:
    """All Python files but the tests, without some, whose paths begin at the project's root."""
    files = [
        path
        for folder in ("crbp_d2", "tools", "datasets", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path not in [ROOT / name for name in left_out]
    ]
    assert len(files) > 100
    return files
