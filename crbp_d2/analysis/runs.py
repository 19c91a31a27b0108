"""Trained models, found by the folder a training wrote them to."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from crbp_d2.config import final_node, read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError, set_num_classes
from crbp_d2.engine import load_model, prepare
from crbp_d2.zoo import folder_of, is_address

logger = logging.getLogger(__name__)


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
    def trained_steps(self) -> int:
        """Steps of its recurrence in training, in the last phase of it; `N` in the paper's
        figures."""
        return int(final_node(self.cfg.CRBP).SOLVER.STEPS)

    @property
    def data_set(self) -> str:
        """The first of its `DATASETS.TEST`.

        Raises:
            ConfigurationError: there is none.
        """
        return self.data_sets[0]

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Its `DATASETS.TEST`, at least one.

        Raises:
            ConfigurationError: there is none.
        """
        if not self.cfg.DATASETS.TEST:
            raise ConfigurationError(
                f"{self.label}: DATASETS.TEST of config.yaml is empty; name a data set with "
                "--dataset"
            )
        return tuple(self.cfg.DATASETS.TEST)

    @property
    def metadata(self) -> Any:
        """Of the first data set, as it is registered with Detectron2."""
        return MetadataCatalog.get(self.data_set)


def load_run(
    text: str,
    overrides: Sequence[Any] = (),
    *,
    data_sets: Sequence[str] = (),
    needs_data: bool = True,
) -> Run:
    """The run of `RUN` or `LABEL=RUN`.

    Args:
        text: RUN is the output folder of a training, with `config.yaml` and `model_final.pth`, or
            an earlier checkpoint of one that is unfinished; or a checkpoint, `.pth`, in such a
            folder; or `crbp://NAME`, see `crbp_d2.zoo`. Without a label the folder's name is one.
        overrides: `KEY VALUE ...` on top of its config.
        data_sets: in the place of its `DATASETS.TEST`.
        needs_data: its test data are to be read. If not, they may be missing as long as their class
            names are known, as those of COCO are.

    Raises:
        ConfigurationError: config or weights are missing or don't fit together.
        DatasetError: its test data are missing.
    """
    label, folder, weights = _found(text)
    # What is named wins over what is found.
    is_named = "MODEL.WEIGHTS" in overrides
    if is_named and is_checkpoint(split_label(text)[1]):
        raise ConfigurationError(f"{text}: names weights, and so does MODEL.WEIGHTS; give one")
    if not is_named and weights is None and not (folder / "last_checkpoint").is_file():
        raise ConfigurationError(
            f"{folder}: there is no model_final.pth and no earlier checkpoint; give the OUTPUT_DIR "
            "of a training that has saved one"
        )
    named = ("DATASETS.TEST", repr(tuple(data_sets))) if data_sets else ()
    given = ["MODEL.WEIGHTS", str(weights or ""), *overrides, *named]
    cfg = read_config(str(folder / "config.yaml"), given)
    cfg.OUTPUT_DIR = str(folder)
    _prepare(cfg, needs_data=needs_data)
    model = load_model(cfg, resume=weights is None and not is_named)
    return Run(label, folder, cfg, model.eval())


def load_runs(
    texts: Sequence[str],
    overrides: Sequence[Any] = (),
    *,
    data_sets: Sequence[str] = (),
    same_data: bool = False,
) -> Iterator[Run]:
    """The runs of several texts, one after the other as they are asked for.

    Args:
        texts: see `load_run`, as are the others.
        same_data: all must have the same first data set.

    Raises:
        ConfigurationError: two have the same label, or other data; see `load_run`.
    """
    first_sets = check_runs(texts, overrides, data_sets=data_sets)
    if same_data:
        require_shared(first_sets)
    return (load_run(text, overrides, data_sets=data_sets) for text in texts)


def check_runs(
    texts: Sequence[str], overrides: Sequence[Any] = (), *, data_sets: Sequence[str] = ()
) -> dict[str, str]:
    """Find what is wrong with a run before others are computed: see `load_runs`.

    Returns:
        Label -> its first data set, of those that have one.
    """
    require_different_labels([split_label(text)[0] for text in texts])
    if len(texts) > 1 and "MODEL.WEIGHTS" in overrides:
        raise ConfigurationError("MODEL.WEIGHTS would be that of all runs; give a single one")
    first_sets: dict[str, str] = {}
    for text in texts:
        folder = run_folder(text)
        named = ("DATASETS.TEST", repr(tuple(data_sets))) if data_sets else ()
        cfg = read_config(str(folder / "config.yaml"), [*overrides, *named])
        first_sets.update({split_label(text)[0]: name for name in cfg.DATASETS.TEST[:1]})
    return first_sets


def trained_steps_of(text: str, overrides: Sequence[Any] = ()) -> int:
    """`Run.trained_steps` of `RUN` or `LABEL=RUN`, whose model is not loaded.

    Raises:
        ConfigurationError: there is no such training.
    """
    cfg = read_config(str(run_folder(text) / "config.yaml"), list(overrides))
    return int(final_node(cfg.CRBP).SOLVER.STEPS)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is meant to be a checkpoint in the output folder of a training."""
    return path.suffix == ".pth" and not path.is_dir()


def is_labelled(text: str) -> bool:
    """Whether a text is `LABEL=PATH`; see `split_label`."""
    label, equals, _ = text.partition("=")
    return bool(equals) and "/" not in label and not Path(text).exists()


def run_folder(text: str) -> Path:
    """The output folder of `RUN` or `LABEL=RUN`, see `load_run`.

    Raises:
        ConfigurationError: there is no such training.
    """
    return _found(text)[1]


def _found(text: str) -> tuple[str, Path, Path | None]:
    """Label, folder and, if it is there, the checkpoint to take."""
    label, path = split_label(text)
    named = is_checkpoint(path)
    folder = path.parent if named else path
    if not (folder / "config.yaml").is_file():
        raise ConfigurationError(
            f"{folder}: there is no config.yaml; give the OUTPUT_DIR of a training"
        )
    if named and not path.is_file():
        raise ConfigurationError(f"{path}: there is no such checkpoint")
    final = folder / "model_final.pth"
    return label, folder, path if named else final if final.is_file() else None


def _prepare(cfg: CfgNode, *, needs_data: bool) -> None:
    try:
        prepare(cfg, eval_only=True)
        return
    except DatasetError as error:
        names = cfg.DATASETS.TEST
        if needs_data or not names or not MetadataCatalog.get(names[0]).get("stuff_classes"):
            raise
        logger.warning("no ground truth will be drawn: %s", error)
    set_num_classes(cfg, names[0])
    cfg.DATASETS.TEST = ()
    prepare(cfg, eval_only=True)
    cfg.defrost()
    cfg.DATASETS.TEST = names
    cfg.freeze()


def split_label(text: str) -> tuple[str, Path]:
    """Label and path of `LABEL=PATH` or `PATH`, whose label is the name of the folder.

    Args:
        text: `PATH` is a folder, or a file in the folder that gives the label; or `crbp://NAME`,
            for the folder of that model. What exists as a path is one, also with an equals sign in
            it.

    Raises:
        ConfigurationError: the package holds no model of that name.
    """
    if is_labelled(text):
        label, _, path = text.partition("=")
        return label, _path(path)
    found = _path(text)
    folder = found.resolve() if found.is_dir() or not found.suffix else found.resolve().parent
    return folder.name, found


def _path(text: str) -> Path:
    return folder_of(text) if is_address(text) else Path(text)


def require_different_labels(labels: Sequence[str], form: str = "LABEL=RUN") -> None:
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


def require_shared(data_sets: Mapping[str, str]) -> None:
    """Runs that are compared image by image have the same data.

    Args:
        data_sets: of each run, by label.

    Raises:
        ConfigurationError: they differ.
    """
    if len(set(data_sets.values())) > 1:
        listed = ", ".join(f"{label} has {name}" for label, name in data_sets.items())
        raise ConfigurationError(
            f"DATASETS.TEST differs: {listed}; name one data set for all with --dataset"
        )
