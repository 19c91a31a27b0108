"""What tests of several tools need."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.modeling.conftest import CONFIGS


@pytest.fixture
def demo(monkeypatch):
    """Calls `tools/demo.py` with arguments."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
        runpy.run_path(str(CONFIGS.parent / "tools" / "demo.py"), run_name="__main__")

    return run
