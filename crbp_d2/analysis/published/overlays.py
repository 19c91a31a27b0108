"""Published curves to lay over one's own, by name or from a table of one's own, with their source.

A table is a CSV with the columns `source`, `model`, if wanted `data set`, then `step` or `images`
(seen in training), then `F1` (0..1) or `PQ` (percent).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from crbp_d2.analysis.published import PER_STEP, SOURCE, per_step
from crbp_d2.core import ConfigurationError

PLACES = ("step", "images")
LARGEST = {"F1": 1.0, "PQ": 100.0}
"""Scores of a table, and their largest values."""


@dataclass(frozen=True)
class Overlay:
    """Curves of one score.

    Attributes:
        score: `F1` or `PQ`.
        place: what it is drawn against, of `PLACES`.
        curves: label, which names the source -> place, ascending -> score.
    """

    score: str
    place: str
    curves: Mapping[str, Mapping[int, float]]


def published_steps(text: str) -> Overlay:
    """Scores at several steps, of `NAME`, `NAME:MODEL,MODEL` or `FILE.csv`.

    Raises:
        ConfigurationError: an unknown name or model, or no table of scores by step.
    """
    if is_table(text):
        return read_table(Path(text), "step")
    name, _, models = text.partition(":")
    curves = per_step(name)
    score = "PQ" if name.startswith("panoptic") else "F1"
    chosen = chosen_models(name, models, curves)
    return Overlay(score, "step", {labelled(model): curves[model] for model in chosen})


def labelled(model: str) -> str:
    """What figures and tables call a published model: its name and source."""
    return f"{model} ({SOURCE})"


def chosen_models(name: str, models: str, known: Collection[str]) -> list[str]:
    """Those of `MODEL,MODEL`, or all.

    Args:
        name: of the scores, for the message.
        models: may be empty.
        known: of these scores.

    Raises:
        ConfigurationError: an unknown one.
    """
    chosen = models.split(",") if models else list(known)
    unknown = [model for model in chosen if model not in known]
    if unknown:
        raise ConfigurationError(
            f"no published scores of {', '.join(unknown)} in {name}; choose from {', '.join(known)}"
        )
    return chosen


def is_table(text: str) -> bool:
    """Whether a text is the path of a table."""
    return text.endswith(".csv")


def read_table(path: Path, place: str) -> Overlay:
    """The curves of a table, see above.

    Args:
        path: of the file.
        place: of `PLACES`, against which they are drawn.

    Raises:
        ConfigurationError: there is no such file, or it is another one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = csv.DictReader(io.StringIO(text, newline=""))
        columns = lines.fieldnames or ()
        (score,) = [name for name in LARGEST if name in columns] or [""]
        if not {"source", "model", place, score} <= set(columns):
            raise ValueError(f"its columns are {', '.join(columns) or 'none'}")
        curves: dict[str, dict[int, float]] = {}
        for line in lines:
            label = ", ".join(filter(None, (line["model"], line.get("data set"))))
            at, value = int(line[place]), float(line[score])
            named = line["source"] and line["model"]
            if not named or at < 0 or not 0 <= value <= LARGEST[score]:
                raise ValueError(f"line {lines.line_num}: {place} {at}, {score} {value}")
            curves.setdefault(f"{label} ({line['source']})", {})[at] = value
        if not curves:
            raise ValueError("it holds no scores")
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise ConfigurationError(
            f"--published {path}: no table of published scores ({error}); it has the columns "
            f"source, model, {place}, and F1 in 0..1 or PQ in percent. Names are "
            f"{', '.join(PER_STEP)}"
        ) from error
    return Overlay(score, place, {name: dict(sorted(one.items())) for name, one in curves.items()})
