"""What a conversion found and painted, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from ..fields import Json
from .paint import Tally

_SHOWN = 5


@dataclass
class Summary:
    """Counts over all images.

    Args:
        categories: those of the panoptic JSON.
        images: their number.
        without: of them, without any segment.
        objects: category id -> segments.
        pixels, twice, filled, unlabelled: numbers of pixels; see `Tally`.
        vanished, empty: place and class of what can't be seen; see `Tally`.
    """

    categories: list[Json]
    images: int = 0
    without: int = 0
    objects: Counter[int] = field(default_factory=Counter)
    pixels: int = 0
    twice: int = 0
    filled: int = 0
    unlabelled: int = 0
    vanished: list[tuple[str, str]] = field(default_factory=list)
    empty: list[tuple[str, str]] = field(default_factory=list)

    def add(self, tally: Tally) -> None:
        """Counts what was painted on an image."""
        self.images += 1
        self.without += not tally.segments
        self.objects.update(segment["category_id"] for segment in tally.segments)
        self.pixels += tally.pixels
        self.twice += tally.twice
        self.filled += tally.filled
        self.unlabelled += tally.unlabelled
        self.vanished += tally.vanished
        self.empty += tally.empty

    def __str__(self) -> str:
        """A table of the classes, and a line for each other count."""
        vanished = Counter(name for _, name in self.vanished)
        rows = [
            [
                category["id"],
                category["name"],
                "thing" if category["isthing"] else "stuff",
                self.objects[category["id"]],
                vanished[category["name"]],
            ]
            for category in self.categories
        ]
        lines = [
            tabulate(
                rows, headers=["id", "class", "kind", "segments", "vanished"], tablefmt="pipe"
            ),
            "",
            f"{self.images} images ({self.without} without any segment)",
            f"pixels covered twice: {self._share(self.twice)}",
            f"pixels left unlabelled: {self._share(self.unlabelled)}",
        ]
        if self.unlabelled:
            lines[-1] += (
                ": neither learned nor scored, so that models call them whatever is beside them; "
                "--fill CLASS makes them one"
            )
        if self.filled:
            lines.append(f"pixels filled: {self._share(self.filled)}")
        lines += _examples("vanished below others", self.vanished)
        lines += _examples("without a pixel, left out", self.empty)
        return "\n".join(lines)

    def _share(self, number: int) -> str:
        return f"{100 * number / max(1, self.pixels):.2f} %"


def _examples(what: str, places: Sequence[tuple[str, str]]) -> list[str]:
    if not places:
        return []
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    named = "; ".join(f"{place} ({name})" for place, name in places[:_SHOWN])
    return [f"{what}: {len(places)}: {named}{more}"]
