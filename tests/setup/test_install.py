"""Setting up: what pip is asked for, when it is not asked at all, and what is said of failures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .checkout import Checkout, add_distribution

pytestmark = pytest.mark.slow

ALIAS = "detectron2-from-labgym"
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def complete(checkout: Checkout) -> Checkout:
    """An environment that lacks nothing, set up by the script."""
    checkout.add(*checkout.ask("*install.MODULES, 'detectron2', 'LabGym'").split())
    checkout.add_distribution(ALIAS, "0.1.0")
    done = checkout.install()
    assert done.returncode == 0, done.stderr
    assert "Set up." in done.stdout
    assert checkout.pip_calls()
    return checkout


@needs_make
def test_a_second_make_install_says_and_does_nothing(complete: Checkout):
    assert complete.ask("install.is_set_up()") == "True"
    done = complete.run("make", "install", f"PYTHON={complete.python}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert complete.pip_calls() == []


@pytest.mark.parametrize(
    "file",
    ["constraints.txt", "setup.py", "pyproject.toml", "detectron2_alias/detectron2/__init__.py"],
)
def test_a_changed_file_makes_the_set_up_outdated(complete: Checkout, file: str):
    before = complete.ask("install.fingerprint()")
    assert complete.ask("install.fingerprint()") == before
    with (complete.folder / file).open("a") as changed:
        changed.write("# changed\n")
    assert complete.ask("install.fingerprint()") != before
    assert complete.install().returncode == 0
    assert complete.pip_calls()
    assert complete.install().returncode == 0
    assert complete.pip_calls() == []


@pytest.mark.parametrize("module", ["torch", "panopticapi", "ruff", "LabGym", "detectron2"])
def test_a_removed_package_is_brought_back(complete: Checkout, module: str):
    complete.remove(module)
    assert complete.ask("install.is_set_up()") == "False"
    # A folder with its name on the path is not the package.
    (complete.site / module).mkdir()
    assert complete.ask("install.is_set_up()") == "False"


def test_the_package_of_another_checkout_is_not_ours(complete: Checkout):
    (complete.site / "crbp_d2.py").touch()
    assert complete.ask("install.is_set_up()") == "False"


def test_somebody_elses_environment_keeps_its_versions(checkout: Checkout):
    checkout.add("pkg_resources")
    for name, version in (("Torch", "2.3.0+cu118"), ("numpy", "1.24.0"), ("PyYAML", "6.0")):
        checkout.add_distribution(name, version)
    checkout.add_distribution("typing_extensions", "4.9.0")
    checkout.add_distribution("setuptools", "69.0.0")
    checkout.add_distribution("unheard-of", "7")
    checkout.add_distribution("crbp_d2", "0.0.1")
    checkout.add_distribution(ALIAS, "0.0.1")
    lines = checkout.ask("install.additive_constraints()").splitlines()
    kept = ["numpy==1.24.0", "pyyaml==6.0", "setuptools==69.0.0", "torch==2.3.0+cu118"]
    kept += ["typing-extensions==4.9.0", "unheard-of==7"]
    assert lines[: len(kept)] == kept
    replaced = {"numpy", "pyyaml", "setuptools", "torch", "typing-extensions"}
    assert lines[len(kept) :] == [
        line
        for line in (checkout.folder / "constraints.txt").read_text().splitlines()
        if line[:1] not in ("", "#") and line.partition("==")[0] not in {*replaced, "torchvision"}
    ]


def test_the_first_of_two_distributions_of_a_name_counts(checkout: Checkout):
    checkout.add_distribution("tqdm", "4.0")
    # On the path after it, by the file of the editable installation.
    add_distribution(checkout.folder, "tqdm", "3.0")
    lines = checkout.ask("install.additive_constraints()").splitlines()
    assert [line for line in lines if line.startswith("tqdm")] == ["tqdm==4.0"]


def test_without_torch_torchvision_is_the_pinned_one(checkout: Checkout):
    pins = checkout.ask("install.additive_constraints()").splitlines()
    assert {line.partition("==")[0] for line in pins} >= {"torch", "torchvision"}
    assert all(line in (checkout.folder / "constraints.txt").read_text() for line in pins)


def test_setuptools_without_pkg_resources_is_replaced_by_the_pinned_one(checkout: Checkout):
    checkout.add_distribution("setuptools", "90.0.0")
    pins = checkout.ask("install.additive_constraints()").splitlines()
    (pin,) = [line for line in pins if line.startswith("setuptools==")]
    assert pin in (checkout.folder / "constraints.txt").read_text().splitlines()


def test_an_empty_environment_of_our_own_gets_everything_as_pinned(checkout: Checkout):
    assert checkout.install("--own").returncode == 0
    tools, main, bare = checkout.pip_calls()
    pinned = (checkout.folder / "constraints.txt").read_text()
    assert [call["constraints"] for call in (tools, main, bare)] == [pinned] * 3
    assert tools["arguments"][-2:] == ["setuptools", "wheel"]
    wanted = main["arguments"][main["arguments"].index("-c") + 2 :]
    assert wanted[:4] == [
        "--no-build-isolation",
        "-e",
        ".[dev,viz,deq,pretrained,docs,onnx]",
        "torchvision",
    ]
    # A copy, because building would leave litter in the checkout.
    assert Path(wanted[4]).name == "detectron2_alias"
    assert not Path(wanted[4]).is_relative_to(checkout.folder)
    assert wanted[5:] == ["opencv-python-headless"]
    assert bare["arguments"][-4:] == [
        *("--no-deps", "--ignore-requires-python", "panopticapi-lite", "LabGym"),
    ]


def test_what_is_there_is_not_asked_for(checkout: Checkout):
    checkout.add("torch", "detectron2", "cv2", "panopticapi")
    checkout.add_distribution("torch", "2.3.0")
    assert checkout.install().returncode == 0
    (call,) = checkout.pip_calls()
    assert call["arguments"][-3:] == ["-e", ".[dev,viz,deq,pretrained,docs,onnx]", "torchvision"]
    assert "torch==2.3.0" in call["constraints"].splitlines()
    assert "torchvision==" not in call["constraints"]


def test_a_failing_pip_is_named_with_the_cure_and_nothing_counts_as_done(checkout: Checkout):
    (checkout.pip / "fails").touch()
    done = checkout.install()
    assert done.returncode == 1
    assert "no connection" in done.stderr
    assert f"Set-up failed: `{checkout.python} -m pip install" in done.stderr
    assert "--no-deps --ignore-requires-python panopticapi-lite LabGym` ended with 1" in done.stderr
    assert "HTTPS_PROXY" in done.stderr
    assert "run `make install` again" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Set up." not in done.stdout
    assert checkout.stamps() == []


def test_a_python_without_pip_is_told_how_to_get_it(checkout: Checkout):
    shutil.rmtree(checkout.pip)
    done = checkout.install()
    assert done.returncode == 1
    assert (
        f"there is no pip in {checkout.python}; run `{checkout.python} -m ensurepip`" in done.stderr
    )
    assert checkout.stamps() == []


def test_a_broken_environment_is_made_anew_and_the_next_call_goes_on(checkout: Checkout):
    folder = checkout.folder / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    (folder / "bin" / "python").symlink_to("/no/such/python")
    (folder / "rest").touch()
    # The real pip of the new environment, which fails because it may not look anywhere.
    done = checkout.install("--venv", ".venv")
    assert done.stdout.startswith(f"Making {folder} with Python")
    assert not (folder / "rest").exists()
    subprocess.run([folder / "bin" / "python", "-c", "import pip"], check=True)
    failed = f"Set-up failed: `{folder / 'bin' / 'python'} -m pip install"
    assert failed in done.stderr
    done = checkout.install("--venv", ".venv")
    assert failed in done.stderr
    assert "Making" not in done.stdout
    assert done.returncode == 1
    assert checkout.stamps() == []


UNABLE = """
import os, sys
if sys.orig_argv[1:3] == ["-m", "venv"]:
    os.makedirs(sys.orig_argv[-1])
    print("ensurepip is not available")
    sys.exit(1)
"""


def test_a_python_that_cannot_make_environments_leaves_no_half_made_one(checkout: Checkout):
    # As on Debian, where the environment is there when its pip turns out not to be.
    (checkout.site / "startup.pth").write_text("import startup\n")
    (checkout.site / "startup.py").write_text(UNABLE)
    done = checkout.install("--venv", ".venv")
    assert done.returncode == 1
    assert f"{checkout.python} can't make a virtual environment:\nensurepip is not" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert "make install BASE_PYTHON=" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_a_folder_with_something_else_in_it_is_not_cleared(checkout: Checkout):
    done = checkout.install("--venv", "scripts")
    assert done.returncode == 1
    assert "scripts is no virtual environment" in done.stderr
    assert (checkout.folder / "scripts" / "install.py").exists()


@needs_make
def test_make_help_names_every_target(checkout: Checkout):
    makefile = (checkout.folder / "Makefile").read_text()
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    for command in (("make",), ("make", "help")):
        done = checkout.run(*command)
        assert done.returncode == 0
        named = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("make ")}
        assert named == set(phony.split()[1:]) - {"help"}
    assert checkout.pip_calls() == []


@needs_make
def test_make_names_a_python_that_is_not_there(checkout: Checkout):
    done = checkout.run("make", "install", "BASE_PYTHON=no-such-python")
    assert done.returncode != 0
    assert "there is no no-such-python" in done.stderr
    assert "make install BASE_PYTHON=" in done.stderr


# Calls itself 3.9.1, and otherwise does what it is told.
OLD_PYTHON = """#!/bin/sh
test "$1" = -V && echo Python 3.9.1 && exit
exec "{python}" -c 'import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])' "$2"
"""


@needs_make
@pytest.mark.parametrize("variable", ["BASE_PYTHON", "PYTHON"])
def test_make_refuses_a_python_that_is_too_old(checkout: Checkout, variable: str):
    old = checkout.folder / "old python"
    old.write_text(OLD_PYTHON.format(python=checkout.python))
    old.chmod(0o755)
    done = checkout.run("make", "install", f"{variable}={old}")
    assert done.returncode != 0
    assert f"{old} is Python 3.9.1, but 3.10 or later is needed" in done.stderr
    assert f"make install {variable}=" in done.stderr
