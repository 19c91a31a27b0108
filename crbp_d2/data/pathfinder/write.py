"""Writes drawn images to disk, in the layout that `folder` reads."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from crbp_d2.data.fields import Json
from crbp_d2.data.files import absolute
from crbp_d2.data.parallel import ordered_map
from crbp_d2.data.storage import locked, part_of, write_whole
from crbp_d2.data.validate import DatasetError, read_json
from crbp_d2.progress import tqdm

from .config import PathfinderConfig
from .draw import WHITE, encoded_png
from .folder import IMAGES, MASKS
from .generator import generate

DESCRIPTION = "pathfinder.json"
IMAGES_PER_BATCH = 1000
MOST_IMAGES = 10_000_000
"""In a folder."""
# The last chunk, which is the same in every PNG.
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def contour_name(config: PathfinderConfig) -> str:
    """The folder of a contour length, as in the original data."""
    return f"curv_contour_length_{config.contour_length}"


def _relative_path(config: PathfinderConfig, kind: str, index: int) -> Path:
    batch, sample = divmod(index, IMAGES_PER_BATCH)
    return Path(contour_name(config), kind, str(batch + 1), f"sample_{sample}.png")


def _write_sample(root: Path, config: PathfinderConfig, seed: int, index: int) -> None:
    image, mask, _ = generate(config, seed, index)
    # The image comes last: where there is one, its mask is complete.
    for kind, pixels in ((MASKS, mask * np.uint8(WHITE)), (IMAGES, image)):
        path = root / _relative_path(config, kind, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, encoded_png(pixels))


def _check_or_describe(root: Path, config: PathfinderConfig, seed: int) -> None:
    description = root / DESCRIPTION
    wanted = {"seed": seed, **asdict(config)}
    # Left by a call that was killed before it wrote an image.
    part_of(description).unlink(missing_ok=True)
    if description.is_file():
        found = _read_description(description)
        different = [
            f"{key}={found.get(key)} (asked for {wanted.get(key)})"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        ]
        if different:
            raise DatasetError(
                f"{root}: holds other images: {', '.join(different)}; choose another folder, or "
                "delete this one"
            )
    elif root.exists() and any(root.iterdir()):
        raise DatasetError(
            f"{root}: holds files but no {DESCRIPTION}, so it was not written by this tool; choose "
            "an empty folder"
        )
    else:
        root.mkdir(parents=True, exist_ok=True)
        write_whole(description, json.dumps(wanted, indent=1).encode())


def _read_description(path: Path) -> Json:
    try:
        found = read_json(path)
    except DatasetError:
        found = None
    if not isinstance(found, dict):
        raise DatasetError(
            f"{path}: damaged, so it isn't known which images lie there; delete that folder, or "
            "choose another one"
        )
    return found


def _whole_images(root: Path) -> set[str]:
    """The PNGs below `root` that are there with all their bytes, as paths from there."""
    return {str(path.relative_to(root)) for path in root.glob("*/*/*/*.png") if _is_whole(path)}


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            # The checksums of all chunks but the last.
            image.verify()
    except Exception:  # Pillow raises many kinds for broken files
        return False
    return content.endswith(_PNG_END)


def write_images(
    root: str | Path,
    config: PathfinderConfig,
    *,
    seed: int,
    count: int,
    workers: int | None = None,
) -> Path:
    """Write the first `count` images of a stream and the list file that names them.

    Files appear whole or not at all. Called again after an interruption, it writes what is missing
    or damaged; called with a larger count, it adds images.

    Args:
        root: receives `curv_contour_length_N/imgs`, `.../seg`, the list file and a description.
        workers: number of processes; see `ordered_map`.

    Returns:
        The list file, `<root>/curv_contour_length_N.txt`.

    Raises:
        ValueError: `count` is not in 1..`MOST_IMAGES`, or `seed` below 0.
        DatasetError: `root` holds images of another config or seed, or something else.
    """
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"count={count}: must be from 1 to {MOST_IMAGES}")
    if seed < 0:
        raise ValueError(f"seed={seed}: must be at least 0")
    root = absolute(root)
    with locked(root):
        _check_or_describe(root, config, seed)
        paths = [_relative_path(config, IMAGES, index) for index in range(count)]
        for part in root.glob("*/*/*/.*.png.part"):
            part.unlink()
        present = _whole_images(root)
        missing = [
            index
            for index, path in enumerate(paths)
            if not {str(path), str(_relative_path(config, MASKS, index))} <= present
        ]
        write = functools.partial(_write_sample, root, config, seed)
        written = ordered_map(write, missing, workers=workers)
        # disable=None: no bar where the output isn't a terminal.
        done = count - len(missing)
        for _ in tqdm(written, root.name, count, initial=done, unit="image", disable=None):
            pass
        listing = root / f"{contour_name(config)}.txt"
        lines = [f"{path.as_posix()} 0\n" for path in paths]
        write_whole(listing, "".join(lines).encode())
    return listing
