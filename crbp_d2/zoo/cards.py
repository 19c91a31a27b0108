"""Cards: what a model is, how it came about, and what it scores, for programs and for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from crbp_d2.core import ConfigurationError

from .addresses import PREFIX, WEIGHTS, folder_of, names

CARD = "card.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What there is to know about a model.

    Attributes:
        about: what it is, a sentence or two.
        command: of its training.
        seed: of its training.
        date: when the training ended, as 2026-11-28.
        machine: on which kind of machine, and in how many threads.
        torch: version of PyTorch that the scores were measured with.
        licence: of the weights, as SPDX has it.
        data_set: that the scores are of.
        trained_steps: `T`, the last step of the training.
        parameters: how many numbers it learned.
        scores: of the steps T/2, T, 2T and 4T, ascending: `step`, then the scores by their names,
            see `crbp_d2.analysis.steps.StepScores`; None for a kind that does not occur.
    """

    about: str
    command: str
    seed: int
    date: str
    machine: str
    torch: str
    licence: str
    data_set: str
    trained_steps: int
    parameters: int
    scores: Sequence[Mapping[str, float | None]]


def read_card(folder: Path) -> Card:
    """The card of a model.

    Args:
        folder: with `card.json`.

    Raises:
        ConfigurationError: there is none, or it can't be read.
    """
    path = folder / CARD
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return Card(**{field.name: content[field.name] for field in fields(Card)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path}: not a card of `tools/analyze.py pack` ({type(error).__name__}: {error}); "
            "pack the model anew"
        ) from error


HEAD = """# Trained weights

Made by `python -m crbp_d2.zoo > docs/zoo.md` from the cards in `crbp_d2/zoo`. These models come
with the package. Their names stand wherever a RUN or weights are asked for:

    tools/demo.py crbp://{example} --output pictures
    tools/analyze.py steps crbp://{example} --steps 1-80 --output figures
    tools/train_net.py --config-file FILE.yaml MODEL.WEIGHTS crbp://{example}

What a command writes about them goes to `--output`. *T* is the number of steps of the training.
"""


def markdown() -> str:
    """All cards, as one document."""
    cards = {name: read_card(folder_of(PREFIX + name)) for name in names()}
    lines = [HEAD.format(example=next(iter(cards)))]
    lines += ["| model | T | parameters | file | score | at T/2 | at T | at 2T | at 4T |"]
    lines += ["|---" * 9 + "|"]
    lines += [_row(name, card) for name, card in cards.items()]
    for name, card in cards.items():
        lines += ["", *_section(name, card)]
    return "\n".join(lines) + "\n"


def _row(name: str, card: Card) -> str:
    size = (folder_of(PREFIX + name) / WEIGHTS).stat().st_size
    score = list(card.scores[0])[1]
    of_step = {row["step"]: row[score] for row in card.scores}
    asked = (max(1, card.trained_steps // 2), *(card.trained_steps * n for n in (1, 2, 4)))
    cells = [f"[`{PREFIX}{name}`](#{name})", card.trained_steps, card.parameters]
    cells += [f"{size / 1000:.0f} kB", score, *(_shown(of_step[step]) for step in asked)]
    return f"| {' | '.join(map(str, cells))} |"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _section(name: str, card: Card) -> list[str]:
    heads = list(card.scores[0])
    return [
        f"## {name}",
        "",
        card.about,
        "",
        f"    {card.command}",
        "",
        f"Seed {card.seed}, {card.date}, {card.machine}, PyTorch {card.torch}. "
        f"Licence: {card.licence}. Scores on `{card.data_set}`:",
        "",
        f"| {' | '.join(head.replace('_', ' ') for head in heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(map(_shown, row.values()))} |" for row in card.scores),
    ]
