"""Annotated images in the one form that every format is read into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

from ..fields import Json

Size = tuple[int, int]
"""Width and height in pixels, as the JSON files and Pillow have them."""


@dataclass(frozen=True)
class Category:
    """A class as a format has it.

    Args:
        name: by which classes are known; no two have the same.
        isthing: unless the user says otherwise.
        id: in the format's files, if classes have numbers there.
        color: red, green and blue from 0 to 255.
    """

    name: str
    isthing: bool = True
    id: int | None = None
    color: list[int] | None = None


@dataclass(frozen=True)
class Named:
    """Classes that an option of a format names.

    Args:
        option: of the command line.
        names: of the classes.
        stuff: whether it makes them stuff; otherwise it says nothing of their kind.
    """

    option: str
    names: Sequence[str]
    stuff: bool = False


@dataclass(frozen=True)
class Shape:
    """The pixels of an object, or of some stuff.

    Args:
        place: of it in its file, for messages.
        category: name of its class.
        mask: (height, width) bool, cropped to the pixels; 0 x 0 if there are none.
        left, top: position of the mask in the image.
        crowd: whether it may be several objects; means nothing for stuff.
        below: whether it lies below all that is not, as maps of stuff do.
    """

    place: str
    category: str
    mask: npt.NDArray[np.bool_]
    left: int = 0
    top: int = 0
    crowd: bool = False
    below: bool = False

    @classmethod
    def cut(cls, place: str, category: str, mask: npt.NDArray[Any], **more: bool) -> Shape:
        """Of a mask (height, width) of the whole image, non-zero inside."""
        inside = mask.astype(bool)
        left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
        cropped = inside[top : top + height, left : left + width]
        return cls(place, category, cropped, left, top, **more)

    @classmethod
    def encoded(cls, place: str, category: str, run_lengths: Json, **more: bool) -> Shape:
        """Of a mask of the whole image in pycocotools' run lengths."""
        return cls.cut(place, category, mask_util.decode(run_lengths), **more)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Entry:
    """An image and where its annotations are.

    Args:
        id: of the image, one of its kind.
        file_name: path in the folder of images, its folders separated by `/`.
        annotation: what the reader of the format takes.
        size: of the image, if the annotations tell it.
        told_by: the file that does.
    """

    id: int | str
    file_name: str
    annotation: Any
    size: Size | None = None
    told_by: Path | None = None


@dataclass(frozen=True)
class Annotated:
    """What a format finds in its files.

    Args:
        images: the folder that file names start from.
        categories: all classes, used or not.
        entries: the images.
        read: a picklable function from an entry's annotation and the size of its image to the
            shapes in it, later ones above earlier ones of the same size. Raises `DatasetError`.
        named: what options of the format say of the classes.
    """

    images: Path
    categories: list[Category]
    entries: list[Entry]
    read: Callable[[Any, Size], list[Shape]]
    named: Sequence[Named] = ()
