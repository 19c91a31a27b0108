"""Interleaved timing, and memory."""

from __future__ import annotations

import ctypes
import datetime
import multiprocessing
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import bytes_saved_by
from crbp_d2.analysis.timing import seconds_of
from crbp_d2.data.storage import write_json, write_whole

STATUS = Path("/proc/self/status")
FORGET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measurement:
    """One variant.

    Attributes:
        label: of the variant.
        seconds: of each round.
        ratios: of each round to the first variant in the same round.
        peak_bytes: allocated on the GPU at most; on a CPU what autograd saves for the backward
            pass, weights included. 0 for predictions on a CPU.
        resident_bytes: by which a second step raises the peak of the resident memory of a process
            of its own, on a CPU under Linux; else `None`.
    """

    label: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    resident_bytes: int | None = None


def interleave(
    steps: Mapping[str, Callable[[], None]],
    rounds: int,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Time variants in turn, A B C A B C, so that what else the machine does disturbs all alike.

    Args:
        steps: label -> what to time. The first is what the others are compared with. Each runs
            once untimed, which also measures its memory.
        rounds: at least 1.
        progress: told what is measured.
    """
    peak = {}
    for label, step in steps.items():
        progress(f"memory of {label}")
        peak[label] = peak_bytes(step)
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for number in range(rounds):
        for label, step in steps.items():
            progress(f"{label}, round {number + 1} of {rounds}")
            seconds[label].append(seconds_of(step))
    first = next(iter(seconds.values()))
    return [
        Measurement(label, values, [a / b for a, b in zip(values, first, strict=True)], peak[label])
        for label, values in seconds.items()
    ]


def peak_bytes(step: Callable[[], None]) -> int:
    """Memory of one step; see `Measurement`."""
    if torch.cuda.is_available():
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    return bytes_saved_by(step)


def resident_bytes(build: Callable[[], Callable[[], None]]) -> int | None:
    """See `Measurement`.

    Args:
        build: gives the step; called in the other process, so that it has to be picklable.
    """
    if torch.cuda.is_available() or not STATUS.is_file():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (build, torch.get_num_threads()))


def _grown(build: Callable[[], Callable[[], None]], threads: int) -> int:
    torch.set_num_threads(threads)
    step = build()
    # What is made once, such as compiled kernels, and what the build left behind, does not count.
    step()
    ctypes.CDLL(None).malloc_trim(0)
    FORGET_PEAK.write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Bytes, of a line such as `VmHWM:   123456 kB`."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """What was measured on: processor, GPU, threads, PyTorch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": processor(),
        "gpu": gpu,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(measurements: list[Measurement]) -> Iterator[str]:
    """One line a variant: median and range of the ratio, median of the seconds, memory."""
    first = measurements[0].label
    yield f"| variant | time, ratio to {first} (min-max) | seconds | memory, MB | resident, MB |"
    yield "|---|---|---|---|---|"
    for one in measurements:
        ratio = statistics.median(one.ratios)
        # Predictions save nothing for a backward pass.
        sizes = (one.peak_bytes, one.resident_bytes)
        memory = (f"{size / 1e6:.0f}" if size else "-" for size in sizes)
        yield (
            f"| {one.label} | {ratio:.2f} ({min(one.ratios):.2f}-{max(one.ratios):.2f}) "
            f"| {statistics.median(one.seconds):.3f} | {' | '.join(memory)} |"
        )


def save(output: Path, measurements: list[Measurement], about: Mapping[str, Any]) -> str:
    """Write OUTPUT.md, the table, and OUTPUT.json, all timings and what they are of.

    Args:
        output: without the ending; its folder is made.
        measurements: of `interleave`.
        about: what was measured, for the JSON file.

    Returns:
        The table.
    """
    table = "\n".join(markdown(measurements)) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output.with_name(f"{output.name}.md"), table.encode())
    content = {
        **about,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "measurements": [asdict(one) for one in measurements],
    }
    write_json(output.with_name(f"{output.name}.json"), content)
    return table
