"""Speed of the generator and mean size of its targets, beside the published figures."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass

import cv2
import numpy as np
import PIL

from benchmarks.measure import processor
from crbp_d2.data.pathfinder import generate, preset

PRESETS = ["14@300", "20@300", "25@300", "14@150", "20@150", "25@150", "6@150", "9@150"]
PRESETS += ["small", "tiny"]

# Mean target pixels: of the public generator (thickness 1.5, dot 3; 12 to 30 images) and of the
# authors' data, recovered from their logs.
PUBLIC_GENERATOR = {
    "14@300": 130.8,
    "20@300": 179.2,
    "25@300": 216.3,
    "14@150": 64.9,
    "20@150": 90.8,
    "25@150": 113.4,
}
AUTHORS_LOGS = {"14@150": 66.2, "20@150": 92.0, "25@150": 113.7}


@dataclass(frozen=True)
class Measurement:
    """Medians over repeats of the images drawn a second, and the targets of all images.

    Attributes:
        per_second: by the clock on the wall.
        per_cpu_second: by the CPU time of this process, which others on the machine disturb less.
        target_pixels: mean of the mask.
        standard_error: of that mean.
    """

    per_second: float
    per_cpu_second: float
    target_pixels: float
    standard_error: float


def measure(name: str, *, images: int, repeats: int, seed: int = 0) -> Measurement:
    """Draw `images` images of a preset `repeats` times over, fresh ones each time."""
    config = preset(name)
    generate(config, seed, images * repeats)  # fills the tables
    rates, cpu_rates, pixels = [], [], []
    for repeat in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        for index in range(repeat * images, (repeat + 1) * images):
            pixels.append(int(np.count_nonzero(generate(config, seed, index)[1])))
        rates.append(images / (time.perf_counter() - wall))
        cpu_rates.append(images / (time.process_time() - cpu))
    error = statistics.stdev(pixels) / len(pixels) ** 0.5
    return Measurement(
        statistics.median(rates), statistics.median(cpu_rates), statistics.mean(pixels), error
    )


def machine() -> str:
    """The processor and the versions that matter for the speed, on one line."""
    return (
        f"{processor()}; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}"
    )


def report(presets: list[str], *, images: int = 200, repeats: int = 5) -> str:
    """A table of one line a preset, drawn on one core."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        measured = {name: measure(name, images=images, repeats=repeats) for name in presets}
    finally:
        cv2.setNumThreads(threads)
    lines = [
        f"{machine()}; one core, medians of {repeats} x {images} images",
        "preset    images/s  per CPU s  target pixels   public generator   authors' logs",
    ]
    for name, result in measured.items():
        target = f"{result.target_pixels:6.1f} +- {result.standard_error:.1f}"
        published = [
            f"{values[name]:6.1f} ({result.target_pixels / values[name] - 1:+.1%})"
            if name in values
            else "-"
            for values in (PUBLIC_GENERATOR, AUTHORS_LOGS)
        ]
        lines.append(
            f"{name:8}  {result.per_second:8.0f}  {result.per_cpu_second:9.0f}  {target:>13}   "
            f"{published[0]:>16}  {published[1]:>14}"
        )
    return "\n".join(lines)
