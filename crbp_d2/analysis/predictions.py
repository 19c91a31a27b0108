"""Predictions on any images: panoptic ones side by side, and when a contour's pixels were claimed.

Shape shorthand: T steps, images of H x W pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from crbp_d2.analysis.figures import STYLE, new_figure, save_figure
from crbp_d2.analysis.images import ContourSample, PanopticTruth, model_input
from crbp_d2.analysis.outputs import outputs_at
from crbp_d2.analysis.runs import Run
from crbp_d2.data import read_image
from crbp_d2.data.storage import write_whole
from crbp_d2.evaluation.pictures import draw_panoptic, enlarged

Pixels = npt.NDArray[np.uint8]

LONGEST_SIDE = 1024
"""Larger photographs are drawn at this size; the models get them in full."""
GAP = 8
"""Pixels between panels."""
DARKEST = 0.15
"""Where the colours of steps begin in viridis, as its first ones can't be told from black."""


def panoptic_picture(
    path: Path, runs: Sequence[Run], metadata: Any, truth: PanopticTruth | None = None
) -> Pixels:
    """An image, each model's segments, and the true ones where they are known.

    Args:
        path: of an image.
        runs: panoptic models of the same classes.
        metadata: with the names of these classes.
        truth: what is known.

    Returns:
        `(H', W', 3)` RGB, 0..255; see `side_by_side`.
    """
    image = _bounded(read_image(str(path), "RGB", metadata.get("intensity_range")))
    panels = [("image", enlarged(image))]
    for run in runs:
        with torch.no_grad():
            segments, infos = run.model([model_input(path, run.cfg)])[0]["panoptic_seg"]
        panels.append((run.label, draw_panoptic(image, segments.cpu().numpy(), infos, metadata)))
    known = truth.of(path) if truth is not None else None
    if known is not None:
        panels.append(("ground truth", draw_panoptic(image, *known, metadata)))
    return side_by_side(panels)


def write_panoptic_picture(
    path: Path,
    output: Path,
    runs: Sequence[Run],
    metadata: Any,
    truth: PanopticTruth | None = None,
) -> None:
    """Write `panoptic_picture` to `output` with the ending `.png`, whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(panoptic_picture(path, runs, metadata, truth)).save(content, "png")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output.with_name(f"{output.name}.png"), content.getvalue())


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> Pixels:
    """Panels in a row, each under its title; a title that is too long is cut.

    Args:
        panels: titles and images `(H, W, 3)` RGB, 0..255, of the same height.

    Returns:
        `(H + strip, sum of W + gaps, 3)` RGB, 0..255, on white.
    """
    height = panels[0][1].shape[0]
    strip = title_height(height)
    width = sum(image.shape[1] for _, image in panels) + GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, height + strip), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), round(0.6 * strip))
    left = 0
    for title, image in panels:
        sheet.paste(Image.fromarray(image), (left, strip))
        shown = title
        while shown and draw.textlength(shown, font) > image.shape[1] - 2 * GAP:
            shown = f"{shown.rstrip('…')[:-1]}…" if len(shown) > 2 else ""
        draw.text((left + GAP, strip // 2), shown, "black", font, anchor="lm")
        left += image.shape[1] + GAP
    return np.asarray(sheet)


def title_height(height: int) -> int:
    """Pixels of the title strip over panels of a height."""
    return max(32, height // 16)


def _bounded(image: np.ndarray) -> np.ndarray:
    factor = LONGEST_SIDE / max(image.shape[:2])
    if factor >= 1:
        return image
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


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
    claims = [(run.label, claim_map(run, image, last), run.cfg.CRBP.STEPS) for run in runs]
    save_figure(claim_figure(image, claims, last, mask), output)
    for label, claimed, _ in claims:
        table = io.BytesIO()
        np.savetxt(table, claimed, fmt="%d", delimiter=",")
        suffix = "" if len(runs) == 1 else "_" + re.sub(r"\W+", "_", label)
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
            axis.set_title(label)
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
