"""Checkpoints for models that may have changed, in files that others may have made."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_whole, writing_whole
from crbp_d2.weights import (
    UnreadableError,
    is_counter,
    read_checkpoint,
    said,
)

from .state import StateError

logger = logging.getLogger(__name__)

FINAL = "model_final"
"""Name of the last checkpoint of a training that ended."""
BEST = "model_best"
"""Name of the model with the best score so far, see `crbp_d2.engine.best`."""
TAG = "last_checkpoint"
"""File that names the checkpoint to resume from."""
EARLIER = ".earlier_checkpoints"
"""File with the names of the checkpoints that are of earlier trainings than the last one."""
IS_PIPE = "a pipe is where a file should be, which would be waited for: move it away"
"""What to say of one."""
_NAME = re.compile(r"model_(\d+|final)\.pth")

# What Detectron2 once saved with every model, and now computes from the config.
_COMPUTED = ("pixel_mean", "pixel_std")
_ANCHORS = "anchor_generator.cell_anchors"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which runs nothing that a file holds and says what does not fit.

    A checkpoint takes its name, and the tag of the last one changes, only once it is on the disk.
    A training whose last checkpoint is missing or damaged resumes from the newest that can be read.

    A checkpoint that is resumed from has to fill the model exactly: every weight and every buffer,
    and no other. Weights to start from may leave parts as they are, which the log tells. None may
    be NaN or infinite.

    Args:
        model: to be filled.
        save_dir: folder of checkpoints.
        exact: all weights have to fill the model exactly.
        options: of Detectron2's checkpointer.

    Attributes:
        given: names of the model's weights and buffers that the last file gave a value.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, exact: bool = False, **options: Any
    ) -> None:
        super().__init__(model, save_dir, **options)
        self.exact = exact
        self.given: frozenset[str] = frozenset()
        self._source = self._query = ""
        self._resuming = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load from a file or an address.

        Args:
            path: of a format that `read_checkpoint` knows; empty for none.
            checkpointables: what to load besides the model; `None` for all, to resume.

        Raises:
            ConfigurationError: it can't be fetched or read, or does not fit.
        """
        self._resuming = checkpointables is None
        self._source = f"the last checkpoint, {path}" if self._resuming else f"MODEL.WEIGHTS {path}"
        if not path:
            # Detectron2 would say that it initialises the model from scratch, which it does not.
            logger.info("No checkpoint is loaded: the model starts as it was built")
            return {}
        self._require_file(path)
        self._query = urlparse(path).query
        try:
            rest: dict[str, Any] = super().load(path, checkpointables)
        except StateError as error:
            raise UnreadableError(f"{self._source}: {error}; take another one") from error
        finally:
            # Left behind when loading fails, it would let the next call fail as well.
            self._parsed_url_during_load = None
        return rest

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint, whole or not at all, and tag it as the last.

        Args:
            name: of the file, without its ending.
            kwargs: what to save besides model and training.

        Raises:
            OSError: it can't be written; checkpoints and tag are as before.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        self.save_model(name, **states, **kwargs)
        self.tag_last_checkpoint(f"{name}.pth")

    def save_model(self, name: str, **kwargs: Any) -> None:
        """Write the model alone, whole or not at all; no training resumes from it by itself.

        Args:
            name: of the file, without its ending.
            kwargs: what to save besides the model.

        Raises:
            OSError: it can't be written; what was there is as before.
        """
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        with writing_whole(path) as file:
            torch.save({"model": self.model.state_dict(), **kwargs}, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Let the next `--resume` begin at a checkpoint of this name."""
        write_whole(Path(self.save_dir) / TAG, last_filename_basename.encode())
        earlier = earlier_in(self.save_dir)
        if last_filename_basename in earlier:
            write_earlier(self.save_dir, earlier - {last_filename_basename})

    def get_checkpoint_file(self) -> str:
        """The last checkpoint in the folder.

        Raises:
            UnreadableError: its tag, `last_checkpoint`, names none.
        """
        tag = Path(self.save_dir) / TAG
        if tag.is_fifo():
            raise UnreadableError(f"{tag}: {IS_PIPE}")
        try:
            name = tag.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(
                f"{tag}: not the name of a checkpoint ({said(error)}); write the name of one of "
                "the .pth files there into it"
            ) from error
        if not name:
            raise UnreadableError(
                f"{tag}: empty; write the name of one of the .pth files there into it"
            )
        return os.path.join(self.save_dir, name)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from, or at least the tag of one."""
        return super().has_checkpoint() or (not self.exact and bool(saved_in(self.save_dir)))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint, or load weights.

        Args:
            path: of weights; empty for none.
            resume: take the last checkpoint in the folder if there is one, or, of a training, where
                it can't be read the newest that can.

        Raises:
            ConfigurationError: see `load`; there are checkpoints, but none can be read, or all are
                of an earlier training.
        """
        if not resume or not self.has_checkpoint():
            return super().resume_or_load(path, resume=False)
        if is_of_earlier(self.save_dir):
            raise ConfigurationError(
                f"{self.save_dir}: its checkpoints are of an earlier training, and the one that "
                "began there last has left none: begin it anew without --resume; or, to go on with "
                f"the earlier one, delete {EARLIER} there"
            )
        first: UnreadableError | None = None
        for find in self._candidates():
            try:
                candidate = find()
                rest = self.load(candidate)
            except UnreadableError as error:
                if self.exact:
                    raise
                logger.warning("--resume: %s", error)
                first = first or error
                continue
            if first is not None:
                logger.warning("--resume: goes on from %s in its place", candidate)
            return rest
        raise UnreadableError(
            f"{first}. No other checkpoint in {self.save_dir} can be read: start anew, without "
            "--resume and in another OUTPUT_DIR"
        ) from first

    def _candidates(self) -> Iterator[Callable[[], str]]:
        """What finds a checkpoint to resume from: the tagged one, then the others of this training,
        newest first."""
        yield self.get_checkpoint_file
        tagged = ""
        with contextlib.suppress(UnreadableError):
            tagged = self.get_checkpoint_file()
        earlier = earlier_in(self.save_dir)
        for path in saved_in(self.save_dir):
            if str(path) != tagged and path.name not in earlier:
                yield functools.partial(str, path)

    def _require_file(self, path: str) -> None:
        try:
            local = self.path_manager.get_local_path(urlparse(path)._replace(query="").geturl())
        # What is raised depends on the kind of address.
        except Exception as error:
            raise ConfigurationError(f"{self._source}: can't be fetched ({said(error)})") from error
        if not os.path.isfile(local):
            raise UnreadableError(f"{self._source}: no such file; check the path")

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            checkpoint = read_checkpoint(filename)
        except UnreadableError as error:
            # A training that is resumed goes on from it by itself.
            goes_on = self._resuming and not self.exact
            other = "" if goes_on else _readable_beside(Path(filename))
            raise UnreadableError(f"{self._source}: {error}{other}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._source}: {error}") from error
        lacking = [name for name in self.checkpointables if name not in checkpoint]
        if self._resuming and lacking:
            raise ConfigurationError(
                f"{self._source}: holds weights, but no state of a training to resume; start from "
                "them, without --resume and with MODEL.WEIGHTS, in another OUTPUT_DIR"
            )
        asked = parse_qs(self._query)
        if asked.pop("matching_heuristics", None) == ["True"]:
            checkpoint["matching_heuristics"] = True
        if asked:
            raise ConfigurationError(
                f"{self._source}: of what follows the question mark only matching_heuristics=True "
                "is known"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        model = self.model.state_dict()
        finite = {name for name, value in model.items() if _is_finite(value)}
        given = set(checkpoint["model"])
        if all(name.startswith("module.") for name in given):
            given = {name.removeprefix("module.") for name in given}
        self._require_floating(checkpoint["model"], model)
        # A FrozenBN takes weights without statistics for those of an early version, and misses
        # nothing, so of this project's files the names count. Converted ones may be early indeed,
        # or name their weights otherwise: of them it is what Detectron2 finds.
        matched = checkpoint.get("matching_heuristics", False)
        from_elsewhere = matched or "__author__" in checkpoint
        try:
            found = super()._load_model(checkpoint)
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(f"{self._source}: can't be loaded ({said(error)})") from error
        reshaped = {name for name, *_ in found.incorrect_shapes}
        missing = set(found.missing_keys) if from_elsewhere else set(model) - given
        missing -= reshaped
        self.given = frozenset(set(model) - missing - reshaped)
        if not self.given:
            raise ConfigurationError(f"{self._source}: holds no weight of the model")
        if self._resuming or self.exact:
            unused = found.unexpected_keys
            # Names that are matched may be of more than the model. A norm's statistics change what
            # its weights do.
            self._require_exact(
                missing, reshaped, _statistics_of(model, unused) if matched else unused
            )
        for name, value in self.model.state_dict().items():
            if name in finite and not _is_finite(value):
                raise ConfigurationError(
                    f"{self._source}: {name} is NaN or infinite; its training diverged, or the "
                    "file is damaged: take an earlier checkpoint"
                )
        return found

    def _require_floating(
        self, given: Mapping[str, Any], model: Mapping[str, torch.Tensor]
    ) -> None:
        """Refuse integers and complex numbers where the model has others: they would be cut off."""
        for name, value in given.items():
            own = model.get(name.removeprefix("module."))
            if own is None or not own.is_floating_point() or not isinstance(value, torch.Tensor):
                continue
            if not value.is_floating_point():
                raise ConfigurationError(
                    f"{self._source}: {name} is of type {str(value.dtype).removeprefix('torch.')}, "
                    "where the model has floating point numbers; save the weights anew"
                )

    def _require_exact(
        self, missing: Iterable[str], reshaped: Iterable[str], unused: Iterable[str]
    ) -> None:
        """Refuse weights and buffers of another architecture."""
        wrong = {
            "lacks": _relevant(missing),
            "has in another shape": _relevant(reshaped),
            "has besides": _relevant(unused),
        }
        parts = [
            f"{what} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in wrong.items()
            if names
        ]
        if parts:
            raise ConfigurationError(
                f"{self._source}: of another architecture than the config; of the model's weights "
                f"and buffers it {', '.join(parts)}. Give the config file the model was trained "
                "with (config.yaml beside the checkpoint)"
            )


def saved_in(folder: str | Path) -> list[Path]:
    """The checkpoints that trainings have left in a folder, newest first."""

    def age(path: Path) -> tuple[int, str]:
        # Of one moment the last by name: model_final, or the most iterations.
        return path.stat().st_mtime_ns, path.name

    found = (path for path in Path(folder).glob("model_*.pth") if _NAME.fullmatch(path.name))
    # Not a link whose file is gone.
    return sorted((path for path in found if path.exists()), key=age, reverse=True)


def earlier_in(folder: str | Path) -> set[str]:
    """Names of the checkpoints in a folder that the training which began there last has found."""
    note = Path(folder, EARLIER)
    try:
        return set() if note.is_fifo() else set(note.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return set()


def write_earlier(folder: str | Path, names: Collection[str]) -> None:
    """Let `earlier_in` return these; none removes the note."""
    note = Path(folder, EARLIER)
    if names:
        write_whole(note, "".join(f"{name}\n" for name in sorted(names)).encode())
    else:
        note.unlink(missing_ok=True)


def is_of_earlier(folder: str | Path) -> bool:
    """Whether the training that began in a folder last has left no checkpoint there yet."""
    earlier = earlier_in(folder)
    return bool(earlier) and all(path.name in earlier for path in saved_in(folder))


def _readable_beside(path: Path) -> str:
    """What to say of the newest checkpoint beside a damaged one that can be read; or nothing."""
    for other in saved_in(path.parent):
        if other.name != path.name:
            with contextlib.suppress(ConfigurationError):
                read_checkpoint(str(other))
                return f": {other.name} beside it can be read"
    return ""


def _relevant(names: Iterable[str]) -> list[str]:
    """Names of what predictions depend on."""
    return sorted(
        name
        for name in names
        if name not in _COMPUTED and _ANCHORS not in name and not is_counter(name)
    )


def _statistics_of(model: Collection[str], names: Iterable[str]) -> list[str]:
    """Those names that are statistics of norms whose weights a model has."""
    return [
        name
        for name in names
        if name.endswith((".running_mean", ".running_var"))
        and f"{name.rpartition('.')[0]}.weight" in model
    ]


def _is_finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
