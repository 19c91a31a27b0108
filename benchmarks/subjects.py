"""What is measured: a mask head alone, a contour model, a whole panoptic model.

Inputs and weights are random, as time and memory don't depend on them. A training step is forward
pass, backward pass and a step of SGD, so that nothing that belongs to a weight outlives it.

Shape shorthand: R regions of interest (RoIs), N images of S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import crbp_d2.modeling  # noqa: F401  registers heads and backbone
from benchmarks.variants import FEED_FORWARD, Variant, parse_variant
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError

Losses = dict[str, Tensor]
CHANNELS, RESOLUTION = 256, 14
"""Of RoI features, as in Detectron2's models."""


@dataclass(frozen=True)
class Load:
    """How much work one step is.

    Attributes:
        count: RoIs of the mask head alone, else images.
        size: of the images, pixels; without meaning for the head alone.
        regions: RoIs that the mask head of a whole model gets from each image.
    """

    count: int
    size: int
    regions: int = 32


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        build: model and a function that gives its losses (training) or predictions.
        load: by default.
        feed_forward: config of the rival that the others are compared with.
        recurrent: config of the recurrent model.
        training: labels of the variants that are measured by default; see `parse_variant`.
        inference: the same for predictions.
        plain: overrides without which a lever would be pulled.
    """

    build: Callable[[CfgNode, Load], tuple[nn.Module, Callable[[], Losses | None]]]
    load: Load
    feed_forward: str
    recurrent: str
    training: tuple[str, ...]
    inference: tuple[str, ...]
    plain: tuple[Any, ...] = ()

    def variant(self, label: str) -> Variant:
        """The variant of a label.

        Raises:
            ConfigurationError: see `parse_variant`.
        """
        return parse_variant(
            label,
            feed_forward=self.feed_forward,
            recurrent=self.recurrent,
            plain=self.plain,
        )


def build_step(
    subject: Subject, variant: Variant, configs: Path, load: Load, *, train: bool
) -> Callable[[], None]:
    """One training step, or one prediction, of a variant.

    Args:
        subject: of `SUBJECTS`.
        variant: to build.
        configs: the folder of the config files.
        load: how much.
        train: a training step; else a prediction.

    Raises:
        ConfigurationError: the variant can't be built.
    """
    cfg = read_config(str(configs / variant.config), ["MODEL.WEIGHTS", "", *variant.overrides])
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model, run = subject.build(cfg, load)
    model.to(cfg.MODEL.DEVICE).train(train)
    if not train:

        def predict() -> None:
            with torch.no_grad():
                run()

        return predict
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6)

    def learn() -> None:
        optimizer.zero_grad()
        with EventStorage():
            losses = run()
        if losses is None:
            raise ConfigurationError(f"{variant.label} gave no losses")
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
        optimizer.step()

    return learn


def mask_head(cfg: CfgNode, load: Load) -> tuple[nn.Module, Callable[[], Any]]:
    """The mask head on `(R, 256, 14, 14)` features."""
    head = build_mask_head(cfg, ShapeSpec(channels=CHANNELS, height=RESOLUTION, width=RESOLUTION))
    device = cfg.MODEL.DEVICE
    features = torch.rand(load.count, CHANNELS, RESOLUTION, RESOLUTION, device=device)
    truth = _instances(load.count, 128, cfg.MODEL.ROI_HEADS.NUM_CLASSES).to(device)
    truth.proposal_boxes = truth.gt_boxes

    def run() -> Any:
        if head.training:
            # The features have a gradient too, as they come from a backbone.
            return head(features.detach().requires_grad_(), [truth])
        found = Instances(truth.image_size, pred_classes=truth.gt_classes)
        return head(features, [found])

    return head, run


def contour_model(cfg: CfgNode, load: Load) -> tuple[nn.Module, Callable[[], Any]]:
    """The whole contour model on N grey images."""
    model = build_model(cfg)
    shape = (load.size, load.size)
    images = torch.randint(256, (load.count, 1, *shape), dtype=torch.uint8)
    masks = (torch.rand(load.count, *shape) < 0.05).long()
    records = [{"image": i, "sem_seg": m} for i, m in zip(images, masks, strict=True)]
    return model, lambda: model(records)


def panoptic_model(cfg: CfgNode, load: Load) -> tuple[nn.Module, Callable[[], Any]]:
    """The whole panoptic model on N photographs.

    Its mask head gets as many RoIs as asked for, whatever the random weights are: in training the
    true boxes and no other proposal, else the anchors that are left by the suppression of
    overlapping ones.
    """
    size = load.size
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.999]
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = max(
        load.regions, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    )
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.5
    cfg.TEST.DETECTIONS_PER_IMAGE = load.regions
    model = build_model(cfg)
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for layer in (
            model.proposal_generator.rpn_head.anchor_deltas,
            predictor.bbox_pred,
            predictor.cls_score,
        ):
            layer.weight.zero_()
        predictor.cls_score.bias[0] = 10.0
    records = [
        {
            "image": torch.randint(256, (3, size, size), dtype=torch.uint8),
            "instances": _instances(load.regions, size, cfg.MODEL.ROI_HEADS.NUM_CLASSES),
            "sem_seg": torch.randint(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (size, size)),
            "height": size,
            "width": size,
        }
        for _ in range(load.count)
    ]
    return model, lambda: model(records)


def _instances(count: int, size: int, classes: int) -> Instances:
    """Ground truth of random boxes of a fifth of the image to all of it."""
    corners = torch.rand(count, 2) * 0.6 * size
    boxes = torch.cat([corners, corners + (0.2 + 0.2 * torch.rand(count, 2)) * size], dim=1)
    return Instances(
        (size, size),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(classes, (count,)),
        gt_masks=BitMasks(torch.rand(count, size, size) > 0.5),
    )


_TRAINING = (
    FEED_FORWARD,
    "crbp 20/15, plain",
    "bptt 1",
    "bptt 3",
    "bptt 5",
    "bptt 20",
    "rbp 20/15",
    "crbp 10/7",
    "crbp 20/15, penalty on 4",
    "crbp 20/15, chunks of 1",
    "crbp 20/15, bf16",
    "crbp 20/15, compiled",
    "crbp 20/7, Anderson adjoint",
    "crbp 20/7, Anderson adjoint, bf16",
    "crbp 20/7, Anderson adjoint, bf16, compiled",
    "crbp 12/7, Anderson",
    "crbp 12/7, Anderson, bf16",
)
"""C-RBP over 20 steps with 15 Neumann terms and every lever off, its rivals, and its levers; how
near to the exact gradient the accelerated ones are is in docs/results/time.md."""
_INFERENCE = (
    FEED_FORWARD,
    "crbp 20/15, plain",
    "crbp 20/15, compiled",
    "crbp 12/7, Anderson, bf16",
    "crbp 20/15, tested at 5",
    "crbp 20/15, tested at 5, compiled",
)
_FOURIER = ("crbp 20/15, FFT", "crbp 20/7, Anderson adjoint, FFT", "bptt 6, FFT")
_PANOPTIC: dict[str, Any] = {
    "feed_forward": "R50_FPN_1x.yaml",
    "recurrent": "R50_FPN_crbp_1x.yaml",
    "training": _TRAINING,
    "inference": _INFERENCE,
}

SUBJECTS: Mapping[str, Subject] = {
    "head": Subject(mask_head, Load(count=8, size=RESOLUTION), **_PANOPTIC),
    "contour": Subject(
        contour_model,
        Load(count=2, size=64),
        feed_forward="pathfinder/feedforward_14.yaml",
        recurrent="pathfinder/hgru_14.yaml",
        training=(*_TRAINING, *_FOURIER),
        # Without a gradient, an accelerated adjoint is no other variant.
        inference=(*_INFERENCE, "crbp 20/15, FFT", "bptt 6, FFT"),
        plain=("CRBP.CELL.CONVOLUTION", "direct"),
    ),
    "model": Subject(panoptic_model, Load(count=1, size=320), **_PANOPTIC),
}
"""By name."""
