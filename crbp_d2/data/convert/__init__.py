"""Converting: annotations in other formats become data sets in COCO's panoptic format."""

from .classes import Choices
from .formats import FORMATS, Format, convert_format
from .scene import Annotated, Category, Entry, Named, Shape
from .summary import Summary
from .write import convert

__all__ = [
    "FORMATS",
    "Annotated",
    "Category",
    "Choices",
    "Entry",
    "Format",
    "Named",
    "Shape",
    "Summary",
    "convert",
    "convert_format",
]
