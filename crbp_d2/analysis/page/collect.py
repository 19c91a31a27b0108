"""What trained models answer at every step to the first images of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.outputs import find_recurrence, outputs_at
from crbp_d2.analysis.page.encode import sheet
from crbp_d2.analysis.page.painters import Painter, Scene
from crbp_d2.analysis.runs import Run, load_runs, require_shared
from crbp_d2.core import ConfigurationError, NonFiniteError
from crbp_d2.evaluation.pictures import image_name, unused


@dataclass(frozen=True)
class Answers:
    """One run on one image.

    Attributes:
        picture: data URI of a sheet with the different ones among its answers.
        columns: frames a row of the sheet.
        cell: height and width of a frame's place there.
        frames: number of the frame for each step.
        score: for each step; None where there is nothing to score.
        residual: for each step the relative change of the state, of a mask head the mean over the
            RoIs; None without any.
    """

    picture: str
    columns: int
    cell: tuple[int, int]
    frames: list[int]
    score: list[float | None]
    residual: list[float | None]


@dataclass(frozen=True)
class PageImage:
    """One image, and what each run makes of it.

    Attributes:
        name: of its file, or its id; numbered where images have the same.
        size: height and width of all its pictures.
        image: data URI.
        truth: data URI.
        answers: in the order of the runs.
    """

    name: str
    size: tuple[int, int]
    image: str
    truth: str
    answers: list[Answers]


def load_recurrent_runs(
    texts: Sequence[str], overrides: Sequence[Any] = (), *, data_sets: Sequence[str] = ()
) -> list[Run]:
    """Runs with a recurrent circuit.

    Args:
        texts: see `load_run`, as are the others.

    Raises:
        ConfigurationError: one has no recurrence, or see `load_runs`.
    """
    runs = []
    for run in load_runs(texts, overrides, data_sets=data_sets):
        try:
            find_recurrence(run.model)
        except ConfigurationError as error:
            raise ConfigurationError(f"{run.label} ({run.folder}): {error}") from error
        runs.append(run)
    return runs


def shared_data_set(runs: Sequence[Run]) -> str:
    """The first data set of `DATASETS.TEST`, which all runs must share.

    Raises:
        ConfigurationError: a run has none, or they differ.
    """
    names = {run.label: run.data_set for run in runs}
    require_shared(names)
    return next(iter(names.values()))


def collect(
    runs: Sequence[Run], data_set: str, painter: Painter, steps: Sequence[int], images: int
) -> Iterator[PageImage]:
    """Run the models on the first images, one image at a time.

    Args:
        runs: of `load_recurrent_runs`.
        data_set: a registered data set.
        painter: for it.
        steps: ascending, at least 1.
        images: the most there are.

    Raises:
        ConfigurationError: data set and models don't fit together, or a state is not finite.
    """
    loaders = [scoring_batches(run.cfg, data_set, 1, num_workers=0) for run in runs]
    names: set[str] = set()
    for _, batches in zip(range(images), zip(*loaders, strict=True), strict=False):
        record = batches[0][0]
        scene = painter.scene(record)
        yield PageImage(
            name=unused(image_name(record), names),
            size=(scene.image.shape[0], scene.image.shape[1]),
            image=painter.encode_image(scene.image),
            truth=painter.encode_answers(scene.truth),
            answers=[
                _answers(run, painter, scene, batch, steps)
                for run, batch in zip(runs, batches, strict=True)
            ],
        )


def _answers(
    run: Run, painter: Painter, scene: Scene, batch: list[dict[str, Any]], steps: Sequence[int]
) -> Answers:
    number: dict[bytes, int] = {}
    different, frames, residual = [], [], []
    try:
        for one in outputs_at(run.model, batch, steps):
            key = scene.key(one.outputs[0])
            if key not in number:
                number[key] = len(number)
                different.append(scene.answer(one.outputs[0]))
            frames.append(number[key])
            residual.append(_number(float(one.change.mean())))
    except NonFiniteError as error:
        raise ConfigurationError(f"{run.label}: {error}; give fewer --steps") from error
    whole = sheet([picture for picture, _ in different])
    return Answers(
        picture=painter.encode_answers(whole.picture),
        columns=whole.columns,
        cell=whole.cell,
        frames=frames,
        score=[_number(different[frame][1]) for frame in frames],
        residual=residual,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
