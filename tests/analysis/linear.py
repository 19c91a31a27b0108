"""A contour model whose circuit is linear: states, radius and scores are known in closed form.

`h_t = x + a h_{t-1}` from zero gives `h_t = x (1 - a^t) / (1 - a)`.
"""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor
from torch import nn

from crbp_d2.core import build_recurrence
from crbp_d2.modeling.sem_seg_head import ContourReadout, RecurrentSemSegHead


class ScalarCell(nn.Module):
    """`F(x, h) = x + a h`, so `J = a I`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, drive, state):
        return drive + self.factor * state


class Colours(Backbone):
    """The image itself, its channels the features."""

    def forward(self, image):
        return {"stem": image.double()}

    def output_shape(self):
        return {"stem": ShapeSpec(channels=3, stride=1)}


def linear_model(factor: float, steps: int) -> SemanticSegmentor:
    """Marks a pixel once channel 0 of its state exceeds 3, in evaluation mode."""
    readout = ContourReadout(channels=3, num_classes=2, norm="", prior=0.1)
    with torch.no_grad():
        readout.predictor.weight.zero_()
        readout.predictor.weight[1, 0] = 1.0
        readout.predictor.bias.copy_(torch.tensor([3.0, 0.0]))
    head = RecurrentSemSegHead(
        in_feature="stem",
        recurrence=build_recurrence("jfb", ScalarCell(factor), steps=steps),
        readout=readout.double(),
    )
    model = SemanticSegmentor(
        backbone=Colours(), sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    return model.eval()


def state_factor(factor: float, step: int) -> float:
    """`h_t / x`."""
    return step if factor == 1 else (1 - factor**step) / (1 - factor)


def images(count: int, *, size: int = 6, seed: int = 0) -> list[dict]:
    """Records with an image of three channels in (0, 1] and a mask."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for number in range(count):
        image = torch.rand(3, size, size, generator=generator) * 0.9 + 0.1
        records.append({"image": image, "sem_seg": (image[0] > 0.5).long(), "image_id": number})
    return records
