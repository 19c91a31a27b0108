"""Whether an exported file answers as its model does, before it is kept.

Shape shorthand: images of H x W pixels in C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import SemanticSegmentor
from torch import Tensor

from crbp_d2.analysis.exporting import (
    Loaded,
    export,
    finish,
    objects_of,
    output_names,
    quiet,
    require_exportable,
)
from crbp_d2.analysis.images import contour_samples, model_input, own_sample
from crbp_d2.analysis.runs import Run
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_whole

MOST_DIFFERING = 1e-3
"""Share of pixels that rounding may give to another segment."""


@dataclass(frozen=True)
class Agreement:
    """How an exported file answers, beside its model.

    Attributes:
        size: `(H, W)` of the image.
        objects: how many the model finds; `None` of a semantic model.
        differing: share of pixels that belong to something else, 0..1; 1 where the objects are
            others.
        largest: difference of a probability of a mask, or of a logit where there are no objects.
    """

    size: tuple[int, int]
    objects: int | None
    differing: float
    largest: float


def compare(model: Any, loaded: Loaded, image: Tensor) -> Agreement:
    """Ask a model and its file the same.

    Args:
        model: in evaluation mode.
        loaded: the file.
        image: `(C, H, W)`, of any size.
    """
    height, width = image.shape[-2:]
    with torch.no_grad(), quiet():
        own = model([{"image": image}])[0]
        outputs = loaded(image)
        answer = finish(model, outputs, height, width)
        if "instances" not in own:
            largest = _largest(outputs[0], own["sem_seg"])
            return Agreement((height, width), None, _share(answer, own), largest)
        batch = [{"image": image}]
        expected = objects_of(model, batch)
    objects, same = len(expected[0]), outputs[0].shape == expected[0].shape
    same = same and torch.equal(outputs[1].cpu(), expected[1].cpu())
    if not same:
        return Agreement((height, width), objects, 1.0, 1.0)
    return Agreement(
        (height, width), objects, _share(answer, own), _largest(outputs[3], expected[3])
    )


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) if expected.numel() else 0.0


def _share(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Of pixels that two answers to an image give to other segments, objects or classes."""

    def pixels(answer: dict[str, Any]) -> Tensor:
        if "panoptic_seg" in answer:
            segments: Tensor = answer["panoptic_seg"][0]
            return segments
        if "instances" in answer:
            masks: Tensor = answer["instances"].pred_masks
            return masks
        classes: Tensor = answer["sem_seg"].argmax(dim=0)
        return classes

    differs = (pixels(found) != pixels(expected)).float()
    return float(differs.mean()) if differs.numel() else 0.0


def example_image(run: Run, path: Path | None = None) -> Tensor:
    """An image as a model takes it, `(C, H, W)` in float32 on its device.

    Args:
        run: whose config says how images are resized and read.
        path: of an image; `None` for the first of its first test data set.

    Raises:
        ConfigurationError: there is none.
        DatasetError, OSError, ...: it can't be read.
    """
    device = run.model.pixel_mean.device
    if isinstance(run.model, SemanticSegmentor) and len(run.cfg.MODEL.PIXEL_MEAN) == 1:
        sample = own_sample(path) if path is not None else contour_samples(run, 1)[0]
        pixels = np.ascontiguousarray(sample.load()[0], dtype=np.float32)
        return torch.from_numpy(pixels)[None].to(device)
    if path is None:
        records = DatasetCatalog.get(run.data_set)
        if not records:
            raise ConfigurationError(f"{run.data_set} holds no image; name one with --image")
        path = Path(records[0]["file_name"])
    image: Tensor = model_input(path, run.cfg)["image"]
    return image.to(device)


def turned_and_cut(image: Tensor) -> Tensor:
    """An image `(C, H, W)` turned by a right angle, without the last quarter of its rows."""
    turned = image.rot90(1, (1, 2))
    return turned[:, : turned.shape[1] - turned.shape[1] // 4].contiguous()


def export_run(
    run: Run,
    image: Tensor,
    form: str,
    output: Path,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = lambda images: images,
) -> list[Agreement]:
    """Write a trained model as a file, once it has answered as the model on an image and on one of
    another size, `turned_and_cut`.

    Args:
        run: a trained model.
        image: see `example_image`.
        form: one of `FORMATS`.
        output: the file, whole or not at all; its folder is made.
        progress: wraps the images that are asked about.

    Raises:
        ConfigurationError: the model finds nothing on the image, can't be exported, or the file
            answers otherwise.
    """
    require_exportable(run.model, form)
    if output_names(run.model) != ("sem_seg",):
        with torch.no_grad():
            if not len(objects_of(run.model, [{"image": image}])[0]):
                raise ConfigurationError(
                    f"{run.label} finds no object on the image; name one that has some with --image"
                )
    content, loaded = export(run.model, image, form)
    found = []
    for one in progress([image, turned_and_cut(image)]):
        found.append(compare(run.model, loaded, one))
        if found[-1].differing > MOST_DIFFERING:
            raise ConfigurationError(
                f"{output}: not written, as the {form} file answers otherwise than {run.label} in "
                f"{found[-1].differing:.1%} of an image of {one.shape[1]} x {one.shape[2]} pixels; "
                "take another --format"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, content)
    return found
