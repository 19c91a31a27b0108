"""Trained models, found by the folder a training wrote them to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import load_model, prepare


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        label: what figures call it.
        folder: `OUTPUT_DIR` of its training.
        cfg: of its training.
        model: in evaluation mode.
    """

    label: str
    folder: Path
    cfg: CfgNode
    model: Any

    @property
    def data_set(self) -> str:
        """The first of its `DATASETS.TEST`.

        Raises:
            ConfigurationError: there is none.
        """
        if not self.cfg.DATASETS.TEST:
            raise ConfigurationError(
                f"{self.label}: DATASETS.TEST of config.yaml is empty; name a data set with "
                "--dataset"
            )
        return str(self.cfg.DATASETS.TEST[0])

    @property
    def metadata(self) -> Any:
        """Of that data set, as it is registered with Detectron2."""
        return MetadataCatalog.get(self.data_set)


def load_run(text: str, overrides: Sequence[str] = (), *, data_set: str | None = None) -> Run:
    """The run of an output folder, by `FOLDER` or `LABEL=FOLDER`.

    Args:
        text: the folder holds `config.yaml` and `model_final.pth`, or an earlier checkpoint of an
            unfinished training. Without a label the folder's name is one.
        overrides: `KEY VALUE ...` on top of its config.
        data_set: in the place of its `DATASETS.TEST`.

    Raises:
        ConfigurationError: config or weights are missing or don't fit together.
    """
    label, folder = split_label(text)
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigurationError(
            f"{folder}: there is no config.yaml; give the OUTPUT_DIR of a training"
        )
    final = folder / "model_final.pth"
    if not final.is_file() and not (folder / "last_checkpoint").is_file():
        raise ConfigurationError(
            f"{folder}: there is no model_final.pth and no earlier checkpoint; give the OUTPUT_DIR "
            "of a training that has saved one"
        )
    named = () if data_set is None else ("DATASETS.TEST", repr((data_set,)))
    cfg = read_config(str(config), [*overrides, *named])
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.WEIGHTS = str(final) if final.is_file() else ""
    prepare(cfg, eval_only=True)
    return Run(label, folder, cfg, load_model(cfg, resume=not final.is_file()).eval())


def split_label(text: str) -> tuple[str, Path]:
    """Label and path of `LABEL=PATH` or `PATH`, whose label is the name of the folder.

    Args:
        text: `PATH` is a folder, or a file in the folder that gives the label. What exists as a
            path is one, also with an equals sign in it.
    """
    label, equals, path = text.partition("=")
    if equals and "/" not in label and not Path(text).exists():
        return label, Path(path)
    found = Path(text)
    folder = found.resolve() if found.is_dir() or not found.suffix else found.resolve().parent
    return folder.name, found


def require_different_labels(labels: Sequence[str], form: str = "LABEL=FOLDER") -> None:
    """Runs are told apart by their labels.

    Args:
        labels: of all runs.
        form: how to give one.

    Raises:
        ConfigurationError: two are the same.
    """
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ConfigurationError(
            f"several runs are called {', '.join(repeated)}; name them, as {form}"
        )
