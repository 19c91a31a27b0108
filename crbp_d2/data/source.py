"""Where the files of a panoptic data set are, and where derived ones go."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import resolved
from .reading import IntensityRange, checked_range
from .storage import writable_or_cached
from .validate import DatasetError, converted_by, read_json, refuse_instances

CACHE_FOLDER = "crbp_d2_cache"
PathLike = str | Path


@dataclass(frozen=True)
class PanopticSource:
    """The files of a panoptic data set, and the folder for what is derived from them.

    Args:
        images: folder of images.
        panoptic_json: COCO's panoptic format.
        panoptic_pngs: folder of PNGs with segment ids encoded in RGB.
        instances_json: COCO's instance format, or None to derive instances from the PNGs.
        derived: folder of the derived files; `locate` chooses it.
        intensity_range: values that become 0 and 255 in images of more than eight bits.
    """

    images: Path
    panoptic_json: Path
    panoptic_pngs: Path
    instances_json: Path | None
    derived: Path
    intensity_range: IntensityRange | None = None

    @classmethod
    def locate(
        cls,
        *,
        images: PathLike,
        panoptic_json: PathLike,
        panoptic_pngs: PathLike,
        instances_json: PathLike | None = None,
        cache: PathLike | None = None,
        intensity_range: Any = None,
    ) -> PanopticSource:
        """Makes the paths absolute and chooses the folder of derived files.

        It lies in the folder `cache`, by default in `crbp_d2_cache` beside the JSON or, where that
        is read-only, in the user's cache. Its name has a digest of the paths and the range, so that
        different combinations never share it, and two spellings of a path do.

        Raises:
            DatasetError: `intensity_range` is not None and not two numbers, or a path can't be one.
        """
        values = checked_range(intensity_range)
        json_path = resolved(panoptic_json)
        sources = (
            resolved(images),
            json_path,
            resolved(panoptic_pngs),
            None if instances_json is None else resolved(instances_json),
        )
        keys = [*sources, *(values or ())]
        digest = hashlib.sha256("\n".join(map(str, keys)).encode()).hexdigest()[:8]
        name = f"{json_path.stem}-{digest}"
        if cache is not None:
            derived = resolved(cache) / name
        else:
            derived = writable_or_cached(json_path.parent / CACHE_FOLDER / name, name)
        return cls(*sources, derived, values)

    @property
    def stuff_maps(self) -> Path:
        """Folder of stuff maps: 0 = things, 1, 2, ... = stuff classes, 255 = unlabelled."""
        return self.derived / "stuff"

    @property
    def converted_images(self) -> Path:
        """Folder of images that were converted to eight bits."""
        return self.derived / "images"

    @property
    def measured_json(self) -> Path:
        """The panoptic JSON with areas and boxes measured in the PNGs."""
        return self.derived / "panoptic.json"

    @property
    def used_instances_json(self) -> Path:
        """The instance JSON that is read: the given one in normal form, or the derived one."""
        return self.derived / "instances.json"

    def check_exists(self) -> None:
        """Raises `DatasetError` if a file or folder is missing."""
        # The methods of Path raise errors for some names that nothing can have.
        if os.path.isfile(self.panoptic_json) and not os.path.isdir(self.panoptic_pngs):
            # Who has no PNGs may have instances, and has to be told more than that.
            content = read_json(self.panoptic_json)
            refuse_instances(self.panoptic_json, content)
            if converted_by(content) is not None:
                raise DatasetError(
                    f"{self.panoptic_pngs}: no such folder, as after a conversion that was cut "
                    "off; call datasets/convert.py again as before"
                )
        for folder in (self.images, self.panoptic_pngs):
            if not os.path.isdir(folder):
                raise DatasetError(f"{folder}: no such folder; check the path")
        for path in (self.panoptic_json, self.instances_json):
            if path is not None and not os.path.isfile(path):
                raise DatasetError(f"{path}: no such file; check the path")
