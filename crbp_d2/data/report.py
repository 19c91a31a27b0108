"""What a prepared data set holds and asks for, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from .measures import Floats, Measures
from .prepare import Manifest
from .source import PanopticSource
from .suggest import Suggestion
from .suggestion_file import as_yaml

_QUANTILES = (0, 0.1, 0.5, 0.9, 0.99, 1)
_HEADERS = ("", "least", "10 %", "median", "90 %", "99 %", "largest")


def describe(
    name: str,
    source: PanopticSource,
    manifest: Manifest,
    cache: str | None = None,
    *,
    measures: Measures | None = None,
    asked: str = "",
) -> str:
    """Counts, where the derived files are, and the Python lines that register the data set.

    Args:
        name: under which the data set shall be registered.
        source, manifest: argument and result of `prepare`.
        cache: as given to `PanopticSource.locate`.
        measures: of the data set; adds the pixels of each class.
        asked: said between the counts and those lines, as `describe_demands` gives it.
    """
    categories = sorted(manifest.categories, key=lambda category: category["id"])
    rows = [
        [
            category["id"],
            category["name"],
            "thing" if category["isthing"] else "stuff",
            manifest.segments[str(category["id"])],
            *(_pixels_of(category["id"], measures) if measures else ()),
        ]
        for category in categories
    ]
    things = sum(bool(category["isthing"]) for category in categories)
    arguments = {
        "images": source.images,
        "panoptic_json": source.panoptic_json,
        "panoptic_pngs": source.panoptic_pngs,
        "instances_json": source.instances_json,
        "cache": cache,
    }
    given = [f'{key}="{value}"' for key, value in arguments.items() if value is not None]
    if source.intensity_range is not None:
        given.append(f"intensity_range={source.intensity_range}")
    headers = ["id", "category", "kind", "segments", *(("pixels", "%") if measures else ())]
    lines = [
        tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f"),
        "",
        f"{len(manifest.files)} images ({manifest.left_out} without any segment left out), "
        f"{things} thing and {len(categories) - things} stuff categories",
        f"derived files: {source.derived}",
        *(
            [f"images converted to 8 bits: {len(manifest.converted)}"]
            if source.intensity_range is not None
            else []
        ),
        "",
        *([asked, ""] if asked else []),
        "To use it:",
        "    from crbp_d2.data import register_panoptic, set_num_classes",
        f'    register_panoptic("{name}", {", ".join(given)})',
        f'    set_num_classes(cfg, "{name}")',
    ]
    return "\n".join(lines)


def describe_demands(
    measures: Measures, suggestions: Sequence[Suggestion], cfg: CfgNode, config_file: str
) -> str:
    """Sizes and numbers of images and objects, and the config keys that these call for.

    Args:
        measures: of the data set.
        suggestions: of `suggest`, for that config.
        cfg: of the model that shall be trained.
        config_file: that it was read from.
    """
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    scales = measures.scales(shortest, longest)
    figures = {
        "shorter side of images, pixels": measures.images.min(axis=1),
        "longer side": measures.images.max(axis=1),
        "objects in an image": measures.objects,
        "size of objects (root of area), pixels": measures.sizes,
        f"resized to {shortest}, at most {longest}": measures.sizes * scales[measures.image_of],
        "in % of the image's": 100 * measures.shares,
    }
    rows = [[name, *_quantiles(values)] for name, values in figures.items() if len(values)]
    return "\n".join(
        [
            tabulate(rows, headers=_HEADERS, tablefmt="pipe", floatfmt=".4g"),
            "",
            f"Keys that they call for, on top of {config_file}:",
            "",
            as_yaml(suggestions).rstrip(),
        ]
    )


def _quantiles(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, _QUANTILES)]


def _pixels_of(category: int, measures: Measures) -> tuple[int, float]:
    """Pixels of a category, and their part of all in percent."""
    pixels = measures.pixels[category]
    return pixels, 100 * pixels / float(measures.images.prod(axis=1).sum())
