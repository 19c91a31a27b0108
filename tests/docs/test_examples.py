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


PAGES = sorted(
    path
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "**/*.md"), (ROOT, "*/README.md"))
    for path in folder.glob(pattern)
    if "_build" not in path.parts
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\((?![a-z]+:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    if page == ROOT / "README.md":
        assert len(links) > 10
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_project_that_a_page_names_exist(page):
    named = re.findall(
        r"(?<![\w/.])((?:benchmarks|configs|crbp_d2|datasets|docs|scripts|tests|tools)/[\w./-]+"
        r"\.(?:md|py|txt|yaml))\b",
        page.read_text(),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_every_tool_explains_itself_with_an_example(tool):
    done = subprocess.run(
        [sys.executable, tool, "--help"], capture_output=True, text=True, check=False
    )
    # Not even warnings of the packages below.
    assert (done.returncode, done.stderr) == (0, "")
    assert "example" in done.stdout and f"tools/{tool.name}" in done.stdout
