"""Mask heads alone, trained on cached RoI features: minutes a run, and every region is measured.

Shape shorthand: R regions of interest (RoIs), C channels, S the size of their features.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import crbp_d2.modeling  # noqa: F401  registers the recurrent mask head
from benchmarks.kept import kept, require_trained
from benchmarks.memory import bytes_saved_by
from benchmarks.roi_features import RoIs
from crbp_d2.analysis.arms import Arm, read_arms, read_outcome, read_yaml, require_keys
from crbp_d2.analysis.forms import AtSteps, Spread
from crbp_d2.analysis.outputs import change_since, has_recurrence
from crbp_d2.analysis.steps import asked_steps
from crbp_d2.config import final_node, read_config
from crbp_d2.core import Parts, from_parts, spectral_radius
from crbp_d2.data.storage import write_json

SHARES = (0.85, 0.9)
"""The share of RoIs whose mask is found better than this, by intersection over union."""
MULTIPLES = ("T/2", "T", "2T", "4T")
KINDS = ("touching", "elongated")
CHUNK = 64
"""RoIs that are measured at a time."""
ELONGATED = 1.75
"""Length by width from which on an object counts as elongated."""


@dataclass(frozen=True)
class Bench:
    """What is compared, and how all of it is trained.

    Attributes:
        iterations: of training.
        batch: RoIs an iteration.
        learning_rate: of AdamW; it falls to zero along a cosine.
        arms: by label.
    """

    iterations: int
    batch: int
    learning_rate: float
    arms: Mapping[str, Arm]


def read_bench(path: Path) -> Bench:
    """The bench that a YAML file describes: see `benchmarks/mask_heads.yaml`.

    Raises:
        ConfigurationError: there is no such file, or it has another form.
    """
    content = read_yaml(path)
    needed = {"iterations": int, "batch": int, "learning_rate": float, "arms": dict}
    require_keys(content, needed, str(path), optional={"set": dict})
    arms = read_arms(content["arms"], path, common=content.get("set", {}))
    return Bench(content["iterations"], content["batch"], content["learning_rate"], arms)


@dataclass(frozen=True)
class HeadOutcome:
    """One trained head.

    Attributes:
        label: of its arm.
        seed: of weights and of the order of the RoIs.
        settings: config and overrides of its arm, and how it was trained.
        iou: mean intersection over union at T/2, T, 2T and 4T steps, 0..1; of a head without
            recurrence four times the same.
        shares: threshold of `SHARES` -> part of the RoIs above it, likewise.
        kinds: mean intersection over union at T of `touching` and of `elongated` objects alone.
        change: mean relative change of the state in the step 4T; `None` without recurrence.
        radius: median, 99th percentile and largest spectral radius at T over all RoIs; likewise.
        milliseconds: of an iteration, median.
        saved_bytes: see `bytes_saved_by`, of one training step.
        parameters: of the head.
    """

    label: str
    seed: int
    settings: dict[str, Any]
    iou: AtSteps
    shares: dict[str, AtSteps]
    kinds: dict[str, float]
    change: float | None
    radius: Spread | None
    milliseconds: float
    saved_bytes: int
    parameters: int


@dataclass(frozen=True)
class TrainedHead:
    """A head and what its training cost.

    Attributes:
        head: in evaluation mode.
        milliseconds, saved_bytes: see `HeadOutcome`.
    """

    head: nn.Module
    milliseconds: float
    saved_bytes: int


def trained_head(
    arm: Arm,
    bench: Bench,
    rois: RoIs,
    *,
    num_classes: int,
    seed: int,
    folder: Path,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> TrainedHead:
    """Train a head; read it from `folder` if that was done before.

    Args:
        arm: its config is that of a whole model, of which the mask head is built.
        bench: how it is trained.
        rois: to learn from.
        num_classes: of things.
        seed: see `HeadOutcome`.
        folder: where trained heads are kept.
        progress: wraps the iterations.
    """
    cfg = read_config(str(arm.config), [*arm.opts, "MODEL.WEIGHTS", ""])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    # Phases begin at fractions of it.
    cfg.SOLVER.MAX_ITER = bench.iterations
    torch.manual_seed(seed)
    size = rois.features.shape[-1]
    head = build_mask_head(cfg, ShapeSpec(channels=rois.features.shape[1], height=size, width=size))
    settings = [cfg.dump(), bench.batch, bench.learning_rate, seed, rois.digest()]

    def train() -> dict[str, Any]:
        milliseconds, saved = _train(head, bench, rois, seed, progress)
        return dict(model=head.state_dict(), milliseconds=milliseconds, saved_bytes=saved)

    require = partial(require_trained, head, ("milliseconds", "saved_bytes"))
    found = kept(folder, "mask_head", settings, train, require)
    head.load_state_dict(found["model"])
    return TrainedHead(head.eval(), found["milliseconds"], found["saved_bytes"])


def _train(
    head: nn.Module,
    bench: Bench,
    rois: RoIs,
    seed: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> tuple[float, int]:
    """The median milliseconds of an iteration, and the bytes that one step saves."""
    head.train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=bench.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, bench.iterations)
    random = torch.Generator().manual_seed(seed)
    seconds: list[float] = []
    saved = 0
    with EventStorage() as storage:
        for iteration in progress(range(bench.iterations)):
            storage.iter = iteration
            batch = rois.select(torch.randint(len(rois), (bench.batch,), generator=random))
            # Detectron2 draws nothing here, but penalties and numbers of steps are drawn.
            torch.manual_seed(seed + 1_000_003 * iteration)
            begin = time.perf_counter()

            kept: list[Tensor] = []
            step = partial(_forward, head, batch, kept)
            if iteration == bench.iterations - 1:
                saved = bytes_saved_by(step)
            else:
                step()
            (loss,) = kept
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds), saved


def _forward(head: nn.Module, rois: RoIs, kept: list[Tensor]) -> None:
    # The features have a gradient, too, as they come from a backbone.
    found = head(rois.features.requires_grad_(), [_truth(rois)])
    kept.append(torch.stack([loss.sum() for loss in found.values()]).sum())


def _truth(rois: RoIs) -> Instances:
    """The masks as Detectron2's loss wants them: of boxes that are what was cut out."""
    side = rois.masks.shape[-1]
    count = len(rois)
    truth = Instances((side, side))
    truth.gt_classes = rois.classes
    # One mask an instance, in its own box.
    truth.gt_masks = BitMasks(rois.masks)
    truth.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, side, side]]).repeat(count, 1))
    return truth


@dataclass(frozen=True)
class Measured:
    """What a head finds: see `HeadOutcome`."""

    iou: list[float]
    shares: dict[str, list[float]]
    kinds: dict[str, float]
    change: float | None = None
    radius: list[float] | None = None


def measure_head(head: Any, rois: RoIs, steps: int | None) -> Measured:
    """Scores and dynamics of a head.

    Args:
        head: in evaluation mode.
        rois: to score on, all of them.
        steps: `T`; `None` of a head without recurrence.
    """
    if steps is None:
        overlaps = [
            torch.cat([_overlap(head.layers(part.features), part) for part in _parts(rois)])
        ]
        return _scored(overlaps * len(MULTIPLES), rois)
    wanted = asked_steps(steps)
    found: dict[int, list[Tensor]] = {step: [] for step in wanted}
    changes, radii = [], []
    for part in _parts(rois):
        seen = _Seen(wanted)
        recurrence = head.recurrence
        with torch.no_grad():
            drive = head.entry(part.features)
            recurrence(drive, steps=wanted[-1], observe=seen)
            for step in set(wanted):
                found[step].append(_overlap(head.read_out(seen.states[step]), part))
        changes.append(seen.change)
        state = from_parts(seen.states[steps], recurrence.circuit(drive).template)
        radii.append(spectral_radius(recurrence.cell, drive, state, iterations=40, averaged=15))
    radius = torch.cat(radii)
    quantiles = [radius.median(), radius.quantile(0.99), radius.max()]
    return replace(
        _scored([torch.cat(found[step]) for step in wanted], rois),
        change=float(torch.cat(changes).mean()),
        radius=[float(one) for one in quantiles],
    )


def _parts(rois: RoIs) -> Iterator[RoIs]:
    for begin in range(0, len(rois), CHUNK):
        yield rois.select(torch.arange(begin, min(begin + CHUNK, len(rois))))


class _Seen:
    """An observer that keeps the states of some steps, and how the last one moved."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.states: dict[int, Parts] = {}
        self.change = torch.empty(0)
        self._steps = set(steps)
        self._previous: Parts = ()

    def __call__(self, step: int, parts: Parts) -> None:
        if step in self._steps:
            self.states[step] = parts
            self.change = change_since(self._previous, parts)
        self._previous = parts


def _overlap(logits: Tensor, rois: RoIs) -> Tensor:
    """Intersection over union of the masks of each RoI's class, `(R,)`; 1 where both are empty."""
    with torch.no_grad():
        index = torch.zeros_like(rois.classes) if logits.shape[1] == 1 else rois.classes
        found = logits[torch.arange(len(rois)), index] > 0
    both = (found & rois.masks).flatten(1).sum(dim=1)
    either = (found | rois.masks).flatten(1).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones(len(rois)))


def _scored(overlaps: Sequence[Tensor], rois: RoIs) -> Measured:
    shares = {
        f"{bound:g}": [float((one > bound).float().mean()) for one in overlaps] for bound in SHARES
    }
    kinds = dict(zip(KINDS, (rois.touching, rois.elongation > ELONGATED), strict=True))
    return Measured(
        iou=[float(one.mean()) for one in overlaps],
        shares=shares,
        # Of no object of a kind it is NaN.
        kinds={name: float(overlaps[1][chosen].mean()) for name, chosen in kinds.items()},
    )


def outcome_of(
    arm: Arm,
    bench: Bench,
    rois: tuple[RoIs, RoIs],
    *,
    num_classes: int,
    seed: int,
    folder: Path,
    heads: Path,
    conditions: Mapping[str, Any],
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> HeadOutcome:
    """Train and measure one arm with one seed; read from `folder` if that was done before.

    Args:
        arm, bench, num_classes, seed, progress: see `trained_head`.
        rois: to learn from, and to score on.
        conditions: what else tells these RoIs from others.
        folder: of the outcomes.
        heads: folder where trained heads are kept, as other outcomes may be theirs, too.

    Raises:
        ConfigurationError: what the folder holds was trained otherwise.
    """
    path = arm.folder(folder, seed).with_suffix(".json")
    settings = {
        **arm.settings(),
        **{"iterations": bench.iterations, "batch": bench.batch},
        **{"learning_rate": bench.learning_rate, "rois": [len(one) for one in rois]},
        **conditions,
    }
    if path.is_file():
        names = {"shares": [f"{bound:g}" for bound in SHARES], "kinds": KINDS}
        return read_outcome(path, HeadOutcome, settings, label=arm.label, seed=seed, names=names)
    learning, scoring = rois
    trained = trained_head(
        arm, bench, learning, num_classes=num_classes, seed=seed, folder=heads, progress=progress
    )
    recurrent = has_recurrence(trained.head)
    cfg = read_config(str(arm.config), arm.opts)
    steps = final_node(cfg.CRBP).SOLVER.STEPS if recurrent else None
    # Power iterations start at random.
    torch.manual_seed(seed)
    measured = measure_head(trained.head, scoring, steps)
    outcome = HeadOutcome(
        label=arm.label,
        seed=seed,
        settings=settings,
        **asdict(measured),
        milliseconds=trained.milliseconds,
        saved_bytes=trained.saved_bytes,
        parameters=sum(p.numel() for p in trained.head.parameters()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(outcome))
    return outcome


def markdown(bench: Bench, outcomes: Sequence[HeadOutcome]) -> Iterator[str]:
    """One line an arm: means over the seeds, with the range of the IoU at T."""
    shares = " | ".join(f"> {bound:g}" for bound in SHARES)
    yield (
        f"| head | IoU at T/2 | at T (min-max) | 2T | 4T | {shares} | touching | elongated "
        "| change at 4T "
        "| radius: median, 99 %, largest | ms | MB | parameters | seeds |"
    )
    yield "|---" * (13 + len(SHARES)) + "|"
    for label in bench.arms:
        runs = sorted((one for one in outcomes if one.label == label), key=lambda one: one.seed)
        if not runs:
            continue
        iou = [statistics.mean(values) for values in zip(*(run.iou for run in runs), strict=True)]
        at_t = [run.iou[1] for run in runs]
        cells = [f"{value:.4f}" for value in iou]
        cells[1] += f" ({min(at_t):.4f}-{max(at_t):.4f})"
        for bound in SHARES:
            cells.append(f"{statistics.mean(run.shares[f'{bound:g}'][1] for run in runs):.3f}")
        for kind in KINDS:
            cells.append(f"{statistics.mean(run.kinds[kind] for run in runs):.4f}")
        changes = [run.change for run in runs if run.change is not None]
        cells.append(f"{statistics.mean(changes):.5f}" if changes else "-")
        radii = [run.radius for run in runs if run.radius is not None]
        # The largest of all seeds, as one RoI that does not settle is one too many.
        found = [
            statistics.median(one[0] for one in radii) if radii else math.nan,
            *(max((one[place] for one in radii), default=math.nan) for place in (1, 2)),
        ]
        cells.append(", ".join(f"{one:.2f}" for one in found) if radii else "-")
        cells.append(f"{statistics.median(run.milliseconds for run in runs):.0f}")
        cells.append(f"{statistics.median(run.saved_bytes for run in runs) / 1e6:.0f}")
        cells.append(f"{runs[0].parameters:,}")
        cells.append(", ".join(str(run.seed) for run in runs))
        yield f"| {label} | " + " | ".join(cells) + " |"
