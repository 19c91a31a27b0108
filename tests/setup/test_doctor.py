"""The doctor as a command: its verdict, and that it runs where nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest

from crbp_d2.doctor import __main__ as doctor
from crbp_d2.doctor.finding import PIP, Finding, Status

from .absence import finders_without, loaded
from .checkout import ROOT


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Hides packages from this process until the end of the test."""

    def hide(*names: str) -> None:
        for name in loaded(*names):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", finders_without(*names))

    return hide


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # What a tester has put on the path would be found even where nothing is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def named(name: str) -> Finding:
    """What the doctor finds under a name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(finding for finding in doctor.examine() if finding.name == name)


def details(text: str, status: Status) -> dict[str, str]:
    """The details of the findings of one status, by their names."""
    lines = [line for line in text.splitlines() if line.startswith(f"{status.value} ")]
    return {line[9:28].strip(): line[29:] for line in lines}


def test_ends_with_0_where_the_main_job_can_run(capsys: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        code = doctor.main([])
    text = capsys.readouterr().out
    assert code == 0, text
    assert text.endswith("\nThe main job can run.\n")
    assert details(text, Status.TROUBLE) == details(text, Status.SKIPPED) == {}
    fine = details(text, Status.OK)
    assert {"Python", "PyTorch", "torchvision", "Detectron2", "crbp_d2"} <= set(fine)


NO_TORCH = """
from tests.setup.absence import hide
import runpy
hide("torch")
runpy.run_module("crbp_d2.doctor", run_name="__main__")
"""


def test_without_torch_it_ends_with_1_and_leaves_out_what_needs_torch():
    done = python("-c", NO_TORCH)
    assert done.returncode == 1
    assert done.stderr == ""
    assert details(done.stdout, Status.TROUBLE)["PyTorch"] == "not installed"
    assert f"-> {PIP} install torch torchvision\n" in done.stdout
    skipped = details(done.stdout, Status.SKIPPED)
    for name in ("torchvision", "crbp_d2", "GPU"):
        assert skipped[name] == "torch has to be mended first"
    assert "NumPy" in details(done.stdout, Status.OK)
    assert "\nThe main job can't run: PyTorch, " in done.stdout


def test_runs_on_the_standard_library_alone():
    # -S leaves out all that is installed.
    done = python("-S", "-m", "crbp_d2.doctor")
    assert done.returncode == 1
    assert done.stderr == ""
    trouble = details(done.stdout, Status.TROUBLE)
    assert len(trouble) == 10
    assert all("not installed" in detail for detail in trouble.values())
    lines = done.stdout.splitlines()
    for line, following in zip(lines, lines[1:], strict=False):
        assert not line.startswith("TROUBLE") or following.strip().startswith("-> "), line
    assert f"can't run: {', '.join(trouble)}. Mend the first" in done.stdout


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "    DETECTRON2_DATASETS=/data python -m crbp_d2.doctor\n" in text
    assert "Ends with 0 if the main job can run, else with 1" in text


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--mend"])
    assert ended.value.code == 2
    assert "--mend" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("check", "package", "requirement"),
    [
        ("torchvision", "torchvision", "torchvision"),
        ("NumPy", "numpy", "numpy"),
        ("Pillow", "PIL", "pillow"),
        ("OpenCV", "cv2", "opencv-python-headless"),
        ("SciPy", "scipy", "scipy"),
        ("pycocotools", "pycocotools", "pycocotools"),
        ("panopticapi", "panopticapi", "--no-deps panopticapi-lite"),
        ("fvcore", "fvcore", "fvcore"),
        ("setuptools", "pkg_resources", '"setuptools<81"'),
    ],
)
def test_a_missing_package(without, check: str, package: str, requirement: str):
    assert named(check).status is Status.OK
    without(package)
    finding = named(check)
    assert finding.status is Status.TROUBLE
    assert finding.detail.endswith("not installed")
    assert finding.cure == f"{PIP} install {requirement}"


def test_a_missing_detectron2(without):
    without("detectron2")
    finding = named("Detectron2")
    assert (finding.status, finding.detail) == (Status.TROUBLE, "not installed")
    assert "`make install`" in finding.cure
    assert named("compiled operators").status is Status.SKIPPED
