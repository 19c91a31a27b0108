"""The page as one file that needs nothing else, and the numbers behind it beside it."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from crbp_d2.analysis.figures import COLOURS
from crbp_d2.analysis.page.collect import PageImage, collect
from crbp_d2.analysis.page.figures import figures_html, shared_figures_html
from crbp_d2.analysis.page.painters import Painter, painter_of
from crbp_d2.analysis.runs import Run
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_json, writing_whole

MEGABYTE = 1_000_000
Json = dict[str, Any]
Progress = Callable[[Iterable[PageImage], int], Iterable[PageImage]]


@dataclass(frozen=True)
class Written:
    """What `write_page` wrote.

    Attributes:
        page: its path.
        numbers: path of the numbers behind it.
        megabytes: size of the page.
        images: how many it shows.
        left_out: why it shows fewer than asked for and what to change, else empty.
    """

    page: Path
    numbers: Path
    megabytes: float
    images: int
    left_out: str


def write_page(
    runs: Sequence[Run],
    data_set: str,
    steps: Sequence[int],
    *,
    images: int,
    megabytes: float,
    output: Path,
    progress: Progress = lambda images, _: images,
) -> Written:
    """Run the models and write the page and, with the ending `.json`, the numbers behind it.

    Args:
        runs: of `load_recurrent_runs`.
        data_set: what `shared_data_set` says.
        steps: ascending, at least 1.
        images: how many of the first ones, at least 1.
        megabytes: the most the page may take, in 10^6 bytes; the last images are left out to keep
            it.
        output: the file, with the ending `.html`; its folder is made.
        progress: wraps the images as they are made; gets their number, too.

    Raises:
        ConfigurationError: an argument is out of range, the figures and one image alone exceed the
            size, other numbers would be overwritten, or see `collect`.
    """
    if output.suffix != ".html":
        raise ConfigurationError(f"--output {output}: the name must end with .html")
    numbers_path = output.with_suffix(".json")
    _refuse_other_numbers(numbers_path)
    painter = painter_of(data_set)
    images = min(images, len(DatasetCatalog.get(data_set)))
    if images < 1:
        raise ConfigurationError(f"--images: there is none to show of {data_set}")
    page = _Page(runs, data_set, steps, painter, numbers_path.name, output.parent)
    size = len(page.render(_why_left_out(images, images, megabytes)))
    left_out = ""
    for image in progress(collect(runs, data_set, painter, steps, images), images):
        size += page.add(image)
        if size > megabytes * MEGABYTE:
            page.remove_last()
            if not page.pictures:
                raise ConfigurationError(
                    f"--megabytes {megabytes:g}: the page with one image takes "
                    f"{size / MEGABYTE:.2f}; allow more, or give fewer --steps"
                )
            left_out = _why_left_out(images - len(page.pictures), images, megabytes)
            break
    content = page.render(left_out)
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing_whole(output) as file:
        file.write(content)
        file.flush()
        # Both or neither: the page has its place on the disk by now.
        write_json(numbers_path, page.numbers)
    return Written(output, numbers_path, len(content) / MEGABYTE, len(page.pictures), left_out)


class _Page:
    """The page as it grows, image by image.

    Attributes:
        numbers: what is written beside the page.
        pictures: what the page has besides, an entry an image.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        data_set: str,
        steps: Sequence[int],
        painter: Painter,
        numbers_name: str,
        folder: Path,
    ) -> None:
        self.numbers: Json = {
            "data_set": data_set,
            "score": painter.score,
            "runs": [{"label": run.label, "trained_steps": run.trained_steps} for run in runs],
            "steps": list(steps),
            "images": [],
        }
        self.pictures: list[Json] = []
        self._painter = painter
        self._parts = {
            "labels": escape(", ".join(run.label for run in runs)),
            "data_set": escape(data_set),
            "steps": f"{steps[0]} to {steps[-1]}",
            "score": painter.score,
            "maximum": f"{painter.maximum:g}",
            "explanation": escape(painter.explanation),
            "numbers": escape(numbers_name),
            "figures": shared_figures_html(folder, runs) + "".join(map(figures_html, runs)),
            "style": _colours(len(runs)) + _asset("base.css") + _asset("page.css"),
            "script": _asset("chart.js") + _asset("page.js"),
        }

    def add(self, image: PageImage) -> int:
        """Adds an image; the bytes it takes."""
        answers = [asdict(answers) for answers in image.answers]
        numbers: Json = {"name": image.name}
        for key in ("score", "residual"):
            numbers[key] = [one.pop(key) for one in answers]
        pictures = {
            "size": image.size,
            "image": image.image,
            "truth": image.truth,
            "answers": answers,
        }
        self.numbers["images"].append(numbers)
        self.pictures.append(pictures)
        return len(_json(pictures)) + len(_json(numbers)) + 2

    def remove_last(self) -> None:
        self.numbers["images"].pop()
        self.pictures.pop()

    def render(self, left_out: str) -> bytes:
        data = {
            "numbers": self.numbers,
            "maximum": self._painter.maximum,
            "overlays": self._painter.overlays,
            "pictures": self.pictures,
        }
        parts = {
            **self._parts,
            "left_out": f'<p class="notice">{_marked(left_out)}</p>' if left_out else "",
            "data": _json(data),
        }
        # In one pass: what is put in is not searched again.
        page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))
        return page.encode()


def _why_left_out(number: int, wanted: int, megabytes: float) -> str:
    return (
        f"Left out: the last {number} of {wanted} images, as the page would exceed "
        f"{megabytes:g} MB. Raise --megabytes, or give fewer --images or --steps."
    )


def _marked(text: str) -> str:
    """A message as HTML, with its options as code."""
    return re.sub(r"(--[a-z]+)", r"<code>\1</code>", escape(text))


def _refuse_other_numbers(path: Path) -> None:
    if not path.exists():
        return
    try:
        ours = {"data_set", "runs", "steps", "images"} <= set(json.loads(path.read_text()))
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ConfigurationError(
            f"--output: {path} is in the way of the numbers behind the page; choose another name"
        )


def _json(content: Any) -> str:
    """Compact, ASCII, and harmless within a script element."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _colours(runs: int) -> str:
    """The colours of the runs as CSS variables; on a dark ground dark ones are made light."""
    colours = [COLOURS[number % len(COLOURS)] for number in range(runs)]
    light = [f"--run-{number}:{colour}" for number, colour in enumerate(colours)]
    dark = [f"--run-{number}:{_for_dark(colour)}" for number, colour in enumerate(colours)]
    return (
        f":root{{{';'.join(light)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}\n"
    )


def _for_dark(colour: str) -> str:
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(*channels)
    lighter = colorsys.hls_to_rgb(hue, max(lightness, 1 - lightness), saturation)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in lighter)
