"""A copy of what sets up this checkout, and a throw-away environment to set up.

The environment is a virtual one without pip, filled with empty modules. In the place of pip is a
program that notes what it is told. The interpreter that runs the tests is never asked to install:
a mistake here must not change the environment of whoever runs them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("Makefile", "setup.py", "pyproject.toml", "constraints.txt", "crbp_d2/__init__.py"),
    *("README.md", "scripts/install.py", "detectron2_alias/pyproject.toml"),
    *("detectron2_alias/README.md", "detectron2_alias/detectron2/__init__.py"),
)

# Fails, if it shall, at the last call alone: then most of the work is done, and must not count.
PIP = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
if sys.argv[1:] != ["--version"]:
    constraints = pathlib.Path(sys.argv[sys.argv.index("-c") + 1])
    call = {"arguments": sys.argv[1:], "constraints": constraints.read_text()}
    with (here / "calls").open("a") as calls:
        calls.write(json.dumps(call) + chr(10))
    print("pip was here")
    if (here / "fails").exists() and "--no-deps" in sys.argv:
        sys.exit("no connection")
"""


class Checkout:
    """The copy `folder`, and `python` of an environment with `site` for its packages."""

    def __init__(self, folder: Path) -> None:
        # The Makefile promises to work below a folder with spaces in its name.
        self.folder = folder / "check out"
        for file in COPIED:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, self.folder / file)
        environment = folder / "an environment"
        venv.create(environment, symlinks=True, with_pip=False)
        self.python = str(environment / "bin" / "python")
        (self.site,) = (environment / "lib").glob("python*/site-packages")
        (self.site / "editable.pth").write_text(f"{self.folder}\n")
        self.pip = self.site / "pip"
        self.pip.mkdir()
        (self.pip / "__init__.py").touch()
        (self.pip / "__main__.py").write_text(PIP)

    def add(self, *modules: str) -> None:
        for name in modules:
            (self.site / f"{name}.py").touch()

    def remove(self, module: str) -> None:
        (self.site / f"{module}.py").unlink()

    def add_distribution(self, name: str, version: str) -> None:
        add_distribution(self.site, name, version)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the copy."""
        # Little is inherited. PYTHON and MAKEFLAGS, which `make test PYTHON=...` sets, would lead
        # to the tests' own environment, and pip's settings to its index.
        kept = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "LANG")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {"HOME": str(self.folder.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "scripts/install.py", *options)

    def ask(self, expression: str) -> str:
        """What an expression gives, in which `install` is the script as a module."""
        code = f"import sys; sys.path[0] = 'scripts'; import install; print({expression})"
        done = self.run(self.python, "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pip_calls(self) -> list[dict]:
        """What pip has been told since this was last asked."""
        calls = self.pip / "calls"
        if not calls.exists():
            return []
        lines = calls.read_text().splitlines()
        calls.unlink()
        return [json.loads(line) for line in lines]

    def stamps(self) -> list[Path]:
        return list((self.folder / ".install").glob("*"))


def add_distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves, in a folder of the path, about a package that it has installed."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (information / "METADATA").write_text(text)
