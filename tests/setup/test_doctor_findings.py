"""What the doctor's single checks find in environments that are wrong in one way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from crbp_d2.doctor import __main__ as doctor
from crbp_d2.doctor import detectron, machine, packages
from crbp_d2.doctor.finding import PIP, Finding, Status

from .checkout import ROOT, add_distribution

TOGETHER = f"install the two together: {PIP} install --force-reinstall torch torchvision"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for packages, looked at before all others."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def only(check: Callable[[], Finding]) -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (finding,) = doctor.examine([check])
    return finding


PRINTING = """
import json, sys
from crbp_d2.doctor import __main__ as doctor, detectron, packages
(finding,) = doctor.examine([eval(sys.argv[1])])
print(json.dumps([finding.name, finding.status.name, finding.detail, finding.cure]))
"""


def printed(*arguments: str, folder: Path | None = None) -> Finding:
    """What a check finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder or "")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, status, detail, cure = json.loads(done.stdout)
    return Finding(name, Status[status], detail, cure)


def alone(check: str, folder: Path) -> Finding:
    """What a check finds where nothing is installed but what is in `folder`."""
    return printed("-S", "-c", PRINTING, check, folder=folder)


def write_package(folder: Path, name: str, content: str = "") -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content)
    return folder


def test_a_damaged_package(tmp_path: Path):
    write_package(tmp_path, "numpy", "raise OSError('no libblas')")
    finding = alone("packages.check_numpy", tmp_path)
    assert finding.status is Status.TROUBLE
    assert finding.detail == "can't be imported: OSError: no libblas"
    assert finding.cure == f"{PIP} install --force-reinstall numpy"


def test_another_panopticapi(tmp_path: Path):
    finding = alone("packages.check_panopticapi", write_package(tmp_path, "panopticapi"))
    assert finding.status is Status.TROUBLE
    assert "the module panopticapi.evaluation is missing" in finding.detail
    assert finding.cure == f"{PIP} install --force-reinstall --no-deps panopticapi-lite"


MISFIT = """
import torch

def refuse(path):
    raise OSError("undefined symbol")

torch.ops.load_library = refuse
"""


def test_a_torchvision_for_another_torch():
    # Its library can't be loaded then, and whatever that leads to is its own doing.
    finding = printed("-c", MISFIT + PRINTING, "packages.check_torchvision")
    assert finding.status is Status.TROUBLE
    assert finding.cure == TOGETHER


def test_an_older_torchvision_that_fails_only_when_used(monkeypatch: pytest.MonkeyPatch):
    def nms(*arguments):
        raise RuntimeError("Couldn't load custom C++ ops.\nMore about it")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    finding = only(packages.check_torchvision)
    assert finding.status is Status.TROUBLE
    assert " does not fit PyTorch " in finding.detail
    assert finding.detail.endswith(": Couldn't load custom C++ ops.")
    assert finding.cure == TOGETHER


def test_a_numpy_that_torch_refuses(monkeypatch: pytest.MonkeyPatch):
    def from_numpy(array):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr("torch.from_numpy", from_numpy)
    finding = only(packages.check_numpy)
    assert finding.status is Status.TROUBLE
    assert finding.detail.endswith(": Numpy is not available")
    assert finding.cure == f'{PIP} install "numpy<2"'


def test_two_builds_of_opencv(site: Path):
    for build in ("opencv-python", "opencv-contrib-python"):
        add_distribution(site, build, "4.9.0.80")
    finding = only(packages.check_opencv)
    assert finding.status is Status.NOTE
    assert "several builds have overwritten each other's files" in finding.detail
    uninstall, install = finding.cure.split("; ")
    assert uninstall.startswith(f"{PIP} uninstall -y ")
    assert {"opencv-python", "opencv-contrib-python"} <= set(uninstall.split())
    assert install == f"{PIP} install opencv-python-headless"


def test_an_opencv_that_needs_a_display(tmp_path: Path):
    write_package(tmp_path, "cv2", "raise ImportError('libGL.so.1: cannot open')")
    add_distribution(tmp_path, "opencv-python", "4.9.0.80")
    finding = alone("packages.check_opencv", tmp_path)
    assert finding.status is Status.TROUBLE
    assert "libGL" in finding.detail
    assert "take the build without a display" in finding.cure
    assert "uninstall -y opencv-python;" in finding.cure


def test_the_alias_beside_detectron2_itself(site: Path):
    for distribution in ("detectron2-from-labgym", "detectron2"):
        add_distribution(site, distribution, "0.6")
    finding = only(detectron.check_detectron2)
    assert finding.status is Status.TROUBLE
    assert "both installed, into the same files" in finding.detail
    assert f"{PIP} uninstall -y detectron2-from-labgym detectron2, then" in finding.cure


# As far as the check looks: the parts that are used, and what differs between the versions.
AGES = {
    "about the release of November 2021": ("def build_batch_data_loader(dataset): ...", ""),
    "main branch, before May 2024": (
        "def build_batch_data_loader(dataset, **kwargs): ...",
        "def create_local_process_group(size): ...",
    ),
    "main branch, May 2024 or later": (
        "def build_batch_data_loader(dataset, *, seed=None, **kwargs): ...",
        "def create_local_process_group(size): ...",
    ),
}


@pytest.mark.parametrize("age", AGES)
def test_a_detectron2_tells_its_age_and_commit(tmp_path: Path, age: str):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    package = write_package(here, "detectron2", "__version__ = '0.6'") / "detectron2"
    for part in ("checkpoint", "config", "data", "engine", "evaluation", "modeling", "utils"):
        write_package(package, part, AGES[age][0] if part == "data" else "")
    (package / "utils" / "events.py").touch()
    (package / "utils" / "comm.py").write_text(AGES[age][1])

    def found() -> str:
        path = Path(f"{here}{os.pathsep}{elsewhere}")
        return alone("detectron.check_detectron2", path).detail

    note_commit(elsewhere, "b" * 40)
    assert found() == f"0.6 ({age}), Detectron2 itself, {package}"
    note_commit(here, "a" * 40)
    assert found() == f"0.6 ({age}, commit aaaaaaaa), Detectron2 itself, {package}"


def note_commit(folder: Path, commit: str) -> None:
    """What pip leaves of a Detectron2 that it has installed from a repository."""
    add_distribution(folder, "detectron2", "0.6")
    (information,) = folder.glob("*.dist-info")
    noted = {"url": "https://example.org", "vcs_info": {"vcs": "git", "commit_id": commit}}
    (information / "direct_url.json").write_text(json.dumps(noted))


def test_the_alias_without_labgym():
    finding = alone("detectron.check_detectron2", ROOT / "detectron2_alias")
    assert finding.status is Status.TROUBLE
    assert "LabGym is not installed" in finding.detail
    assert "`make install`" in finding.cure


@pytest.mark.parametrize(
    ("content", "detail", "cure"),
    [
        ("", "the module detectron2.checkpoint is missing", "`make install` in the checkout"),
        ("import yacs.config", "the module yacs is missing", f"{PIP} install yacs"),
        ("import os; os.LINEAR", "AttributeError", "older than other packages expect; `make"),
    ],
)
def test_a_detectron2_that_cannot_be_used(tmp_path: Path, content: str, detail: str, cure: str):
    finding = alone("detectron.check_detectron2", write_package(tmp_path, "detectron2", content))
    assert finding.status is Status.TROUBLE
    assert detail in finding.detail
    assert cure in finding.cure
    # The package index has none.
    assert f"{PIP} install --force-reinstall detectron2" not in finding.cure


def test_a_data_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = only(machine.check_data_root)
    assert finding.status is Status.OK
    assert finding.detail == f"{tmp_path}, from DETECTRON2_DATASETS"


# The second can't even be looked at, as if it lay in a folder that is closed to the user.
@pytest.mark.parametrize("name", ["nowhere", "x" * 300])
def test_a_missing_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    folder = tmp_path / name
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    finding = only(machine.check_data_root)
    assert finding.status is Status.NOTE
    assert f"DETECTRON2_DATASETS names {folder}: no such folder" in finding.detail
    assert "set it to the folder that has coco/ in it" in finding.cure
    assert only(machine.check_coco).detail.startswith(f"{folder / 'coco'} is not there")
    assert only(machine.check_shapes).name == "shapes"


def test_no_folder_for_the_shapes(monkeypatch: pytest.MonkeyPatch):
    def shapes_root():
        raise PermissionError("Permission denied: '/closed'")

    monkeypatch.setattr("crbp_d2.data.shapes.shapes_root", shapes_root)
    finding = only(machine.check_shapes)
    assert finding.status is Status.TROUBLE
    assert "Permission denied" in finding.detail
    assert "DETECTRON2_DATASETS" in finding.cure


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    finding = only(machine.check_data_root)
    assert finding.status is Status.OK
    assert finding.detail == f"{Path.cwd() / 'datasets'}, because DETECTRON2_DATASETS is not set"


def test_an_incomplete_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (coco / split).mkdir()
        (coco / f"panoptic_{split}").mkdir()
        (coco / "annotations" / f"panoptic_{split}.json").touch()
        (coco / "annotations" / f"instances_{split}.json").touch()
    assert only(machine.check_coco).status is Status.OK
    (coco / "annotations" / "instances_val2017.json").unlink()
    finding = only(machine.check_coco)
    assert finding.status is Status.NOTE
    assert finding.detail == f"{coco} lacks annotations/instances_val2017.json"
    assert "https://cocodataset.org/#download" in finding.cure
