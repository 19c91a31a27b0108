"""A few real images out of `../shared/data`, in the files that others wrote; see its README.

They can't be redistributed, so tests that need them carry the mark `needs_real_data`; the data of
`mixed_data.py`, which are drawn, go the same ways without them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="needs real images, which can't be redistributed, in ../shared/data",
)

_LAYOUTS = {
    "nuclei": {
        split: (f"nuclei/{split}", f"nuclei/panoptic_{split}.json", f"nuclei/panoptic_{split}")
        for split in ("train", "val")
    },
    "coco": {
        split: (
            f"coco/{split}2017",
            f"coco/annotations/panoptic_{split}2017.json",
            f"coco/panoptic_{split}2017",
        )
        for split in ("train", "val")
    },
}


def real_arguments(
    name: str, folder: Path, *, split: str = "val", images: int = 8, first: int = 0
) -> dict[str, Any]:
    """Arguments of `register_panoptic` for some of the images of `nuclei` or `coco`.

    Images and PNGs stay where they are; the JSON that names some of them, and what is derived, go
    to `folder`.
    """
    image_folder, json_file, png_folder = _LAYOUTS[name][split]
    content = json.loads((SHARED / json_file).read_text())
    content["images"] = content["images"][first : first + images]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    folder.mkdir(parents=True, exist_ok=True)
    cut = folder / f"{name}_{split}.json"
    cut.write_text(json.dumps(content))
    return {
        "images": SHARED / image_folder,
        "panoptic_json": cut,
        "panoptic_pngs": SHARED / png_folder,
        "cache": folder / "cache",
    }
