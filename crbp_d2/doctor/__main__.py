"""The command `python -m crbp_d2.doctor`: all checks in order, and a verdict."""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence

from crbp_d2.output import only_saying, say

from . import detectron, machine, packages
from .finding import CheckError, Finding, Status

EPILOG = """\
Ends with 0 if the main job can run, else with 1. For example:

    python -m crbp_d2.doctor
    DETECTRON2_DATASETS=/data python -m crbp_d2.doctor
"""


def _package(name: str, module: str, distribution: str) -> Callable[[], Finding]:
    return functools.partial(packages.check_package, name, module, distribution)


# What others need comes first: the first trouble is the one to mend first.
CHECKS: tuple[Callable[[], Finding], ...] = (
    packages.check_python,
    packages.check_torch,
    packages.check_torchvision,
    packages.check_numpy,
    _package("Pillow", "PIL", "pillow"),
    packages.check_opencv,
    _package("SciPy", "scipy", "scipy"),
    _package("pycocotools", "pycocotools.mask", "pycocotools"),
    packages.check_panopticapi,
    _package("fvcore", "fvcore.common.config", "fvcore"),
    packages.check_pkg_resources,
    detectron.check_detectron2,
    detectron.check_compiled_operators,
    detectron.check_plugin,
    machine.check_gpu,
    machine.check_data_root,
    machine.check_coco,
    machine.check_shapes,
)


def examine(checks: Sequence[Callable[[], Finding]] = CHECKS) -> Iterator[Finding]:
    """The findings, one after the other as they come."""
    for check in checks:
        try:
            yield check()
        except CheckError as error:
            yield error.finding


def format_finding(finding: Finding) -> str:
    """One line, and another for the cure if there is one."""
    text = f"{finding.status.value:<8} {finding.name:<19} {finding.detail}"
    if finding.cure:
        text += "\n" + textwrap.indent(f"-> {finding.cure}", " " * 29)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m crbp_d2.doctor",
        description="Says what is installed, what is wrong with it, and how to mend it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    # Deprecations inside the packages examined are not the reader's trouble.
    warnings.simplefilter("ignore")
    troubles = []
    for finding in examine():
        say(format_finding(finding) + "\n")
        if finding.status is Status.TROUBLE:
            troubles.append(finding.name)
    if troubles:
        say(f"\nThe main job can't run: {', '.join(troubles)}. Mend the first, then look again.\n")
        return 1
    say("\nThe main job can run.\n")
    return 0


if __name__ == "__main__":
    with only_saying():
        sys.exit(main())
