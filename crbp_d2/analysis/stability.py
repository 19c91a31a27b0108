"""Does a trained circuit settle, and does its answer stay: measures, a verdict and a figure.

Shape shorthand: N samples of the circuit (images of a contour model, RoIs of a mask head).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crbp_d2.analysis.figures import COLOURS, new_figure, save_figure, styled
from crbp_d2.analysis.observed import Observed, observe_circuit
from crbp_d2.analysis.outputs import Batch, find_recurrence
from crbp_d2.core import (
    Circuit,
    LipschitzCoefficientPenalty,
    Parts,
    PlainSteps,
    as_leaves,
    flatten,
    from_parts,
    relative_residual,
    spectral_radius,
)
from crbp_d2.core.state import select_samples
from crbp_d2.data.storage import write_json

SETTLED = 0.01
"""Largest relative change in a step of a state that counts as settled."""
KEPT = 0.01
"""Largest loss of the score, in parts of its range, of an answer that counts as kept."""


@dataclass(frozen=True)
class Dynamics:
    """How a trained circuit moves.

    Attributes:
        trained_steps: `N`.
        change: of every step from 1 to 4N, each sample's `|h_t - h_{t-1}| / |h_t|`.
        radius: each sample's spectral radius of `J` at `N`.
        lcp: mean of the Lipschitz coefficient penalty at `N`.
        agreement: each sample's intersection over union of the predicted mask at 4N from the usual
            start with that from a random one; 1 if both are empty.
        distance: each sample's `|h - h'| / |h|` of those two states.
    """

    trained_steps: int
    change: list[list[float]]
    radius: list[float]
    lcp: float
    agreement: list[float]
    distance: list[float]


def measure_dynamics(
    model: Any, batches: Iterable[Batch], *, trained_steps: int, samples: int, bound: float
) -> Dynamics:
    """Measure the circuit of a model on its first samples.

    Random starts have the values of the state at `N`, in random places: they are of the right size
    and sign, and hold no answer.

    Args:
        model: with one recurrence, in evaluation mode.
        batches: what the model takes; as many are read as `samples` needs.
        trained_steps: `N`.
        samples: of the circuit, at least 1.
        bound: `mu` of the penalty.

    Raises:
        ValueError: there is no sample, as no image was given or nothing was detected.
    """
    cell, last = find_recurrence(model).cell, 4 * trained_steps
    penalty = LipschitzCoefficientPenalty(bound=bound)
    parts: dict[str, list[Tensor]] = {
        key: [] for key in ("change", "radius", "lcp", "agreement", "distance")
    }
    found = 0
    for batch in batches:
        seen = observe_circuit(model, batch, [trained_steps, last])
        chosen = torch.arange(min(samples - found, seen.changes.shape[1]))
        if not len(chosen):
            continue
        found += len(chosen)
        circuit = seen.circuit.select(chosen)
        at_trained = select_samples(seen.states[trained_steps], chosen)
        at_last = select_samples(seen.states[last], chosen)
        parts["change"].append(seen.changes[:, chosen])
        parts["radius"].append(_radius(cell, circuit, at_trained))
        before = as_leaves(at_trained)
        with torch.enable_grad():
            value = penalty(before, circuit(before)).detach()
        parts["lcp"].append(value.expand(len(chosen)))
        other = PlainSteps()(circuit, _shuffled(at_trained), last).state
        parts["agreement"].append(_agreement(model, seen, chosen, at_last, other))
        parts["distance"].append(relative_residual(at_last, other))
        if found >= samples:
            break
    if not found:
        raise ValueError("no sample: no image was given, or nothing was detected in the images")
    joined = {key: torch.cat([v.cpu() for v in values], dim=-1) for key, values in parts.items()}
    return Dynamics(
        trained_steps=trained_steps,
        change=joined["change"].tolist(),
        radius=joined["radius"].tolist(),
        lcp=float(joined["lcp"].mean()),
        agreement=joined["agreement"].tolist(),
        distance=joined["distance"].tolist(),
    )


def radius_after(
    model: nn.Module, batch: Batch, *, steps: int, iterations: int = 50, averaged: int = 20
) -> Tensor:
    """Spectral radius of the circuit's Jacobian after some steps, `(N,)`, by power iteration.

    Args:
        model: in evaluation mode, so that its samples don't depend on each other.
        batch: what the model takes.
        steps: after which the circuit is linearised, at least 1.
        iterations, averaged: see `crbp_d2.core.spectral_radius`.
    """
    seen = observe_circuit(model, batch, [steps])
    return _radius(
        find_recurrence(model).cell,
        seen.circuit,
        seen.states[steps],
        iterations=iterations,
        averaged=averaged,
    )


def verdict(dynamics: Dynamics, scores: Mapping[int, float], name: str, scale: float) -> str:
    """One line: what the circuit does, and the numbers that say so.

    `contracting`: radius below 1, state settled and answer kept at 4N. `settled`: the last two, and
    a radius of 1 or more. `restless`: the answer stays and the state moves on. `drifting`: the
    state has settled and the answer is lost. `forgetting`: neither. `unlearned`: at `N` there is no
    answer that could stay.

    Args:
        dynamics: of `measure_dynamics`.
        scores: at least at `N` and `4N`.
        name: of the score.
        scale: its largest value, 1 or 100.
    """
    trained, last = dynamics.trained_steps, 4 * dynamics.trained_steps
    radius = statistics.mean(dynamics.radius)
    spread = statistics.stdev(dynamics.radius) if len(dynamics.radius) > 1 else 0.0
    change = statistics.mean(dynamics.change[last - 1])
    settled = change <= SETTLED
    kept = scores[last] >= scores[trained] - KEPT * scale
    if not scores[trained] > KEPT * scale:
        word = "unlearned"
    elif settled and kept:
        word = "contracting" if radius < 1 else "settled"
    elif kept:
        word = "restless"
    else:
        word = "drifting" if settled else "forgetting"
    digits = 3 if scale == 1 else 1
    # On which side of 1 it is has to be seen.
    near = 2 if abs(radius - 1) >= 0.005 else 4
    return (
        f"{word}: rho {radius:.{near}f} +- {spread:.2f}, {name} {scores[trained]:.{digits}f} -> "
        f"{scores[last]:.{digits}f} at 4N, state changes by {100 * change:.2g} % a step at 4N, "
        f"masks from random starts agree by IoU {statistics.mean(dynamics.agreement):.2f}"
    )


@styled()
def write_report(
    folder: Path, dynamics: Dynamics, scores: Mapping[int, float], name: str, scale: float
) -> str:
    """Write `stability.json`, `.png` and `.pdf` to a folder.

    Args:
        folder: made if missing.
        dynamics, scores, name, scale: see `verdict`.

    Returns:
        The verdict.
    """
    line = verdict(dynamics, scores, name, scale)
    figure, (moving, growing, scoring) = new_figure(1, 3)
    steps = range(1, len(dynamics.change) + 1)
    quartiles = torch.quantile(
        torch.tensor(dynamics.change, dtype=torch.float64).clamp(min=1e-12),
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64),
        dim=1,
    ).tolist()
    moving.fill_between(steps, quartiles[0], quartiles[2], color=COLOURS[0], alpha=0.25, lw=0)
    moving.plot(steps, quartiles[1], color=COLOURS[0], label="median and quartiles")
    moving.axhline(SETTLED, color=COLOURS[7], linestyle=":", label="settled")
    moving.axvline(dynamics.trained_steps, color=COLOURS[6], linestyle="--", label="trained for")
    moving.set(yscale="log", xlabel="step", ylabel="change of the state, $|h_t-h_{t-1}|/|h_t|$")
    moving.legend()
    growing.hist(dynamics.radius, bins="auto", color=COLOURS[2])
    growing.axvline(1, color=COLOURS[6], linestyle="--")
    growing.set(xlabel="spectral radius at the trained step", ylabel="samples")
    ordered = sorted(scores)
    scoring.plot(ordered, [scores[step] for step in ordered], color=COLOURS[1], marker="o")
    scoring.axvline(dynamics.trained_steps, color=COLOURS[6], linestyle="--")
    unit = f"{name}, %" if scale == 100 else f"{name}, 0 to 1"
    scoring.set(xlabel="step", ylabel=unit, ylim=(0, 1.06 * scale), xticks=ordered)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / "stability")
    write_json(
        folder / "stability.json",
        {"verdict": line, "score": name, "scores": dict(scores), **asdict(dynamics)},
    )
    return line


def _radius(cell: nn.Module, circuit: Circuit, parts: Parts, **options: int) -> Tensor:
    state = from_parts(parts, circuit.template)
    return spectral_radius(cell, circuit.drive, state, **options)


def _shuffled(parts: Parts) -> Parts:
    """Every sample's (of maps: every channel's) values in random places."""

    def shuffle(part: Tensor) -> Tensor:
        flat = part.flatten(start_dim=2) if part.dim() > 2 else flatten(part)
        order = torch.rand_like(flat, dtype=torch.float32).argsort(dim=-1)
        return flat.gather(-1, order).reshape(part.shape)

    return tuple(shuffle(part) for part in parts)


def _agreement(model: Any, seen: Observed, chosen: Tensor, one: Parts, other: Parts) -> Tensor:
    head = model.roi_heads.mask_head if hasattr(model, "roi_heads") else model.sem_seg_head
    with torch.no_grad():
        classes = None if seen.classes is None else seen.classes[chosen]
        masks = [_mask(head.read_out(parts), classes) for parts in (one, other)]
    both = flatten(masks[0] & masks[1]).sum(dim=1)
    either = flatten(masks[0] | masks[1]).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both / 1))


def _mask(logits: Tensor, classes: Tensor | None) -> Tensor:
    """`(N, H, W)`: of a mask head the mask of each RoI's class, else what is not background."""
    if classes is None:
        return logits.argmax(dim=1) > 0
    if logits.shape[1] == 1:
        return logits[:, 0] > 0
    return logits[torch.arange(len(logits)), classes] > 0
