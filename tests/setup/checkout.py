"""A copy of what sets up this checkout, and an environment that a test may fill and empty.

scripts/install.py asks the environment of the interpreter that runs it. Here that is Python without
its site-packages (the option -S) and with one folder of empty modules instead; pip is a program in
that folder that notes what it is told. So nothing real can be installed or downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("Makefile", "setup.py", "pyproject.toml", "constraints.txt", "crbp_d2/__init__.py"),
    *("scripts/install.py", "detectron2_alias/pyproject.toml", "detectron2_alias/README.md"),
    "detectron2_alias/detectron2/__init__.py",
)

# Fails, if it shall, at its last call alone: then most of the work is done and must not count.
PIP = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
if not (here / "works").exists():
    sys.exit("pip is broken")
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
    """The copy `folder` and the `site` that stands in for an environment, at first an empty one."""

    def __init__(self, folder: Path) -> None:
        # The Makefile promises to work below a folder with spaces in its name.
        self.folder = folder / "check out"
        for file in COPIED:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, self.folder / file)
        self.site = folder / "site"
        self.pip = self.site / "pip"
        self.pip.mkdir(parents=True)
        (self.pip / "__main__.py").write_text(PIP)
        (self.pip / "works").touch()
        self.interpreter = folder / "python"
        self.interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        self.interpreter.chmod(0o755)

    def add(self, *modules: str) -> None:
        for name in modules:
            (self.site / f"{name}.py").touch()

    def remove(self, module: str) -> None:
        (self.site / f"{module}.py").unlink()

    def add_distribution(self, name: str, version: str) -> None:
        add_distribution(self.site, name, version)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the copy, with the environment that stands in."""
        paths = os.pathsep.join([str(self.site), str(self.folder)])
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.interpreter), "scripts/install.py", *options)

    def ask(self, expression: str) -> str:
        """What an expression gives, in which `install` is the script as a module."""
        code = f"import sys; sys.path.insert(0, 'scripts'); import install; print({expression})"
        done = self.run(str(self.interpreter), "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pip_calls(self) -> list[dict]:
        calls = self.pip / "calls"
        return (
            [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        )

    def forget_pip_calls(self) -> None:
        (self.pip / "calls").unlink(missing_ok=True)

    def stamps(self) -> list[Path]:
        return list((self.folder / ".install").glob("*"))


def add_distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves in a folder of the path about a package that it has installed."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (information / "METADATA").write_text(text)
