"""What pictures of predictions need: models, images, and what is known of these."""

from __future__ import annotations

import filecmp
import glob
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import PanopticFPN, SemanticSegmentor

from crbp_d2.analysis.drawings import Strokes, prepare_drawing, read_drawing
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.runs import (
    Run,
    load_run,
    require_different_labels,
    run_folder,
    split_label,
)
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError, read_image
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.data.pathfinder import load_sample
from crbp_d2.data.pathfinder.draw import Bytes
from crbp_d2.data.pathfinder.images import Record
from crbp_d2.data.reading import IntensityRange
from crbp_d2.evaluation.pictures import ground_truth, image_name, unused

Read = TypeVar("Read")
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder."""


def load_predictors(
    texts: Sequence[str],
    overrides: Sequence[Any] = (),
    *,
    data_set: str | None = None,
    needs_data: bool = True,
) -> list[Run]:
    """Models of one kind for images of one's own, or for those of the first one's test data.

    Args:
        texts: see `load_run`.
        overrides: for all of them.
        data_set: whose images, or classes, they are about, in the place of the first one's
            `DATASETS.TEST`.
        needs_data: see `load_run`.

    Raises:
        ConfigurationError, DatasetError: see `load_run`.
        ConfigurationError: `DATASETS.TEST` is empty, so that classes have no name; or the models
            are of different kinds or have the same label.
    """
    require_different_labels([split_label(text)[0] for text in texts])
    first = load_run(
        texts[0],
        overrides,
        data_sets=[data_set] if data_set is not None else [],
        needs_data=needs_data,
    )
    # Needed of a single model, too: without one, classes have no name.
    data_sets = first.data_sets
    runs, kind = [first], first.cfg.MODEL.META_ARCHITECTURE
    same_data = ["DATASETS.FILE", first.cfg.DATASETS.FILE]
    for text in texts[1:]:
        other = read_config(str(run_folder(text) / "config.yaml")).MODEL.META_ARCHITECTURE
        if other != kind:
            raise ConfigurationError(
                f"{first.label} is a {kind}, {split_label(text)[0]} a {other}: draw them apart"
            )
        runs.append(
            load_run(
                text,
                [*overrides, *same_data],
                data_sets=data_sets,
                needs_data=needs_data,
            )
        )
    return runs


def is_contour_model(run: Run) -> bool:
    """Whether it takes grey images and finds contours; otherwise it is a panoptic model.

    Raises:
        ConfigurationError: it is neither, or a contour model without a circuit.
    """
    if isinstance(run.model, SemanticSegmentor) and len(run.cfg.MODEL.PIXEL_MEAN) == 1:
        find_recurrence(run.model)
        return True
    if isinstance(run.model, PanopticFPN):
        return False
    raise ConfigurationError(
        f"{run.label}: a {type(run.model).__name__} can't be drawn, only a PanopticFPN, or a "
        "SemanticSegmentor with RecurrentSemSegHead on grey images"
    )


def find_images(inputs: Iterable[str], written: Iterable[Path] = ()) -> list[Path]:
    """The images that files, folders and patterns such as `scenes/*.png` name, in their order; of a
    folder those of all folders in it, but for hidden ones.

    Args:
        written: folders whose files an earlier call may have left: in none that is walked are they
            images.

    Raises:
        ConfigurationError: one of them names none.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            matches = _walked(path, [folder.resolve() for folder in written])
        elif path.is_file():
            matches = [path]
        else:
            matches = list(map(Path, sorted(glob.glob(text, recursive=True))))
        matches = [one for one in matches if one.is_file()]
        if not matches:
            raise ConfigurationError(
                f"--input {text}: no image there; give files, folders or patterns in quotes"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _walked(folder: Path, written: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() not in written
        )
        found += (Path(parent, name) for name in sorted(names) if not name.startswith("."))
    return [path for path in found if path.suffix.lower() in ENDINGS]


def intensity_range_of(cfg: CfgNode) -> IntensityRange | None:
    """How the first of the test data sets converts images of more than eight bits; None if it has
    no such images."""
    values: IntensityRange | None = None
    if cfg.DATASETS.TEST:
        values = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("intensity_range")
    return values


def read_each(paths: Iterable[Path], read: Callable[[Path], Read]) -> list[Read]:
    """Read every image, so that a broken one is known before the first is drawn.

    Args:
        read: gives what is wanted of an image.

    Raises:
        ConfigurationError: naming all that can't be read.
    """
    found, broken = [], []
    for path in paths:
        try:
            found.append(read(path))
        except DatasetError as error:
            broken.append(str(error))
        # What Pillow raises depends on the format and on what is broken.
        except Exception as error:
            broken.append(f"{path}: not a readable image ({error}); copy it anew or leave it out")
    if broken:
        raise ConfigurationError("\n".join(broken))
    return found


def require_photograph(path: Path, values: IntensityRange | None = None) -> None:
    """Decode an image for a panoptic model.

    Args:
        values: how an image of more than eight bits is converted; None to refuse it.

    Raises:
        DatasetError, OSError, SyntaxError, ...: see `read_image`.
    """
    read_image(str(path), "RGB", values)


def output_names(paths: Sequence[Path], folder: Path) -> list[Path]:
    """For each image a path in `folder` without ending: its stem, numbered where it repeats.

    Raises:
        ConfigurationError: a picture would take the place of one of the images.
    """
    taken: set[str] = set()
    names = [folder / unused(path.stem, taken) for path in paths]
    given = {path.resolve() for path in paths}
    for output in names:
        picture = output.with_name(f"{output.name}.png")
        if picture.resolve() in given:
            raise ConfigurationError(f"--output: {picture} is one of the images; name another")
    return names


@dataclass(frozen=True)
class _Annotated:
    path: Path
    segments: Path
    annotation: dict[str, Any]

    def is_of(self, path: Path) -> bool:
        """Whether an image is this one, and its segments are at hand."""
        return (
            self.path.name == path.name
            and self.path.is_file()
            and self.segments.is_file()
            and (self.path == path or filecmp.cmp(self.path, path, shallow=False))
        )


class PanopticTruth:
    """The images of a panoptic data set and their annotations.

    Args:
        metadata: of a data set in COCO's panoptic format.
    """

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        content = json.loads(Path(metadata.panoptic_json).read_text(encoding="utf-8"))
        images, pngs = Path(metadata.image_root), Path(metadata.panoptic_root)
        annotations = {entry["image_id"]: entry for entry in content["annotations"]}
        self._entries = [
            _Annotated(
                path=images / image["file_name"],
                segments=pngs / annotations[image["id"]]["file_name"],
                annotation=annotations[image["id"]],
            )
            for image in content["images"]
            if image["id"] in annotations
        ]

    def images(self, count: int) -> list[Path]:
        """The first `count`."""
        return [entry.path for entry in self._entries[:count]]

    def of(self, path: Path) -> tuple[np.ndarray, list[dict[str, Any]]] | None:
        """Segments of an image as `ground_truth` gives them; `None` unless the data set has a file
        of that name and content."""
        # The same image may be in several folders, with other annotations.
        own = sorted(self._entries, key=lambda entry: entry.path != path)
        found = next((entry for entry in own if entry.is_of(path)), None)
        return None if found is None else ground_truth(found.annotation, self.metadata)


def panoptic_truth(run: Run) -> PanopticTruth | None:
    """The annotations of the first of a run's test data sets; `None` if it isn't panoptic or is
    missing."""
    metadata = MetadataCatalog.get(run.cfg.DATASETS.TEST[0])
    if metadata.get("evaluator_type") != "coco_panoptic_seg":
        return None
    return PanopticTruth(metadata) if Path(metadata.panoptic_json).is_file() else None


@dataclass(frozen=True)
class ContourSample:
    """A grey image.

    Attributes:
        path: of its file, or what it is named after if it is drawn.
        source: a record of a Pathfinder data set; or, of one's own, the image `(H, W)` in 0..255.
        notices: what was changed of one's own.
    """

    path: Path
    source: Record | Bytes
    notices: Sequence[str] = ()

    def load(self) -> tuple[Bytes, Bytes | None]:
        """The image `(H, W)` in 0..255, and the mask `(H, W)` in {0, 1} where it is known."""
        if isinstance(self.source, np.ndarray):
            return self.source, None
        return load_sample(self.source)


def own_sample(path: Path, strokes: Strokes | None = None) -> ContourSample:
    """A drawing of one's own as a contour model takes it.

    Args:
        strokes: of the model's training, see `prepare_drawing`.

    Raises:
        DatasetError, OSError, SyntaxError, ...: see `read_drawing`.
    """
    return ContourSample(path, *prepare_drawing(read_drawing(path), strokes))


def contour_samples(run: Run, count: int) -> list[ContourSample]:
    """The first `count` images of the first of a run's test data sets.

    Raises:
        ConfigurationError: these are not Pathfinder images.
    """
    name = run.cfg.DATASETS.TEST[0]
    if not is_pathfinder(name):
        raise ConfigurationError(
            f"DATASETS.TEST: {name} holds no Pathfinder images; name some, or give --input"
        )
    return [
        ContourSample(Path(record.get("file_name", image_name(record))), record)
        for record in islice(DatasetCatalog.get(name), count)
    ]


def model_input(path: Path, cfg: Any) -> dict[str, Any]:
    """What a panoptic model takes, as Detectron2's `DefaultPredictor` makes it of an image:
    resized, in the channel order of `INPUT.FORMAT`, with the size to answer in."""
    original = read_image(str(path), cfg.INPUT.FORMAT, intensity_range_of(cfg))
    shortest = cfg.INPUT.MIN_SIZE_TEST
    resize = ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
    image = resize.get_transform(original).apply_image(original)
    return {
        "image": torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1).copy()),
        "height": original.shape[0],
        "width": original.shape[1],
    }


def predict(run: Run, path: str | Path) -> dict[str, Any]:
    """What a panoptic model, or one of objects, answers to an image.

    Args:
        run: the model, see `load_run`.
        path: of the image.

    Returns:
        As Detectron2's models do, at the size of the image: `instances`, of a panoptic model also
        `sem_seg` and `panoptic_seg`, segment ids `(H, W)` and their infos.

    Raises:
        DatasetError, OSError, SyntaxError, ...: see `read_image`.
    """
    with torch.no_grad():
        answer: dict[str, Any] = run.model([model_input(Path(path), run.cfg)])[0]
    return answer
