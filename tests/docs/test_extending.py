"""A package of somebody else's brings a part of each kind, by its documentation alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import python_path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
(YAML,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
TINY = """
SOLVER: {MAX_ITER: 3, IMS_PER_BATCH: 2, CHECKPOINT_PERIOD: 3}
DATASETS: {TEST: []}
TEST: {PICTURES: 0}
"""


def test_the_cell_outside_the_package_learns():
    names: dict[str, Any] = {}
    exec(PYTHON[0], names)
    assert names["losses"][-1] < 0.3 * names["losses"][0]
    assert names["result"].diagnostics.scalars()["neumann_terms"] > 0


@pytest.fixture
def package(tmp_path):
    """The file of parts, and the YAML over a contour model of this project."""
    (tmp_path / "my_parts.py").write_text(PYTHON[1])
    (tmp_path / "mine.yaml").write_text(YAML.replace("configs/", f"{ROOT}/configs/") + TINY)
    return tmp_path


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), python_path()]),
        "CRBP_D2_PARTS": "my_parts",
    }
    command = [sys.executable, ROOT / "tools" / "train_net.py", "--config-file", "mine.yaml"]
    return subprocess.run(
        [*command, "OUTPUT_DIR", "out", *overrides],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_one_part_of_each_kind_trains_from_a_yaml_that_names_them(package):
    done = train(package)
    assert done.returncode == 0, done.stderr
    lines = (package / "out" / "metrics.json").read_text().splitlines()
    logged = [json.loads(line) for line in lines][-1]
    assert logged["recurrence/neumann_terms"] == 4 and logged["recurrence/steps"] == 6
    assert logged["loss_change"] >= 0
    printed = done.stdout + done.stderr
    assert "Relaxed(rate=0.8)" in printed and "Richardson(products=4, rate=0.9)" in printed
    assert "Diffusion" in printed


def test_a_wrong_option_of_such_a_part_is_answered_with_the_right_one(package):
    text = (package / "mine.yaml").read_text()
    (package / "mine.yaml").write_text(text.replace("PRODUCTS", "PRODUCT"))
    done = train(package)
    assert done.returncode != 0
    assert re.search(r"CRBP\.ADJOINT\.PRODUCT: .*did you mean products\?", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [("relaxd", "relaxed"), ("richardsen", "richardson"), ("difusion", "diffusion")],
)
def test_a_wrong_name_of_a_part_is_answered_with_the_right_one(name, meant, package):
    """Whatever the base has of options that the other parts don't take."""
    text = (package / "mine.yaml").read_text()
    (package / "mine.yaml").write_text(text.replace(f'"{meant}"', f'"{name}"'))
    done = train(package)
    assert done.returncode != 0
    assert f"unknown {kind_of(meant)} {name!r}; did you mean {meant}?" in done.stderr
    assert "CRBP_D2_PARTS" in done.stderr and "Traceback" not in done.stderr


def kind_of(name: str) -> str:
    return {"relaxed": "solver", "richardson": "adjoint", "diffusion": "cell"}[name]


def test_a_module_that_is_not_there_is_named(package):
    (package / "my_parts.py").unlink()
    done = train(package)
    assert "CRBP_D2_PARTS names my_parts, which can't be imported" in done.stderr
    assert "Traceback" not in done.stderr
