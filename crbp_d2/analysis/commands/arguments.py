"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from crbp_d2.analysis.runs import Run, run_folder, split_label
from crbp_d2.core import ConfigurationError


def add_runs(parser: argparse.ArgumentParser) -> None:
    """`RUN ...`, see `crbp_d2.analysis.runs.load_run`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="OUTPUT_DIR of a training or one of the checkpoints in it, or LABEL=RUN",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--opts KEY VALUE ...`."""
    parser.add_argument(
        "--opts",
        metavar="KEY VALUE",
        nargs="+",
        default=[],
        help="on top of the config of every run, such as MODEL.DEVICE cpu",
    )


def add_data_set(parser: argparse.ArgumentParser) -> None:
    """`--dataset NAME`."""
    parser.add_argument(
        "--dataset", metavar="NAME", help="default: the first of each run's DATASETS.TEST"
    )


def add_batch_size(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """`--batch-size N`, see `crbp_d2.analysis.batches.scoring_batches`."""
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        default=default,
        help=f"contour images at a time (default: {default or 16})",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--output FOLDER`."""
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: that of the run; made if missing"
    )


def add_scoring(parser: argparse.ArgumentParser, *, batch_size: int | None = None) -> None:
    """All of these, for a command about runs on test images.

    Args:
        batch_size: the default of `--batch-size`.
    """
    add_runs(parser)
    add_data_set(parser)
    add_batch_size(parser, batch_size)
    add_output(parser)
    add_overrides(parser)


def at_least_one(option: str, value: int | None) -> None:
    """Refuses a number below 1.

    Raises:
        ConfigurationError: naming the option.
    """
    if value is not None and value < 1:
        raise ConfigurationError(f"{option} must be at least 1, got {value}")


def chosen(data_set: str | None) -> tuple[str, ...]:
    """`--dataset` as `load_run` takes it."""
    return () if data_set is None else (data_set,)


def shared_folder(arguments: argparse.Namespace) -> Path:
    """Where files about all runs go: `--output`, or the folder of the only run.

    Raises:
        ConfigurationError: it has to be named, or there is no such run.
    """
    if arguments.output is not None:
        return Path(arguments.output)
    if len(arguments.runs) > 1:
        raise ConfigurationError("several runs need --output FOLDER")
    (text,) = arguments.runs
    path = split_label(text)[1]
    return path.parent if path.suffix == ".csv" else run_folder(text)


def own_folder(arguments: argparse.Namespace, run: Run) -> Path:
    """Where files about one of the runs go: its own folder, or `--output`, of several runs with
    their labels below it."""
    if arguments.output is None:
        return run.folder
    output = Path(arguments.output)
    return output if len(arguments.runs) == 1 else output / run.label
