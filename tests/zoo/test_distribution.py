"""What is built of the package holds the models."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from crbp_d2.zoo import CARD, CONFIG, WEIGHTS, names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta as b; b.build_wheel('built'); b.build_sdist('built')"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and an sdist, of a copy: a build leaves folders beside the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "crbp_d2", copy / "crbp_d2", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return copy / "built"


def test_wheel_and_sdist_hold_every_model(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
        in_wheel = set(archive.namelist())
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
        for name in names():
            files = {f"crbp_d2/zoo/{name}/{file}" for file in (CARD, CONFIG, WEIGHTS)}
            assert files <= in_wheel and files <= in_sdist
            weights = (ROOT / "crbp_d2" / "zoo" / name / WEIGHTS).read_bytes()
            assert archive.read(f"crbp_d2/zoo/{name}/{WEIGHTS}") == weights


def test_a_wheel_holds_every_module_and_what_else_the_package_reads(built):
    (wheel,) = built.glob("*.whl")
    package = ROOT / "crbp_d2"
    needed = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        assert needed <= set(archive.namelist())
