"""Checks of Python and of the packages, Detectron2 excepted."""

from __future__ import annotations

import sys
from types import ModuleType

from .finding import PIP, CheckError, Finding, Status, installed_versions, load, load_prerequisite

_OPENCV_BUILDS = [
    f"opencv-{contrib}python{headless}"
    for contrib in ("", "contrib-")
    for headless in ("", "-headless")
]


def check_python() -> Finding:
    detail = f"{sys.version.split()[0]}, {sys.executable}"
    # The doctor also runs where pip has refused to install the package.
    if sys.version_info < (3, 10):  # noqa: UP036
        return Finding("Python", Status.TROUBLE, detail, "use Python 3.10 or later")
    return Finding("Python", Status.OK, detail)


def check_torch() -> Finding:
    torch = load("PyTorch", "torch", "torch torchvision")
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding("PyTorch", Status.OK, f"{torch.__version__}, {build}")


def check_torchvision() -> Finding:
    """Whether it belongs to the installed PyTorch: otherwise its operators don't exist."""
    torch = load_prerequisite("torchvision", "torch")
    cure = f"install the two together: {PIP} install --force-reinstall torch torchvision"
    try:
        torchvision = load("torchvision", "torchvision", "torchvision")
    except CheckError as error:
        # Newer ones miss their operators as soon as they are imported, older ones in their use.
        if isinstance(error.__cause__, RuntimeError):
            raise CheckError(error.finding._replace(cure=cure)) from error
        raise
    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except RuntimeError as error:
        detail = _misfit(torchvision, torch, error)
        return Finding("torchvision", Status.TROUBLE, detail, cure)
    return Finding("torchvision", Status.OK, torchvision.__version__)


def check_numpy() -> Finding:
    """Whether PyTorch accepts its arrays: one built for numpy 1 refuses those of numpy 2."""
    numpy = load("NumPy", "numpy", "numpy")
    try:
        torch = load_prerequisite("NumPy", "torch")
    except CheckError:
        return Finding("NumPy", Status.OK, numpy.__version__)
    try:
        torch.from_numpy(numpy.zeros(1))
    except RuntimeError as error:
        cure = f'{PIP} install "numpy<2"'
        return Finding("NumPy", Status.TROUBLE, _misfit(numpy, torch, error), cure)
    return Finding("NumPy", Status.OK, numpy.__version__)


def check_opencv() -> Finding:
    """Whether exactly one of its builds is there, and can be loaded."""
    builds = installed_versions(_OPENCV_BUILDS)
    names = " ".join(builds)
    cure = f"{PIP} uninstall -y {names}; {PIP} install opencv-python-headless"
    try:
        cv2 = load("OpenCV", "cv2", "opencv-python-headless")
    except CheckError as error:
        if "libGL" in error.finding.detail:
            return error.finding._replace(cure=f"take the build without a display: {cure}")
        raise
    if len(builds) > 1:
        detail = f"{cv2.__version__}; several builds have overwritten each other's files: {names}"
        return Finding("OpenCV", Status.NOTE, detail, cure)
    return Finding("OpenCV", Status.OK, f"{cv2.__version__} ({names or 'not from pip'})")


def check_panopticapi() -> Finding:
    # Without its requirements, because it asks for numpy below 2, which nothing in it needs.
    module = load("panopticapi", "panopticapi", "--no-deps panopticapi-lite")
    load("panopticapi", "panopticapi.evaluation", "--no-deps panopticapi-lite")
    return _present("panopticapi", module, "panopticapi-lite", "panopticapi")


def check_pkg_resources() -> Finding:
    """The part of setuptools that Detectron2 imports and setuptools has dropped."""
    try:
        load("setuptools", "pkg_resources", '"setuptools<81"')
    except CheckError as error:
        detail = f"pkg_resources, which Detectron2 imports, is {error.finding.detail}"
        return error.finding._replace(detail=detail)
    return check_package("setuptools", "setuptools", "setuptools")


def check_package(name: str, module: str, distribution: str) -> Finding:
    """A package of which nothing is asked but that it can be imported.

    Args:
        name: of the check.
        module: its import name.
        distribution: its name on the package index.
    """
    return _present(name, load(name, module, distribution), distribution)


def _present(name: str, module: ModuleType, *distributions: str) -> Finding:
    versions = list(installed_versions(distributions).values())
    versions.append(str(getattr(module, "__version__", "version unknown")))
    return Finding(name, Status.OK, versions[0])


def _misfit(module: ModuleType, torch: ModuleType, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"{module.__version__} does not fit PyTorch {torch.__version__}: {reason}"
