"""The examples in the documentation run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_the_cell_outside_the_package_learns():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_cell.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["losses"][-1] < 0.3 * names["losses"][0]
    assert names["result"].diagnostics.scalars()["neumann_terms"] > 0


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_every_tool_explains_itself_with_an_example(tool):
    done = subprocess.run(
        [sys.executable, tool, "--help"], capture_output=True, text=True, check=False
    )
    # Not even warnings of the packages below.
    assert (done.returncode, done.stderr) == (0, "")
    assert "example" in done.stdout and f"tools/{tool.name}" in done.stdout
