"""Images in eight bits: what Pillow would lose without a word is refused, or converted if asked.

Models take values from 0 to 255, and Pillow gives such of any image: of 16-bit grey values those
above 255 become 255, 16-bit colours lose half of their bits, of several pages the first is taken.
Microscopes write files like that. A range of intensities makes them eight bits deep by a rule that
the user chooses.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError

from .fields import MAX_PIXELS, finite
from .validate import DatasetError

IntensityRange = tuple[float, float]
"""Values that become 0 and 255. The conversion is linear between them and cuts beyond."""

# Of an image file, in bytes; `MAX_PIXELS` of three 32-bit values have fewer.
MAX_FILE_SIZE = 2**30
# Of an image of more than eight bits, converted at a time.
_ROWS_AT_A_TIME = 256
# Of others it isn't known here how deep they are.
FORMATS = {"BMP", "DIB", "GIF", "JPEG", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
_TOO_LARGE = f"{{}} pixels, and at most {MAX_PIXELS} are read; cut it into tiles"
_BITS, _SAMPLES, _SAMPLE_FORMAT, _KIND_OF_PAGE, _ORIENTATION = 258, 277, 339, 254, 274


def checked_range(given: Any) -> IntensityRange | None:
    """A range as users give it: None, or two numbers.

    Raises:
        DatasetError: it is something else.
    """
    if given is None:
        return None
    try:
        low, high = (float(finite(value)) for value in given)
        if low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    raise DatasetError(
        f"intensity_range is {given!r}, must be the two values that shall become 0 and 255, as "
        "(0, 4095)"
    )


def read_image(
    path: str, channels: str, values: IntensityRange | None = None
) -> npt.NDArray[np.uint8]:
    """Detectron2's `read_image`, which loses nothing unless told to.

    Args:
        path: of an image.
        channels: `format` of Detectron2's function: RGB, BGR, L, ...
        values: how to convert an image of more than eight bits; others are read as they are.

    Returns:
        `(H, W, C)` in 0..255, upright.

    Raises:
        DatasetError: something would be lost, or the image has no contrast in `values`.
    """
    try:
        with PathManager.open(path, "rb") as file:
            content = read_whole(file)
        converted = eight_bits(content, values)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    if converted is None:
        return detection_utils.read_image(path, channels)
    return detection_utils.convert_PIL_to_numpy(converted, channels)


def require_eight_bits(path: str) -> None:
    """Look at the header of an image, which takes next to no time.

    Raises:
        DatasetError: to read it in eight bits would lose something.
    """
    try:
        with PathManager.open(path, "rb") as file, open_image(file) as image:
            require_whole(image)
            if is_deep(image):
                raise DatasetError(f"{_deep(image)}; save it with 8 bits")
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def open_image(source: str | Path | IO[bytes]) -> Image.Image:
    """An image of which the header alone has been read, whatever memory the rest would take.

    Raises:
        DatasetError: it has more pixels than `MAX_PIXELS`. Names the cure, not the file.
        OSError, SyntaxError, ...: what Pillow raises of files that are broken or no images.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is higher, and a mere warning up to its double.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(
            "no format that Pillow knows; save it as PNG or TIFF, of 8 or 16 bits"
        ) from None
    except Image.DecompressionBombError:
        raise DatasetError(_TOO_LARGE.format("more than Pillow opens")) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DatasetError(_TOO_LARGE.format(f"{image.width} x {image.height}"))
    return image


def image_endings() -> set[str]:
    """Endings of the names of images that can be read, in small letters with their dots."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}


def read_whole(file: IO[bytes]) -> bytes:
    """The content of an image file.

    Raises:
        DatasetError: it has more bytes than `MAX_FILE_SIZE`. Names the cure, not the file.
    """
    size = file.seek(0, os.SEEK_END)
    if size > MAX_FILE_SIZE:
        raise DatasetError(
            f"{size} bytes, and at most {MAX_FILE_SIZE} are read; save it as PNG, or cut it into "
            "tiles"
        )
    file.seek(0)
    return file.read()


def eight_bits(content: bytes, values: IntensityRange | None) -> Image.Image | None:
    """An image of more than eight bits, converted.

    Args:
        content: of an image file.
        values: see `read_image`.

    Returns:
        Of mode L or RGB, upright; None for an image that has eight bits already.

    Raises:
        DatasetError: reading it would lose something, or the image has no contrast in `values`.
            Names what and the cure, not the file.
        OSError, SyntaxError, ...: what Pillow raises of files that are broken or no images.
    """
    with open_image(io.BytesIO(content)) as image:
        require_whole(image)
        if not is_deep(image):
            _require_opaque(image)
            return None
        deep = _deep_values(image, content)
        if not np.isfinite(deep).all():
            raise DatasetError("some values are NaN or infinite; replace them")
        lowest, highest = float(deep.min()), float(deep.max())
        if values is None:
            raise DatasetError(
                f"{_deep(image)}, here {lowest:g} to {highest:g}; give the data set an "
                "intensity_range, the two that shall become 0 and 255, or save it with 8 bits"
            )
    converted = np.empty(deep.shape, dtype=np.uint8)
    for top in range(0, len(deep), _ROWS_AT_A_TIME):
        rows = slice(top, top + _ROWS_AT_A_TIME)
        scaled = (deep[rows].astype(np.float64) - values[0]) / (values[1] - values[0])
        converted[rows] = np.rint(255 * np.clip(scaled, 0, 1))
    if lowest < highest and converted.min() == converted.max():
        raise DatasetError(
            f"all values ({lowest:g} to {highest:g}) become {converted.min()} with an "
            f"intensity_range of {values[0]:g} to {values[1]:g}; give one that fits"
        )
    return Image.fromarray(converted)


def _deep(image: Image.Image) -> str:
    return f"values of more than the 8 bits that models take (mode {image.mode})"


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has values of more than eight bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    # Pillow gives 16-bit colours the mode of 8-bit ones.
    if image.format == "TIFF":
        return max(_tag(image, _BITS, (1,))) > 8
    unpacking = str([tile[3] for tile in getattr(image, "tile", [])])
    if image.format == "PNG":
        return ";16" in unpacking
    # There it is the largest value, 65535 of 16 bits.
    return image.format == "PPM" and max(map(int, re.findall(r"\d+", unpacking)), default=0) > 255


def require_whole(image: Image.Image) -> None:
    """Refuse an opened image of which Pillow reads a part only, whatever its depth.

    Raises:
        DatasetError: naming the part and the cure.
    """
    if image.format not in FORMATS:
        raise DatasetError(
            f"the format {image.format}, of which it isn't known whether all of it would be read; "
            "save it as PNG or TIFF"
        )
    pages = _pages(image)
    if pages > 1:
        raise DatasetError(
            f"{pages} pages or frames, of which only the first would be read; save the one to use "
            "as an image of its own"
        )
    if image.format != "TIFF":
        return
    samples = _tag(image, _SAMPLES, (1,))[0]
    if samples > len(image.getbands()):
        raise DatasetError(
            f"{samples} channels, of which only {len(image.getbands())} would be read; save those "
            "to use as an image of their own"
        )
    if set(_tag(image, _SAMPLE_FORMAT, (1,))) == {2} and max(_tag(image, _BITS, (1,))) <= 8:
        raise DatasetError("signed values, which would be read as unsigned; add 128 to them")
    if _tag(image, _ORIENTATION, (1,)) != (1,):
        # Pillow turns it when it decodes it, and Detectron2 does so again.
        raise DatasetError("a TIFF that is stored turned or mirrored; save it upright")


def _tag(image: Image.Image, number: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = image.tag_v2.get(number, default)  # type: ignore[attr-defined]
    return tuple(value) if isinstance(value, tuple) else (value,)


def _pages(image: Image.Image) -> int:
    # Behind the photograph cameras store previews and depth maps.
    total = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format != "TIFF":
        return total
    pages = 0
    for number in range(total):
        image.seek(number)
        # Smaller versions of a page don't count.
        pages += not _tag(image, _KIND_OF_PAGE, (0,))[0] & 1
    image.seek(0)
    return pages


def _require_opaque(image: Image.Image) -> None:
    has_alpha = image.mode[-1:] in ("A", "a") or "transparency" in image.info
    if has_alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise DatasetError(
            "transparent in places, where it would be read with the colours below; lay it on a "
            "background"
        )


def _deep_values(image: Image.Image, content: bytes) -> npt.NDArray[Any]:
    """`(H, W)` or `(H, W, 3)` values as stored, upright."""
    if len(image.getbands()) == 1:
        return np.asarray(ImageOps.exif_transpose(image))
    if image.getexif().get(_ORIENTATION, 1) != 1:
        raise DatasetError("16-bit colours that are stored turned or mirrored; save it upright")
    # Pillow has no mode for deep colours.
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    deep = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    if deep is None or deep.ndim != 3 or deep.dtype == np.uint8:
        raise DatasetError(f"deep values that can't be read (mode {image.mode}); save it as PNG")
    if deep.shape[2] == 4:
        if deep[..., 3].min() < np.iinfo(np.uint16).max:
            raise DatasetError("transparent in places; lay it on a background")
        deep = deep[..., :3]
    return deep[..., ::-1]
