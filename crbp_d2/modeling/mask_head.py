"""The recurrent mask head.

Shape shorthand: R regions of interest (RoIs), C channels, K classes. Logits throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import (
    BaseMaskRCNNHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from crbp_d2.core import ConfigurationError, Recurrence, State, to_parts
from crbp_d2.modeling import build
from crbp_d2.modeling.dynamics import DynamicsLog
from crbp_d2.modeling.phases import Phase, Phases, Recipe


@ROI_MASK_HEAD_REGISTRY.register()
class RecurrentMaskHead(BaseMaskRCNNHead):
    """A recurrent circuit in place of Mask R-CNN's four convolutions (method of Linsley et al.
    2020).

        features -> [entry] -> T steps of the circuit -> norm -> deconvolution x2 -> ReLU
                 -> 1x1 predictor

    The entry is of 3x3 convolutions with rectification, which give the circuit a drive of its own:
    with one a circuit that settles learns more, and settles sooner. Without, the published model,
    it is a 1x1 convolution where the widths differ, and nothing where they don't.

    Deconvolution and predictor have the names and shapes of Detectron2's own head, so its
    checkpoints fill them.

    Args:
        input_shape: of the RoI features; only `channels` is read.
        recurrence: the circuit with its learning algorithm.
        channels: `C` of the circuit's state.
        num_classes: `K`, 1 if masks don't depend on the class.
        entry_convs: 3x3 convolutions of the entry.
        entry_norm: of those convolutions, one of Detectron2's; `""` for a bias instead.
        deconv_channels: between deconvolution and predictor.
        output_norm: see `crbp_d2.modeling.build.output_norm`.
        loss_weight: factor of `loss_mask` and `loss_early`.
        chunk_samples: compute at most this many regions at a time; `None` for all at once.
        every_step: `loss_mask` is the mean over all recorded steps.
        early_loss_weight: further factor of `loss_early`.
        early_from: see `crbp_d2.core.EarlyState`; `None` for no such loss.
        earlier: phases of training before the one that the other arguments describe.
        vis_period: iterations between pictures of masks in the event storage, 0 for none.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        recurrence: Recurrence,
        channels: int,
        num_classes: int,
        entry_convs: int = 0,
        entry_norm: str = "",
        deconv_channels: int = 256,
        output_norm: str = "GN",
        loss_weight: float = 1.0,
        chunk_samples: int | None = None,
        every_step: bool = False,
        early_loss_weight: float = 0.0,
        early_from: float | None = None,
        earlier: Sequence[Phase] = (),
        vis_period: int = 0,
    ) -> None:
        super().__init__(loss_weight=loss_weight, vis_period=vis_period)
        self.entry = _entry(input_shape.channels, channels, entry_convs, entry_norm)
        self.recurrence = recurrence
        self.recipe = Recipe(
            recurrence,
            chunk_samples=chunk_samples,
            every_step=every_step,
            early_loss_weight=early_loss_weight,
            early_from=early_from,
        )
        self.phases = Phases(earlier, self.recipe)
        self.output_norm = build.output_norm(output_norm, channels)
        self.deconv = ConvTranspose2d(channels, deconv_channels, kernel_size=2, stride=2)
        self.predictor = Conv2d(deconv_channels, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.deconv)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)
        self.dynamics = DynamicsLog()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            **build.head_options(cfg.CRBP, cfg.SOLVER.MAX_ITER),
            "channels": cfg.CRBP.CELL.CHANNELS,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "entry_convs": head.ENTRY_CONVS,
            "entry_norm": head.NORM,
            "deconv_channels": head.CONV_DIM,
            "output_norm": head.OUTPUT_NORM,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """Losses in training, else the instances with their masks.

        Args:
            x: RoI features, `(R, channels, S, S)`.
            instances: per image, with R regions in all. In training the foreground proposals with
                their ground truth, else the predicted boxes.

        Returns:
            In training `loss_mask`, `loss_early` where asked for, and `loss_<penalty>` for every
            penalty; also without any region they are connected to all parameters, as distributed
            training needs. Else `instances`
            with `pred_masks`, `(r, 1, 2S, 2S)` probabilities.
        """
        if not self.training:
            mask_rcnn_inference(self.layers(x), instances)
            return instances
        iteration = self.dynamics.begin(self.phases.number)
        recipe = self.phases.at(iteration)
        result = recipe.run(self.entry(x), iteration=iteration)
        self.dynamics.keep(result.diagnostics)
        *earlier, last = result.states if recipe.every_step else [result.state]
        # Detectron2's loss logs and draws what it is given, which is to be the last state alone.
        with EventStorage():
            of_earlier = [self._loss(state, instances, 0) for state in earlier]
            early = [self._loss(state, instances, 0) for state in result.early_states]
        of_last = self._loss(last, instances, self.vis_period)
        losses = {"loss_mask": torch.stack([*of_earlier, of_last]).mean()}
        if early:
            losses["loss_early"] = recipe.early_loss_weight * torch.stack(early).mean()
        losses.update({f"loss_{name}": value for name, value in result.penalties.items()})
        return losses

    def layers(self, x: Tensor) -> Tensor:
        """Mask logits `(R, K, 2S, 2S)` of the last step, for features `(R, channels, S, S)`."""
        if torch.onnx.is_in_onnx_export():
            # ONNX has no group norm of nothing: a region of zeros goes along, and is left out.
            x = torch.cat([x, torch.zeros_like(x[:1].sum(dim=0, keepdim=True))])
            return self.read_out(self.recipe.run(self.entry(x)).state)[:-1]
        return self.read_out(self.recipe.run(self.entry(x)).state)

    def read_out(self, state: State) -> Tensor:
        """Mask logits `(R, K, 2S, 2S)` of a state, `(R, C, S, S)` or several tensors of which the
        first is read out; it may be of any step."""
        logits: Tensor = self.predictor(F.relu(self.deconv(self.output_norm(to_parts(state)[0]))))
        return logits

    def _loss(self, state: State, instances: list[Instances], vis_period: int) -> Tensor:
        loss: Tensor = mask_rcnn_loss(self.read_out(state), instances, vis_period)
        return loss * self.loss_weight


def _entry(features: int, channels: int, count: int, norm: str) -> nn.Module:
    """See `RecurrentMaskHead`."""
    if count < 0:
        raise ConfigurationError(f"MODEL.ROI_MASK_HEAD.ENTRY_CONVS must be at least 0, got {count}")
    if not count:
        if features == channels:
            return nn.Identity()
        narrow = Conv2d(features, channels, kernel_size=1)
        weight_init.c2_msra_fill(narrow)
        return narrow
    layers = []
    for width in (features, *[channels] * (count - 1)):
        convolution = Conv2d(
            width,
            channels,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, channels),
            activation=F.relu,
        )
        weight_init.c2_msra_fill(convolution)
        layers.append(convolution)
    return nn.Sequential(*layers)
