"""Detectron2's lazy configs build the same models, from constructors alone."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

SIDE = 64


def small(name: str):
    """The model of a lazy config with few channels and regions, and a loss at each of ten steps."""
    config = LazyConfig.load(str(CONFIGS / "lazy" / name)).model
    config.backbone.out_channels = 16
    # Frozen norms are for trained weights.
    body = config.backbone.bottom_up
    body.stem.norm, body.stages.norm, body.freeze_at = "BN", "BN", 0
    config.proposal_generator.head.in_channels = 16
    config.roi_heads.batch_size_per_image = 16
    config.roi_heads.box_head.fc_dims = [16]
    config.roi_heads.box_head.input_shape.channels = 16
    config.roi_heads.box_predictor.input_shape.channels = 16
    head = config.roi_heads.mask_head
    head.recurrence.cell.channels = head.channels = 8
    head.recurrence.steps = 4
    return config


def batch() -> list[dict[str, object]]:
    torch.manual_seed(1)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, 8:40, 16:56] = True
    instances = Instances((SIDE, SIDE))
    instances.gt_boxes = Boxes(torch.tensor([[16.0, 8.0, 56.0, 40.0]]))
    instances.gt_classes = torch.tensor([3])
    instances.gt_masks = BitMasks(mask)
    image = torch.randint(0, 255, (3, SIDE, SIDE)).float()
    sem_seg = torch.zeros(SIDE, SIDE, dtype=torch.long)
    return [{"image": image, "instances": instances, "sem_seg": sem_seg}] * 2


@pytest.mark.parametrize("name", ["R50_panoptic_crbp.py", "R50_mask_rcnn_crbp.py"])
def test_ten_iterations_of_a_lazy_model_learn(name):
    torch.manual_seed(0)
    model = instantiate(small(name)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    losses: list[dict[str, Tensor]] = []
    for iteration in range(10):
        with EventStorage(iteration):
            losses.append(model(batch()))
        optimizer.zero_grad()
        sum(losses[-1].values()).backward()
        optimizer.step()
    assert {"loss_mask", "loss_lcp"} <= set(losses[0])
    assert all(loss.isfinite() for one in losses for loss in one.values())
    assert losses[-1]["loss_mask"] < losses[0]["loss_mask"]
    assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())


def test_the_lazy_panoptic_model_is_that_of_the_yaml(load_config):
    lazy = instantiate(LazyConfig.load(str(CONFIGS / "lazy" / "R50_panoptic_crbp.py")).model)
    yaml = build_model(load_config("R50_FPN_crbp_1x.yaml"))
    shapes = [
        {name: tuple(value.shape) for name, value in model.roi_heads.mask_head.state_dict().items()}
        for model in (lazy, yaml)
    ]
    assert shapes[0] == shapes[1]
    texts = [repr(model.roi_heads.mask_head.recurrence) for model in (lazy, yaml)]
    assert texts[0] == texts[1]
    counts = [
        sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (lazy, yaml)
    ]
    assert counts[0] == counts[1] == 44_968_038
