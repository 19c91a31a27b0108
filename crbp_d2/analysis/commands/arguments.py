"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from crbp_d2.analysis.runs import (
    is_checkpoint,
    require_different_labels,
    run_folder,
    split_label,
)
from crbp_d2.core import ConfigurationError
from crbp_d2.zoo import in_package


def add_runs(parser: argparse.ArgumentParser) -> None:
    """`RUN ...`, see `crbp_d2.analysis.runs.load_run`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="OUTPUT_DIR of a training, one of the checkpoints in it, or crbp://NAME of the "
        "package (docs/zoo.md); or LABEL=RUN",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--opts KEY VALUE ...`."""
    parser.add_argument(
        "--opts",
        metavar="KEY VALUE",
        nargs="+",
        action="extend",
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
        help=f"contour images at a time (default: {default or 'TEST.IMS_PER_BATCH, or 16'})",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--output FOLDER`."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="made if missing (default: that of the run; crbp://NAME needs one)",
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


def require_folder(path: Path) -> Path:
    """A folder that files can be written to, before anything is computed for them.

    Raises:
        ConfigurationError: it, or one above it, is a file.
    """
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ConfigurationError(f"--output {path}: {part} is a file; name a folder")
    return path


def shared_folder(arguments: argparse.Namespace) -> Path:
    """Where files about all runs go: `--output`, or the folder of the only run.

    Raises:
        ConfigurationError: it has to be named, can't be a folder, or there is no such run.
    """
    if arguments.output is not None:
        return require_folder(arguments.output)
    if len(arguments.runs) > 1:
        raise ConfigurationError("several runs need --output FOLDER")
    (text,) = arguments.runs
    path = split_label(text)[1]
    if path.suffix == ".csv":
        if path.name != "steps.csv":
            raise ConfigurationError(f"{path}: name the --output folder of the figure")
        return path.parent
    return _own_folder_of(text)


def own_folders(arguments: argparse.Namespace) -> dict[str, Path]:
    """Where files about each of the runs go, by label: to its own folder, or to `--output`, of
    several runs to a folder for each below it.

    Raises:
        ConfigurationError: two are the same, one can't be a folder, or there is no such run.
    """
    labels = [split_label(text)[0] for text in arguments.runs]
    require_different_labels(labels)
    folders: dict[str, Path] = {}
    for label, text in zip(labels, arguments.runs, strict=True):
        if arguments.output is None:
            folder = _own_folder_of(text)
        elif len(labels) == 1:
            folder = require_folder(arguments.output)
        elif label in ("", ".", ".."):
            raise ConfigurationError(f"{text}: {label!r} can't be the name of a folder")
        else:
            folder = require_folder(arguments.output / label)
        if folder.resolve() in {other.resolve() for other in folders.values()}:
            raise ConfigurationError(
                f"{text}: its files would take the place of those of another run; name --output"
            )
        folders[label] = folder
    return folders


def _own_folder_of(text: str) -> Path:
    if is_checkpoint(split_label(text)[1]):
        raise ConfigurationError(
            f"{text}: files about one of its checkpoints would take the place of those of the "
            "whole run; name --output"
        )
    folder = run_folder(text)
    if in_package(folder):
        raise ConfigurationError(f"{text}: nothing is written into the package; name --output")
    return folder
