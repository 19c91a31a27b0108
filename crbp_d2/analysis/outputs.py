"""What a model answers at every step, and the states behind it, in one run of its circuit.

Shape shorthand: N samples of the circuit (images of a contour model, RoIs of a mask head).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import PanopticFPN, SemanticSegmentor
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError, Parts, PlainSteps, Recurrence, relative_residual

Batch = list[dict[str, Any]]
Output = dict[str, Any]


@dataclass(frozen=True)
class StepOutput:
    """One step of a model on one batch.

    Attributes:
        step: 1, 2, ...
        outputs: for each image what the model itself returns after that many steps.
        change: `|h_t - h_{t-1}| / |h_t|`, `(N,)`; the start counts as zero.
    """

    step: int
    outputs: list[Output]
    change: Tensor


def find_recurrence(model: nn.Module) -> Recurrence:
    """The one recurrence of a model.

    Raises:
        ConfigurationError: it has none, or several.
    """
    found = [module for module in model.modules() if isinstance(module, Recurrence)]
    if len(found) != 1:
        raise ConfigurationError(
            f"{type(model).__name__} has {len(found)} recurrent circuits, but one is needed: this "
            "is about models with RecurrentSemSegHead or RecurrentMaskHead"
        )
    return found[0]


def has_recurrence(model: nn.Module) -> bool:
    """Whether a model has a recurrence, or several."""
    return any(isinstance(module, Recurrence) for module in model.modules())


def outputs_at(model: Any, batch: Batch, steps: Sequence[int]) -> Iterator[StepOutput]:
    """The answers of a model at several steps. Backbone, proposals and boxes are computed once, and
    the circuit runs once, to the last of the steps; where the state of a step depends on how many
    are to follow (`runs_agree`), all is run anew for each of them.

    Args:
        model: Detectron2's `SemanticSegmentor` or `PanopticFPN` with a recurrent head, in
            evaluation mode.
        batch: what the model takes.
        steps: at least 1, in any order.

    Yields:
        One entry a step, ascending. No two share anything that can be changed. They are made as
        they are asked for: of all steps only the masks at the resolution of the head are held at
        once.

    Raises:
        ConfigurationError: a step below 1, or a model of another kind.
    """
    wanted = sorted(set(steps))
    if not wanted or wanted[0] < 1:
        raise ConfigurationError(f"steps must be at least 1, got {list(steps)}")
    if isinstance(model, PanopticFPN):
        answer = _panoptic
    elif isinstance(model, SemanticSegmentor):
        answer = _semantic
    else:
        raise ConfigurationError(
            f"{type(model).__name__}: only SemanticSegmentor and PanopticFPN are supported"
        )
    alike = runs_agree(find_recurrence(model))
    for together in [wanted] if alike else [[step] for step in wanted]:
        yield from answer(model, batch, together)


def runs_agree(recurrence: Recurrence) -> bool:
    """Whether runs of different lengths have the same states at the steps that they share.

    Not where only the last steps keep their precision, or where samples stop once they have settled
    (all take a last step), and not for sure where a solver chooses the states.
    """
    solver = recurrence.solver
    return (
        isinstance(solver, PlainSteps)
        and solver.precision == "full"
        and solver.test_tolerance is None
    )


def change_since(previous: Parts, parts: Parts) -> Tensor:
    """`|h_t - h_{t-1}| / |h_t|`, `(N,)`, of the parts of two steps; without `previous`, at the
    first step, the start counts as zero."""
    return relative_residual(parts, previous or tuple(torch.zeros_like(part) for part in parts))


class _ReadOut:
    """An observer that keeps what a head reads out of chosen steps, and how the state moved."""

    def __init__(self, head: Any, steps: Sequence[int]) -> None:
        self.logits: dict[int, Tensor] = {}
        self.change: dict[int, Tensor] = {}
        self._head, self._steps = head, set(steps)
        self._previous: Parts = ()

    def __call__(self, step: int, parts: Parts) -> None:
        if step in self._steps:
            self.change[step] = change_since(self._previous, parts)
            self.keep(step, self._head.read_out(parts))
        self._previous = parts

    def keep(self, step: int, logits: Tensor) -> None:
        self.logits[step] = logits


def _semantic(model: Any, batch: Batch, steps: Sequence[int]) -> Iterator[StepOutput]:
    seen = _ReadOut(model.sem_seg_head, steps)
    with torch.no_grad(), find_recurrence(model).observing(seen, steps=steps[-1]):
        model(batch)
    for step in steps:
        outputs = [
            {"sem_seg": sem_seg_postprocess(logits, _size(record), *_output_size(record))}
            for logits, record in zip(seen.logits.pop(step), batch, strict=True)
        ]
        yield StepOutput(step, outputs, seen.change[step])


class MasksOfSteps(_ReadOut):
    """An observer of a mask head's circuit, which keeps of each RoI the mask of its class alone.

    Whose masks they are is known only inside the model's own run: a hook on the head.

    Attributes:
        masks: step -> of each image `pred_masks` as Detectron2's heads give them.
        change: step -> how the state moved in it, `(N,)`.
    """

    def __init__(self, head: Any, steps: Sequence[int]) -> None:
        super().__init__(head, steps)
        self.masks: dict[int, list[Tensor]] = {}
        self._instances: list[Instances] = []

    def enter(self, _head: nn.Module, inputs: tuple[Tensor, list[Instances]]) -> None:
        self._instances = inputs[1]

    def keep(self, step: int, logits: Tensor) -> None:
        copies = [Instances(one.image_size, **one.get_fields()) for one in self._instances]
        mask_rcnn_inference(logits, copies)
        self.masks[step] = [one.pred_masks for one in copies]


@contextmanager
def observed_masks(model: Any, steps: Sequence[int]) -> Iterator[MasksOfSteps]:
    """Within the block the circuit of a mask head runs to the last of the steps, and the masks of
    all of them are kept.

    Args:
        model: with a `RecurrentMaskHead`, in evaluation mode.
        steps: ascending.
    """
    head = model.roi_heads.mask_head
    seen = MasksOfSteps(head, steps)
    handle = head.register_forward_pre_hook(seen.enter)
    try:
        with torch.no_grad(), find_recurrence(model).observing(seen, steps=steps[-1]):
            yield seen
    finally:
        handle.remove()


def _panoptic(model: Any, batch: Batch, steps: Sequence[int]) -> Iterator[StepOutput]:
    with observed_masks(model, steps) as seen:
        detections, semantics = model.inference(batch, do_postprocess=False)
    stuff = [
        sem_seg_postprocess(logits, _size(record), *_output_size(record))
        for logits, record in zip(semantics, batch, strict=True)
    ]
    for step in steps:
        outputs = [
            combined(model, record, found, masks, semantic)
            for record, found, masks, semantic in zip(
                batch, detections, seen.masks.pop(step), stuff, strict=True
            )
        ]
        yield StepOutput(step, outputs, seen.change[step])


def combined(
    model: Any, record: Output, found: Instances, masks: Tensor, semantic: Tensor
) -> Output:
    """What a `PanopticFPN` returns of one image, given its parts.

    Args:
        model: whose thresholds count.
        record: what the model takes of the image.
        found: detections, which stay as they are.
        masks: of these, `(N, 1, S, S)` probabilities.
        semantic: `(K, H, W)` logits at the size of the answer.
    """
    # All steps have the same detections, and Detectron2 scales the boxes of those it gets in place.
    own = copy.deepcopy(found)
    own.pred_masks = masks
    instances = detector_postprocess(own, *_output_size(record))
    panoptic = combine_semantic_and_instance_outputs(
        instances,
        semantic.argmax(dim=0),
        model.combine_overlap_thresh,
        model.combine_stuff_area_thresh,
        model.combine_instances_score_thresh,
    )
    return {"sem_seg": semantic.clone(), "instances": instances, "panoptic_seg": panoptic}


def _size(record: Output) -> tuple[int, int]:
    height, width = record["image"].shape[-2:]
    return height, width


def _output_size(record: Output) -> tuple[int, int]:
    height, width = _size(record)
    return record.get("height", height), record.get("width", width)
