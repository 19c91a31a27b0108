"""Photographs that EXIF says to turn: annotations lie on them as the data are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crbp_d2.data import PanopticSource, prepare, read_image
from tests.data.panoptic_data import HEIGHT, WIDTH

from .apart import convert, masks_of, result, to


def turned_away(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What is stored so that EXIF's orientation turns it upright."""
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda image: image,
        2: lambda image: image[:, ::-1],
        3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1],
        5: lambda image: image.swapaxes(0, 1),
        6: lambda image: image.swapaxes(0, 1)[::-1],
        7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
        8: lambda image: image.swapaxes(0, 1)[:, ::-1],
    }
    return turns[orientation](upright).copy()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_lie_on_turned_photographs_as_they_are_read(tmp_path: Path, orientation: int) -> None:
    """Whether drawn upright, as labelme shows them, or as they are stored."""
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[4:12, 30:56] = True
    inside[12:16, 30:34] = True
    exif = Image.Exif()
    exif[274] = orientation
    for frame, mask in (("upright", inside), ("stored", turned_away(inside, orientation))):
        folder = tmp_path / frame / "a"
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        photograph = Image.fromarray(turned_away(inside, orientation) * np.uint8(255))
        photograph.save(folder / "images" / "a.jpg", exif=exif, quality=95)
        Image.fromarray(mask).save(folder / "masks" / "1.png")
        out = tmp_path / f"{frame} out"
        more = ["--as-stored"] if frame == "stored" else []
        assert convert("masks", tmp_path / frame, *to(out), *more) == 0
        ((_, _, found),) = masks_of(result(out), out / "panoptic_back")["a/images/a.jpg"]
        seen = read_image(str(folder / "images" / "a.jpg"), "L")[..., 0] > 127
        np.testing.assert_array_equal(found, seen)
        np.testing.assert_array_equal(found, inside)
        (segment,) = result(out)["annotations"][0]["segments_info"]
        assert segment["bbox"] == [30, 4, 26, 12]
        source = PanopticSource.locate(
            images=tmp_path / frame,
            panoptic_json=out / "panoptic_back.json",
            panoptic_pngs=out / "panoptic_back",
        )
        assert prepare(source, workers=1).segments == {"1": 1}
