"""The examples in the documentation run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from crbp_d2.config.table import markdown

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_table_of_keys_is_that_of_the_code():
    assert (ROOT / "docs" / "config.md").read_text() == markdown()


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
