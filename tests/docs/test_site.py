"""The documentation as a site: it builds without a warning, and its links lead somewhere."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.distributed import python_path

pytest.importorskip("sphinx", reason="sphinx (the extra docs) is not installed")
pytest.importorskip("myst_parser", reason="myst-parser (the extra docs) is not installed")
pytest.importorskip("furo", reason="furo (the extra docs) is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PUBLIC = (
    *("crbp_d2.core", "crbp_d2.modeling", "crbp_d2.data", "crbp_d2.data.pathfinder"),
    "crbp_d2.data.convert",
    *("crbp_d2.evaluation", "crbp_d2.engine", "crbp_d2.config", "crbp_d2.zoo"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-q", "-b", "html",
         "-d", folder / "doctrees", ROOT / "docs", folder / "html"],
        env={**os.environ, "PYTHONPATH": python_path()}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "html"


class _Page(HTMLParser):
    """What a page points to, and what can be pointed to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        if "id" in found:
            self.anchors.add(found["id"])
        link = found.get("src" if tag in ("img", "script") else "href")
        if link and tag in ("a", "img", "script", "link"):
            self.links.append(link)


def test_links_inside_the_site_lead_somewhere(site):
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            address, anchor = urldefrag(unquote(link))
            target = (path.parent / address.partition("?")[0]).resolve() if address else path
            # furo's own way to the top of a page.
            is_there = target.is_file() and (
                not anchor or target not in pages or anchor in pages[target].anchors
            )
            if not is_there and link != "#":
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead


def test_pages_need_nothing_from_the_network(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', path.read_text()
        )
        assert not loaded, path


def test_equations_are_drawn(site):
    text = (site / "algorithms.html").read_text()
    assert text.count("<math") > 20
    assert "$" not in re.sub(r"<(script|style|pre|code).*?</\1>", "", text, flags=re.S)


@pytest.fixture(scope="module")
def documented(site):
    """Names that have a place on a page of the API."""
    return {name for path in (site / "api").glob("*.html") for name in _Page(path).anchors}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_its_place_on_a_page(documented, module):
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert names <= documented
