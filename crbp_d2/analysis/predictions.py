"""Predictions on any images: panoptic ones side by side, and when a contour's pixels were claimed.

Shape shorthand: T steps, images of H x W pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from crbp_d2.analysis.figures import STYLE, new_figure, plain, save_figure
from crbp_d2.analysis.images import ContourSample, PanopticTruth, model_input
from crbp_d2.analysis.outputs import outputs_at
from crbp_d2.analysis.runs import Run
from crbp_d2.data import read_image
from crbp_d2.data.storage import write_whole
from crbp_d2.evaluation.colours import ObjectColours
from crbp_d2.evaluation.drawing import LONGEST_SIDE, draw_segments, scaled, side_by_side
from crbp_d2.evaluation.pictures import answer_as_drawn, unused
from crbp_d2.evaluation.segments import Keep

Pixels = npt.NDArray[np.uint8]

DARKEST = 0.15
"""Where the colours of steps begin in viridis, as its first ones can't be told from black."""


def panoptic_picture(
    path: Path,
    runs: Sequence[Run],
    metadata: Any,
    truth: PanopticTruth | None = None,
    keep: Keep | None = None,
) -> Pixels:
    """An image, each model's segments, and the true ones where they are known.

    Args:
        path: of an image.
        runs: panoptic models of the same classes.
        metadata: with the names of these classes.
        truth: what is known.
        keep: takes the segments of the models, see `crbp_d2.evaluation.segments`. They are asked
            for at the size of the image, or of a larger one at that at which a model looks at it.

    Returns:
        `(H', W', 3)` RGB, 0..255; see `side_by_side`.
    """
    image = scaled(read_image(str(path), "RGB", metadata.get("intensity_range")))
    colours = ObjectColours(metadata)
    known = truth.of(path) if truth is not None else None
    # First, so that its objects are the first of their class; it is shown last.
    true = [] if known is None else [draw_segments(image, *known, metadata, colours)]
    panels = [("image", image)]
    for run in runs:
        record = model_input(path, run.cfg)
        longest = None if keep is None else max(LONGEST_SIDE, *record["image"].shape)
        answer = answer_as_drawn(run.model, record, longest)
        segments, infos = answer["panoptic_seg"]
        found = segments.cpu().numpy()
        if keep is not None:
            keep(path, (record["height"], record["width"]), found, infos)
        drawn = draw_segments(image, found, infos, metadata, colours)
        panels.append((run.label, drawn))
    return side_by_side([*panels, *(("ground truth", picture) for picture in true)])


def write_panoptic_picture(
    path: Path,
    output: Path,
    runs: Sequence[Run],
    metadata: Any,
    truth: PanopticTruth | None = None,
    keep: Keep | None = None,
) -> None:
    """Write `panoptic_picture` to `output` with the ending `.png`, whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(panoptic_picture(path, runs, metadata, truth, keep)).save(content, "png")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output.with_name(f"{output.name}.png"), content.getvalue())


def claimed_at(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The step from which on each pixel is in the contour to the end.

    Args:
        masks: `(T, H, W)`, of the steps 1..T.

    Returns:
        `(H, W)` in 1..T, 0 for pixels that are not in the last mask.
    """
    held = np.logical_and.accumulate(masks[::-1]).sum(axis=0)
    return np.where(held > 0, len(masks) - held + 1, 0)


def claim_map(run: Run, image: Pixels, last: int) -> npt.NDArray[np.int64]:
    """`claimed_at` of a contour model's predictions at the steps 1..`last` on one image.

    Args:
        run: see `is_contour_model`.
        image: `(H, W)` grey, 0..255.
        last: `T`, at least 1.
    """
    batch = [{"image": torch.from_numpy(image.copy())[None]}]
    masks = []
    for one in outputs_at(run.model, batch, range(1, last + 1)):
        background, contour = one.outputs[0]["sem_seg"]
        masks.append((contour > background).cpu().numpy())
    return claimed_at(np.stack(masks))


def claim_colours(image: Pixels, claimed: npt.NDArray[np.int64], last: int) -> Pixels:
    """A grey image whose claimed pixels have the colour of their step.

    Args:
        image: `(H, W)`, 0..255.
        claimed: `(H, W)` in 0..`last`, see `claimed_at`.
        last: the step with the last colour.

    Returns:
        `(H, W, 3)` RGB, 0..255.
    """
    grey = np.repeat(image[..., None], 3, axis=2)
    colours = step_colours(last)(np.maximum(claimed, 1) - 1, bytes=True)[..., :3]
    return np.where(claimed[..., None] > 0, colours, grey)


def step_colours(last: int) -> ListedColormap:
    """A colour for each of the steps 1..`last`."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(DARKEST, 1, last)))


def write_claim_picture(
    sample: ContourSample, output: Path, runs: Sequence[Run], last: int
) -> None:
    """Write `claim_figure` to `output` with the endings `.png` and `.pdf`, and the claim maps, a
    line for each row of pixels, with `.csv` (of several models `_<label>.csv`).

    Args:
        sample: the image.
        output: without ending; its folder is made.
        runs: contour models.
        last: the last step.
    """
    image, mask = sample.load()
    claims = [(run.label, claim_map(run, image, last), run.trained_steps) for run in runs]
    save_figure(claim_figure(image, claims, last, mask), output)
    suffixes: set[str] = set()
    for label, claimed, _ in claims:
        table = io.BytesIO()
        np.savetxt(table, claimed, fmt="%d", delimiter=",")
        suffix = unused("" if len(runs) == 1 else "_" + re.sub(r"\W+", "_", label), suffixes)
        write_whole(output.with_name(f"{output.name}{suffix}.csv"), table.getvalue())


def claim_figure(
    image: Pixels,
    claims: Sequence[tuple[str, npt.NDArray[np.int64], int]],
    last: int,
    mask: npt.NDArray[Any] | None = None,
) -> Figure:
    """An image, when each model claimed its pixels, and the true contour where it is known.

    Args:
        image: `(H, W)` grey, 0..255.
        claims: of each model label, claim map `(H, W)` and trained number of steps.
        last: steps that the claim maps cover.
        mask: `(H, W)`, 0 or 1.
    """
    figure, axes = new_figure(1, 1 + len(claims) + (mask is not None))
    figure.set_layout_engine("compressed")
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
    with mpl.rc_context(STYLE):
        for axis in axes:
            axis.axis("off")
        axes[0].imshow(image, **grey)
        axes[0].set_title("image")
        for axis, (label, claimed, trained) in zip(axes[1:], claims, strict=False):
            axis.imshow(claim_colours(image, claimed, last))
            axis.set_title(plain(label) + ("" if claimed.any() else ": nothing found"))
            _step_bar(figure, axis, last, trained)
        if mask is not None:
            axes[-1].imshow(255 * mask, **grey)
            axes[-1].set_title("ground truth")
    return figure


def _step_bar(figure: Figure, axis: Any, last: int, trained: int) -> None:
    """The colours of the steps, with the trained one marked."""
    mappable = ScalarMappable(Normalize(0.5, last + 0.5), step_colours(last))
    bar = figure.colorbar(mappable, ax=axis, label="claimed for good at step")
    ticks = sorted({1, last, *range(0, last, max(1, last // 5))} - {0, trained})
    ticks = [step for step in ticks if abs(step - trained) > last / 20]
    if trained <= last:
        bar.set_ticks([*ticks, trained], labels=[*map(str, ticks), f"{trained} (trained)"])
        for colour, width in (("white", 3), ("black", 1.2)):
            bar.ax.axhline(trained, color=colour, linewidth=width)
    else:
        bar.set_ticks(ticks)
