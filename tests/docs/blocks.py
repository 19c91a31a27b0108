"""The blocks of a page: files, and commands that use them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.distributed import ROOT, python_path

Block = tuple[str, str, str]
"""Name and content of a file, or two empty strings and commands."""


def blocks_of(text: str) -> list[Block]:
    """All of a page, in order. The name of a file stands above its content."""
    return re.findall(r"`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)```|```bash\n(.*?)```", text, re.S)


def link_clone(folder: Path) -> None:
    """Lay what commands of the pages take from the clone beside the files of a page."""
    for name in ("configs", "datasets", "tools"):
        (folder / name).symlink_to(ROOT / name)


def run_blocks(blocks: list[Block], folder: Path, shorter: Mapping[str, str]) -> str:
    """Write the files and run the commands in a folder; what these printed.

    Args:
        shorter: what is replaced, in files and commands, so that it takes less time.
    """
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": python_path(),
    }
    printed = ""
    for name, content, commands in blocks:
        for long, short in shorter.items():
            content, commands = content.replace(long, short), commands.replace(long, short)
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
            continue
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        printed += done.stdout + done.stderr
    return printed
