"""What a Pathfinder image is made of, and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from crbp_d2.data.fields import MAX_SIDE

REFERENCE_SIZE = 300
SMALLEST_REDUCED_SIZE = 100
LONGEST_CONTOUR = 1000
"""Dashes; no canvas of the paper has room for as many."""
DISTRACTOR_DASHES = 30


@dataclass(frozen=True, kw_only=True)
class PathfinderConfig:
    """The contour segmentation of Linsley et al. (NeurIPS 2020), after the Pathfinder challenge.

    Two long contours of dashes grow side by side among shorter distractors. A white dot marks the
    free end of one of the two: the mask is that contour and its dot. All lengths are in pixels of
    the canvas, a square of `size` pixels; points are continuous, with pixel `(0, 0)` covering
    `[0, 1] x [0, 1]`.

    Attributes:
        size: side of the canvas that is drawn, at most 8192.
        contour_length: dashes in the target and in its rival, at most `LONGEST_CONTOUR`.
        distractor_length: dashes in each distractor.
        distractor_count: distractors in an image.
        dash_length, thickness: the dash, a rectangle with square ends.
        margin: clear space round a dash. The gap along a contour is `2 * margin`; the centre
            lines of all other dashes keep `thickness + 2 * margin` between them.
        continuity: the next dash turns by an angle with density `~ cos^2(continuity * angle)`
            within `+-90 / continuity` degrees.
        turns_per_dash: angles tried for a dash before its contour is given up.
        seed_distance: from the first end of the target to that of its rival.
        padding: border kept free by every dash.
        edge_keep: border kept free by the end of the contour that is grown first.
        rivals_per_contour: rivals tried beside one first contour before both are given up.
        distractor_tries: tries for a distractor before it is left out.
        marker_radius: of the dot.
        mask_threshold: share of a canvas pixel that target and dot must cover to be in the mask.
        resize_to: side of the image handed out, reduced from the canvas by Pillow's bicubic filter
            as the authors' training code does; None hands out the canvas.
        resized_mask_threshold: value (0 to 1) above which a pixel of the reduced mask counts.
    """

    contour_length: int
    distractor_length: int
    distractor_count: int
    size: int = REFERENCE_SIZE
    dash_length: float = 5.0
    thickness: float = 1.5
    margin: float = 3.0
    continuity: float = 1.8
    turns_per_dash: int = 3
    seed_distance: float = 27.0
    padding: float = 22.0
    edge_keep: float = 54.0
    rivals_per_contour: int = 30
    distractor_tries: int = 300
    marker_radius: float = 3.0
    mask_threshold: float = 0.5
    resize_to: int | None = None
    resized_mask_threshold: float = 0.2

    def __post_init__(self) -> None:
        positive = ["contour_length", "distractor_length", "size", "dash_length", "thickness"]
        positive += ["margin", "turns_per_dash", "rivals_per_contour", "distractor_tries"]
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"PathfinderConfig.{name}={getattr(self, name)} must be positive.")
        for name, most in (("contour_length", LONGEST_CONTOUR), ("size", MAX_SIDE)):
            if getattr(self, name) > most:
                raise ValueError(
                    f"PathfinderConfig.{name}={getattr(self, name)} must be at most {most}."
                )
        if self.distractor_count < 0:
            raise ValueError(
                f"PathfinderConfig.distractor_count={self.distractor_count} is below 0."
            )
        if self.continuity < 1:
            raise ValueError(f"PathfinderConfig.continuity={self.continuity} must be at least 1.")
        if not 0 <= self.marker_radius <= self.padding <= self.edge_keep < self.size / 2:
            raise ValueError(
                "PathfinderConfig needs 0 <= marker_radius <= padding <= edge_keep < size / 2, got "
                f"{self.marker_radius}, {self.padding}, {self.edge_keep} and {self.size / 2}."
            )
        if self.resize_to is not None and not 0 < self.resize_to <= self.size:
            raise ValueError(
                f"PathfinderConfig.resize_to={self.resize_to} must lie in 1..size={self.size}; "
                "for larger images draw a larger canvas with scaled()."
            )

    @property
    def image_size(self) -> int:
        """Side of the image and of the mask that are handed out."""
        return self.size if self.resize_to is None else self.resize_to

    @property
    def clearance(self) -> float:
        """Least distance between the centre lines of two dashes that do not follow each other."""
        return self.thickness + 2 * self.margin

    def scaled(self, size: int) -> PathfinderConfig:
        """The same picture on a canvas of `size` pixels: every length scaled, dashes included."""
        lengths = ["dash_length", "thickness", "margin", "seed_distance", "padding", "edge_keep"]
        lengths.append("marker_radius")
        factor = size / self.size
        changes = {name: getattr(self, name) * factor for name in lengths}
        return dataclasses.replace(self, size=size, **changes)


def standard(contour_length: int, size: int = REFERENCE_SIZE) -> PathfinderConfig:
    """Pathfinder of a contour length at an image size, by the rule of the authors' recipes.

    The distractors have a third of the contour's dashes, and 30 dashes between them. The task is
    defined at 300 pixels. Smaller images are drawn at 300 and reduced, which is what the authors
    train on (150); larger ones have every length scaled.

    Raises:
        ValueError: for a contour too short to have distractors or longer than `LONGEST_CONTOUR`,
            a size that loses the dashes or is above 8192.
    """
    if contour_length < 3:
        raise ValueError(f"contour_length={contour_length}: Pathfinder needs at least 3 dashes.")
    if size < SMALLEST_REDUCED_SIZE:
        raise ValueError(
            f"Pathfinder-{contour_length} at {size} pixels has dashes of less than 1.7 pixels; use "
            f"{SMALLEST_REDUCED_SIZE} pixels or more, or the presets 'small' (64) and 'tiny' (40)."
        )
    if size > MAX_SIDE:
        raise ValueError(f"Pathfinder at {size} pixels: images have at most {MAX_SIDE} a side.")
    distractor_length = contour_length // 3
    config = PathfinderConfig(
        contour_length=contour_length,
        distractor_length=distractor_length,
        distractor_count=DISTRACTOR_DASHES // distractor_length,
    )
    if size > REFERENCE_SIZE:
        return config.scaled(size)
    return config if size == REFERENCE_SIZE else dataclasses.replace(config, resize_to=size)


SMALL = PathfinderConfig(
    size=64,
    contour_length=6,
    distractor_length=3,
    distractor_count=3,
    dash_length=4.0,
    margin=1.25,
    seed_distance=9.0,
    padding=3.0,
    edge_keep=8.0,
    marker_radius=2.0,
    mask_threshold=0.4,
)

TINY = PathfinderConfig(
    size=40,
    contour_length=6,
    distractor_length=2,
    distractor_count=2,
    dash_length=3.0,
    margin=1.0,
    seed_distance=7.0,
    padding=2.0,
    edge_keep=6.0,
    marker_radius=1.75,
    mask_threshold=0.4,
)


def preset(name: str) -> PathfinderConfig:
    """A config by name: `"<contour length>@<image size>"` (`"14@150"`), `"small"`, `"tiny"`.

    Raises:
        ValueError: for a name of another form.
    """
    named = {"small": SMALL, "tiny": TINY}
    if name in named:
        return named[name]
    length, separator, size = name.partition("@")
    if not (separator and length.isdecimal() and size.isdecimal()):
        raise ValueError(
            f"unknown Pathfinder preset {name!r}: use '<contour length>@<image size>' such as "
            f"'14@150' (lengths of the paper: 6, 9, 14, 20, 25), or one of {sorted(named)}."
        )
    return standard(int(length), int(size))
