"""A mask head judged without its neighbours: the masks that it finds in the boxes of the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from crbp_d2.analysis.instances import InstanceEvaluator, instance_scores
from crbp_d2.analysis.outputs import Output, has_recurrence, observed_masks
from crbp_d2.analysis.steps import fresh_copy
from crbp_d2.data import PanopticMapper

TRUE_BOX_SCORES = ("mask_AP_true_boxes", "mask_AP75_true_boxes")


def true_mapper(cfg: CfgNode) -> PanopticMapper:
    """Images as they are tested, and their annotations as in training.

    Args:
        cfg: of a model; unchanged.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    plain.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    plain.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    plain.INPUT.RANDOM_FLIP = "none"
    plain.INPUT.CROP.ENABLED = False
    return PanopticMapper(plain, is_train=True)


def masks_in_true_boxes(
    model: Any, mapped: Output, steps: Sequence[int] | None
) -> Iterator[Instances]:
    """What a model's mask head finds in the true boxes of an image, with a score of 1.

    Args:
        model: with Detectron2's `StandardROIHeads` and a mask head, in evaluation mode.
        mapped: of `true_mapper`.
        steps: ascending; `None` of a head without recurrence.

    Yields:
        `Instances` at the size of the file for every step, or once.
    """
    truth: Instances = mapped["instances"]
    given = Instances(truth.image_size)
    given.pred_boxes = truth.gt_boxes
    given.pred_classes = truth.gt_classes
    given.scores = torch.ones(len(truth))
    given = given.to(model.device)

    def run() -> Instances:
        images = model.preprocess_image([mapped])
        (found,) = model.roi_heads.forward_with_given_boxes(model.backbone(images.tensor), [given])
        return found

    with torch.no_grad():
        if steps is None:
            masks = [run().pred_masks]
        else:
            with observed_masks(model, steps) as seen:
                run()
            masks = [seen.masks[step][0] for step in steps]
        for of_step in masks:
            # Detectron2 scales the boxes that it gets in place.
            own = Instances(given.image_size, pred_boxes=given.pred_boxes.clone())
            own.pred_classes, own.scores, own.pred_masks = given.pred_classes, given.scores, of_step
            yield detector_postprocess(own, mapped["height"], mapped["width"])


def scores_in_true_boxes(
    model: Any,
    cfg: CfgNode,
    data: str,
    steps: Sequence[int],
    *,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda records: records,
) -> list[dict[str, float]]:
    """AP of masks in the true boxes, of all objects of a data set: it judges the head alone.

    All masks have the same score, so that their order, in which COCO's AP takes them, is that of
    the data.

    Args:
        model: see `masks_in_true_boxes`.
        cfg: of the model.
        data: registered, panoptic, with things.
        steps: at least 1, ascending; of a head without recurrence all have the same scores.
        progress: wraps the images.

    Returns:
        `TRUE_BOX_SCORES` of each step, in percent.
    """
    mapper = true_mapper(cfg)
    asked = steps if has_recurrence(model) else None
    first = InstanceEvaluator(data)
    evaluators = [DatasetEvaluators([fresh_copy(first)]) for _ in (asked or (0,))]
    for record in progress(DatasetCatalog.get(data)):
        mapped = mapper(record)
        if not len(mapped["instances"]):
            continue
        found = masks_in_true_boxes(model, mapped, asked)
        for evaluator, instances in zip(evaluators, found, strict=True):
            evaluator.process([mapped], [{"instances": instances}])
    scores = []
    for evaluator in evaluators:
        found_scores = instance_scores(evaluator.evaluate() or {})
        values = found_scores["mask_AP"], found_scores["mask_AP75"]
        scores.append(dict(zip(TRUE_BOX_SCORES, values, strict=True)))
    return scores if asked else scores * len(steps)
