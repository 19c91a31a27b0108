"""Augmentations that keep image, masks and semantic map together, and which a config asks for.

Detectron2's own ones lose the holes of masks, take what lies outside the image for the first class,
or leave polygons there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.data.transforms import (
    Augmentation,
    NoOpTransform,
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomRotation,
    RandomSaturation,
    RotationTransform,
    Transform,
)
from fvcore.transforms.transform import CropTransform

from .derive import UNLABELLED
from .outlines import mask_to_polygons

# Pixels; the sines of right angles are not quite 0 and 1.
_ROUNDING = 1e-6


class PixelCrop(CropTransform):
    """A crop after which polygons cover the pixels that they covered before.

    fvcore's own one fills holes, and needs shapely.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Polygons `(N, 2)` of one object, of which the union counts."""
        right, bottom = self.x0 + self.w, self.y0 + self.h
        flat = [np.asarray(polygon, dtype=np.float64).reshape(-1).tolist() for polygon in polygons]
        encoded = mask_util.merge(mask_util.frPyObjects(flat, bottom, right))
        mask = mask_util.decode(encoded)[self.y0 :, self.x0 :]
        if not mask.any():
            return []
        return [np.array(polygon).reshape(-1, 2) for polygon in mask_to_polygons(mask)]


class RandomPixelCrop(RandomCrop):
    """Detectron2's random crop as a `PixelCrop`, with a labelled pixel at least.

    Without any, the mean of the semantic loss would be one of no pixels, which is NaN.
    """

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None = None) -> PixelCrop:
        """Args: `image` `(H, W, C)`, and `sem_seg` `(H, W)` with 255 where nothing is labelled."""
        crop = super().get_transform(image)
        x0, y0 = crop.x0, crop.y0
        if sem_seg is not None and (crop.apply_segmentation(sem_seg) == UNLABELLED).all():
            rows, columns = np.nonzero(sem_seg != UNLABELLED)
            if len(rows):
                chosen = np.random.randint(len(rows))
                y0 = _moved(y0, crop.h, rows[chosen])
                x0 = _moved(x0, crop.w, columns[chosen])
        return PixelCrop(x0, y0, crop.w, crop.h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


def _moved(start: int, length: int, inside: int) -> int:
    """The start of the nearest window of that length that has `inside` in it."""
    return int(np.clip(start, inside - length + 1, inside))


class PixelRotation(RotationTransform):
    """A turn after which no polygon goes on outside the image.

    Detectron2's leaves them there, and with them boxes and objects of which nothing is seen.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Args: `img` `(H, W)` or `(H, W, C)`; what comes from outside of it is 0."""
        turned = super().apply_image(img, interp)
        # OpenCV drops a single channel.
        return turned.reshape(*turned.shape[:2], *img.shape[2:])

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Polygons `(N, 2)` of one object, of which the union counts."""
        turned: list[np.ndarray] = super().apply_polygons(polygons)
        corner = np.array([self.bound_w, self.bound_h])
        if all(((one >= -_ROUNDING) & (one <= corner + _ROUNDING)).all() for one in turned):
            return turned
        return PixelCrop(0, 0, *corner.tolist()).apply_polygons(turned)

    def inside(self) -> np.ndarray:
        """The pixels `(height, width)` of the turned image that come from the image."""
        return self.apply_segmentation(np.ones((self.h, self.w), dtype=np.uint8)) > 0


class RandomPixelRotation(RandomRotation):
    """Detectron2's random rotation about the centre, as a `PixelRotation`.

    At right angles the whole image turns, and sides change places. At others it keeps its size and
    loses its corners, and what comes into it is labelled as nothing. An image that would lose every
    labelled pixel stays as it is: see `RandomPixelCrop`.
    """

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None = None) -> Transform:
        """Args: `image` `(H, W, C)`, and `sem_seg` `(H, W)` with 255 where nothing is labelled."""
        drawn = super().get_transform(image)
        if not isinstance(drawn, RotationTransform):
            return drawn
        right = drawn.angle % 90 == 0
        rotation = PixelRotation(drawn.h, drawn.w, drawn.angle, expand=right)
        if sem_seg is not None:
            labelled = (sem_seg != UNLABELLED).astype(np.uint8)
            if labelled.any() and not rotation.apply_segmentation(labelled).any():
                return NoOpTransform()
        return rotation

    def __call__(self, aug_input: Any) -> Transform:
        """Turn an `AugInput` in place, and mark in its semantic map what is outside the image."""
        transform = super().__call__(aug_input)
        # Not in the transform, which also turns single masks: there it is 0.
        if isinstance(transform, PixelRotation) and aug_input.sem_seg is not None:
            aug_input.sem_seg[~transform.inside()] = UNLABELLED
        return transform


class RandomOrderedSaturation(RandomSaturation):
    """Detectron2's random saturation, of images whose channels have either order.

    Its own takes them for RGB, and the weight of red for that of blue where they are not.

    Args:
        intensity_min: 0 makes an image grey, 1 leaves it as it is.
        intensity_max: above 1 colours grow stronger.
        image_format: RGB or BGR.
    """

    def __init__(self, intensity_min: float, intensity_max: float, image_format: str) -> None:
        super().__init__(intensity_min, intensity_max)
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> Transform:
        """Args: `image` `(H, W, 3)`."""
        return super().get_transform(image[..., ::-1] if self.image_format == "BGR" else image)


def more_augmentations(cfg: CfgNode) -> list[Augmentation]:
    """Those that `INPUT.RANDOM_*` add to Detectron2's, in their order; a config without these keys
    adds none."""
    keys = cfg.INPUT
    found: list[Augmentation] = []
    if keys.get("RANDOM_BRIGHTNESS"):
        found.append(RandomBrightness(*keys.RANDOM_BRIGHTNESS))
    if keys.get("RANDOM_CONTRAST"):
        found.append(RandomContrast(*keys.RANDOM_CONTRAST))
    if keys.get("RANDOM_SATURATION"):
        low, high = keys.RANDOM_SATURATION
        found.append(RandomOrderedSaturation(low, high, keys.FORMAT))
    # After the colours: what it brings into the image would count in the mean of the contrast.
    if keys.get("RANDOM_ROTATION"):
        angles = [float(angle) for angle in keys.RANDOM_ROTATION]
        found.append(RandomPixelRotation(angles, sample_style=keys.RANDOM_ROTATION_SAMPLING))
    return found
