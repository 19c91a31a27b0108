"""Checks of Detectron2 and of this plugin inside it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
from pathlib import Path

from .finding import PIP, CheckError, Finding, Status, installed_versions, load, load_prerequisite

_ALIAS = "detectron2-from-labgym"
_USED_PARTS = ("checkpoint", "config", "data", "engine", "evaluation", "modeling", "utils.events")
_PLUGIN_PARTS = ("core", "config", "data", "evaluation", "modeling")
_GET = (
    "`make install` in the checkout of crbp_d2 brings one without compiling; or install Detectron2 "
    "itself: https://detectron2.readthedocs.io/tutorials/install.html"
)


def check_detectron2() -> Finding:
    """Where it comes from, and whether the parts of it that this project uses can be imported."""
    name = "Detectron2"
    both = installed_versions([_ALIAS, "detectron2"])
    if len(both) > 1:
        detail = f"Detectron2 itself and {_ALIAS} are both installed, into the same files"
        cure = f"{PIP} uninstall -y {' '.join(both)}, then install the one you want"
        return Finding(name, Status.TROUBLE, detail, cure)
    try:
        detectron2 = load(name, "detectron2", "detectron2")
        for part in _USED_PARTS:
            load(name, f"detectron2.{part}", "detectron2")
    except CheckError as error:
        finding, cause = error.finding, error.__cause__
        if isinstance(cause, AttributeError):
            # It uses names that numpy or Pillow have dropped, such as PIL.Image.LINEAR.
            return finding._replace(cure=f"it is older than other packages expect; {_GET}")
        if isinstance(cause, ModuleNotFoundError) and not str(cause.name).startswith("detectron2"):
            return finding
        return finding._replace(cure=_GET)
    is_alias = detectron2.__name__ != "detectron2"
    source = f"the copy in LabGym, by {_ALIAS}" if is_alias else "Detectron2 itself"
    folder = Path(str(detectron2.__file__)).parent
    version = f"{detectron2.__version__} ({_age()}{_commit(folder)})"
    return Finding(name, Status.OK, f"{version}, {source}, {folder}")


def _age() -> str:
    """What the code shows of it: the version has been 0.6 since November 2021."""
    build = load("Detectron2", "detectron2.data", "detectron2").build_batch_data_loader
    comm = load("Detectron2", "detectron2.utils.comm", "detectron2")
    if "seed" in inspect.signature(build).parameters:
        return "main branch, May 2024 or later"
    if hasattr(comm, "create_local_process_group"):
        return "main branch, before May 2024"
    return "about the release of November 2021"


def _commit(folder: Path) -> str:
    """The commit that pip has noted, if it installed into this folder."""
    try:
        distribution = importlib.metadata.distribution("detectron2")
        noted = json.loads(distribution.read_text("direct_url.json") or "{}")
        commit = str(noted["vcs_info"]["commit_id"])
    except (importlib.metadata.PackageNotFoundError, KeyError, TypeError, ValueError):
        return ""
    is_here = Path(str(distribution.locate_file("detectron2"))).resolve() == folder.resolve()
    return f", commit {commit[:8]}" if is_here else ""


def check_compiled_operators() -> Finding:
    """`detectron2._C`, which nothing in this project needs."""
    name = "compiled operators"
    load_prerequisite(name, "detectron2")
    if importlib.util.find_spec("detectron2._C") is None:
        return Finding(
            name,
            Status.NOTE,
            "detectron2._C is absent: no rotated boxes, no deformable convolution, and COCO's "
            "evaluation in Python; nothing here needs them",
        )
    try:
        load(name, "detectron2._C", "detectron2")
    except CheckError as error:
        return error.finding._replace(
            detail=f"detectron2._C was built for another PyTorch: {error.finding.detail}",
            cure="build Detectron2 again, with the PyTorch that is installed",
        )
    return Finding(name, Status.OK, "detectron2._C can be loaded")


def check_plugin() -> Finding:
    """Whether the parts of this package can be imported, which registers them with Detectron2."""
    name = "crbp_d2"
    for module in ("torch", "cv2", "panopticapi", "detectron2"):
        load_prerequisite(name, module)
    crbp_d2 = load(name, "crbp_d2", "-e .")
    for part in _PLUGIN_PARTS:
        load(name, f"crbp_d2.{part}", "-e .")
    return Finding(name, Status.OK, f"{crbp_d2.__version__}, {Path(str(crbp_d2.__file__)).parent}")
