"""The versions in constraints.txt, and what the package and the alias ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .checkout import Checkout


def requirements(folder: Path) -> tuple[str, list[Requirement]]:
    """Version and requirements, extras included, that building the package in `folder` declares."""
    has_script = (folder / "setup.py").exists()
    script = ["setup.py"] if has_script else ["-c", "import setuptools; setuptools.setup()"]
    subprocess.run([sys.executable, *script, "-q", "egg_info"], cwd=folder, check=True)
    (information,) = folder.glob("*.egg-info")
    lines = (information / "PKG-INFO").read_text().splitlines()
    (version,) = [line.split()[1] for line in lines if line.startswith("Version:")]
    texts = [line.partition(":")[2] for line in lines if line.startswith("Requires-Dist:")]
    return version, [Requirement(text) for text in texts]


PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


@pytest.mark.parametrize("package", [".", "detectron2_alias"])
def test_pinned_versions_lie_in_the_declared_ranges(tmp_path: Path, package: str):
    checkout = Checkout(tmp_path)
    pins = [
        Requirement(line)
        for line in (checkout.folder / "constraints.txt").read_text().splitlines()
        if line[:1] not in ("", "#")
    ]
    version, declared = requirements(checkout.folder / package)
    assert len(declared) > 10
    if package == ".":
        content = (checkout.folder / "crbp_d2" / "__init__.py").read_text()
        assert f'__version__ = "{version}"' in content
    for requirement in declared:
        for python in PYTHONS:
            pinned = [
                pin
                for pin in pins
                if pin.name == requirement.name
                and (pin.marker is None or pin.marker.evaluate({"python_version": python}))
            ]
            assert len(pinned) == 1, (requirement, python)
            (exact,) = pinned[0].specifier
            assert exact.operator == "=="
            assert requirement.specifier.contains(exact.version), (requirement, exact)
