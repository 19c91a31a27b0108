"""What a prepared data set holds, in words."""

from __future__ import annotations

from tabulate import tabulate

from .prepare import Manifest
from .source import PanopticSource


def describe(
    name: str, source: PanopticSource, manifest: Manifest, cache: str | None = None
) -> str:
    """Counts, where the derived files are, and the Python lines that register the data set.

    Args:
        name: under which the data set shall be registered.
        source, manifest: argument and result of `prepare`.
        cache: as given to `PanopticSource.locate`.
    """
    categories = sorted(manifest.categories, key=lambda category: category["id"])
    rows = [
        [
            category["id"],
            category["name"],
            "thing" if category["isthing"] else "stuff",
            manifest.segments[str(category["id"])],
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
    lines = [
        tabulate(rows, headers=["id", "category", "kind", "segments"], tablefmt="pipe"),
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
        "To use it:",
        "    from crbp_d2.data import register_panoptic, set_num_classes",
        f'    register_panoptic("{name}", {", ".join(given)})',
        f'    set_num_classes(cfg, "{name}")',
    ]
    return "\n".join(lines)
