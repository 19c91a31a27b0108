"""The import name `detectron2` for the copy inside LabGym: one set of modules, everywhere.

Each test has a process of its own, and takes the alias from this checkout.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALIAS = ROOT / "detectron2_alias"


def is_alias_installed() -> bool:
    try:
        importlib.metadata.distribution("detectron2-from-labgym")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not is_alias_installed(), reason="the installed Detectron2 is not the alias for LabGym's"
)


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ALIAS), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def output(*arguments: str | Path, **environment: str) -> str:
    done = python(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORTED_IN_ORDER = """
import gc, importlib, inspect, sys
import {first}.utils.events
import {second}.utils.events

for name in {modules!r}:
    first = importlib.import_module("{first}." + name)
    assert importlib.import_module("{second}." + name) is first, name

import detectron2, LabGym.detectron2
assert detectron2 is LabGym.detectron2
assert detectron2.__file__ == LabGym.detectron2.__file__ != {alias!r}
for name in [name for name in sys.modules if name.startswith("detectron2.")]:
    module, real = sys.modules[name], sys.modules["LabGym." + name]
    assert module is real and module.__spec__.name == "LabGym." + name, name

classes = [found for found in gc.get_objects() if inspect.isclass(found)]
for name in {classes!r}:
    found = [one for one in classes if one.__name__ == name and "detectron2" in one.__module__]
    assert len(found) == 1, found
registries = [
    found._name
    for found in gc.get_objects()
    if type(found).__name__ == "Registry" and type(found).__module__ == "fvcore.common.registry"
]
assert len(set(registries)) == len(registries), registries
assert "class CfgNode" in inspect.getsource(detectron2.config.config)
if "detectron2.model_zoo" in sys.modules:
    with open(detectron2.model_zoo.get_config_file("Base-RCNN-FPN.yaml")) as file:
        assert "GeneralizedRCNN" in file.read()
print(*registries)
"""

# Once the larger part of Detectron2; the other way round what loads quickly.
LARGE = ("modeling.meta_arch.build", "data.catalog", "config", "model_zoo", "layers")
SMALL = ("config", "config.instantiate", "utils.registry", "solver.build", "utils")


def registries_after(
    first: str, second: str, modules: Sequence[str], classes: Sequence[str]
) -> str:
    """Imports under both names, checks that all is there once, and names the registries."""
    alias = str(ALIAS / "detectron2" / "__init__.py")
    names = {"first": first, "second": second, "alias": alias}
    return output("-c", IMPORTED_IN_ORDER.format(**names, modules=modules, classes=classes))


def test_both_names_give_the_same_modules_classes_and_registries():
    classes = ("GeneralizedRCNN", "CfgNode", "Instances", "EventStorage")
    registries = registries_after("detectron2", "LabGym.detectron2", LARGE, classes)
    assert {"META_ARCH", "BACKBONE", "ROI_MASK_HEAD"} <= set(registries.split())


def test_the_order_in_which_the_names_are_imported_does_not_matter():
    registries_after("LabGym.detectron2", "detectron2", SMALL, ("CfgNode", "EventStorage"))


SPAWNING = """
import multiprocessing

def work(build):
    import sys
    assert sys.modules["LabGym.detectron2.config"].get_cfg is build
    import detectron2.config.config, LabGym.detectron2.config.config
    assert detectron2.config is LabGym.detectron2.config
    assert detectron2.config.config is LabGym.detectron2.config.config
    assert type(build()) is detectron2.config.CfgNode
    return build()

if __name__ == "__main__":
    from detectron2.config import CfgNode, get_cfg
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        config = pool.apply(work, (get_cfg,))
    assert type(config) is CfgNode
    print(multiprocessing.current_process().name)
"""


def test_holds_in_a_spawned_worker(tmp_path: Path):
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    assert output(script) == "MainProcess"


def test_a_module_can_be_run_as_a_program():
    assert "LabGym" in output("-m", "detectron2.utils.collect_env").partition("\nPyTorch")[0]


ENVIRONMENT_MODULE = """
import detectron2.utils.registry as first
import LabGym.detectron2.utils.registry as second
assert first is second

def setup_environment():
    print("set up")
"""

MISSING = """
from tests.setup.absence import hide
import detectron2, importlib
hide("yacs", "fvcore")
names = "detectron2.nowhere detectron2.nowhere.deeper detectron2.utils.nowhere detectron2.config"
for name in names.split():
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(error.name, "|", error)
"""


def test_missing_modules_are_named_and_the_environment_module_may_import_detectron2(
    tmp_path: Path,
):
    module = tmp_path / "environment.py"
    module.write_text(ENVIRONMENT_MODULE)
    assert output("-c", MISSING, DETECTRON2_ENV_MODULE=str(module)).splitlines() == [
        "set up",
        "detectron2.nowhere | No module named 'detectron2.nowhere'",
        "detectron2.nowhere | No module named 'detectron2.nowhere'",
        "detectron2.utils.nowhere | No module named 'detectron2.utils.nowhere'",
        "fvcore | No module named 'fvcore'",
    ]


WITHOUT_LABGYM = """
import sys
from tests.setup.absence import hide
hide("LabGym")
before = list(sys.meta_path)
for attempt in range(2):
    try:
        import detectron2
    except ImportError as error:
        print(error.name, "|", error)
    assert sys.meta_path == before and "detectron2" not in sys.modules
"""


def test_without_labgym_it_says_what_to_install():
    message, again = output("-c", WITHOUT_LABGYM).split("detectron2 | ")[1:]
    assert message.strip() == again.strip()
    assert "LabGym is not installed" in message
    (pin,) = [
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("labgym==")
    ]
    command = f"pip install --no-deps --ignore-requires-python LabGym=={pin}\n"
    assert command in message
    assert command in (ALIAS / "README.md").read_text()


def test_an_error_inside_labgym_is_not_taken_for_its_absence(tmp_path: Path):
    package = tmp_path / "LabGym"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_requirement")
    done = python(
        "-c", "import detectron2", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ALIAS)])
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'no_such_requirement'"
