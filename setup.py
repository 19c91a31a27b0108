"""Packaging of crbp_d2: `pip install -e .` beside an existing Detectron2, or `make install`."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """`__version__` of the package, read without importing it."""
    tree = ast.parse((HERE / "crbp_d2" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError("crbp_d2/__init__.py does not define __version__")


# Ranges here, the versions that were tried together in constraints.txt. Not among the requirements:
# - Detectron2: not on the package index; upstream's build or detectron2_alias/ provides it.
# - OpenCV: opencv-python and opencv-python-headless own the same files, and requiring one installs
#   it over the other. Whoever has neither takes the extra `opencv`.
# - panopticapi: not on the package index under its own name. panopticapi-lite owns the same files
#   as a build from panopticapi's repository, and would take numpy back below 2. Whoever has neither
#   takes the extra `panoptic`.
# `python -m crbp_d2.doctor` says which of these are missing.
REQUIREMENTS = [
    "torch>=2.4",
    "numpy>=1.23",
    "pillow",
    "fvcore",
    "pycocotools",
    "portalocker",
    "pyyaml",
    "scipy>=1.12",
    "tabulate",
    "tqdm",
]

EXTRAS = {
    "opencv": ["opencv-python-headless"],
    "panoptic": ["panopticapi-lite"],
    "deq": ["torchdeq"],
    "viz": ["matplotlib", "scikit-learn", "tensorboard"],
    "dev": ["mypy", "pytest", "ruff", "selenium"],
}

setup(
    name="crbp_d2",
    version=read_version(),
    description="Recurrent circuits trained with C-RBP, as an extension of Detectron2",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["crbp_d2", "crbp_d2.*"]),
    package_data={
        "crbp_d2": ["py.typed"],
        "crbp_d2.analysis.page": ["*.css", "*.html", "*.js"],
        "crbp_d2.analysis.published": ["*.csv", "*.md"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
