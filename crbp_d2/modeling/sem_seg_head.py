"""Semantic heads of the contour models: the recurrent circuit, and its feed-forward rival.

Shape shorthand: N images, C channels, K classes. Logits throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from crbp_d2.core import (
    ConfigurationError,
    Recurrence,
    State,
    to_parts,
)
from crbp_d2.core.options import number
from crbp_d2.modeling import build
from crbp_d2.modeling.dynamics import DynamicsLog
from crbp_d2.modeling.phases import Phase, Phases, Recipe


def focal_loss(
    logits: Tensor, targets: Tensor, *, gamma: float, ignore_value: int, detached: bool = False
) -> Tensor:
    """Mean over labelled pixels of `-(1 - p)^gamma log p`, `p` the probability of the true class
    (Lin et al. 2017, without class weights).

    Args:
        logits: `(N, K, H, W)`.
        targets: `(N, H, W)` classes, or `ignore_value` for pixels that don't count.
        gamma: focusing, at least 0.
        ignore_value: label of unlabelled pixels.
        detached: take `(1 - p)^gamma` for a constant weight, as the released code does: the value
            is the same, the gradient 1 to 3 times smaller with a gamma of 2.

    Returns:
        0-dimensional, at least 0; 0 without a labelled pixel.
    """
    surprise = F.cross_entropy(logits, targets, ignore_index=ignore_value, reduction="none")
    labelled = (targets != ignore_value).sum().clamp(min=1)
    weight = (1 - torch.exp(-surprise)) ** gamma
    return ((weight.detach() if detached else weight) * surprise).sum() / labelled


class ContourReadout(nn.Module):
    """Norm and 1x1 convolution from a state to class logits.

    Args:
        channels: `C` of the state.
        num_classes: `K`; class 0 is the background.
        norm: see `crbp_d2.modeling.build.output_norm`.
        prior: probability of the classes other than the background before training.
        norm_eps: see `crbp_d2.modeling.build.output_norm`.
        std: standard deviation of the weights before training, at least 0.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        norm: str,
        prior: float,
        norm_eps: float = 0.0,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 < prior < 1:
            raise ConfigurationError(f"MODEL.SEM_SEG_HEAD.PRIOR must lie in (0, 1), got {prior}")
        std = number("readout_std", std, least=0, label="MODEL.SEM_SEG_HEAD.READOUT_STD")
        self.norm = build.output_norm(norm, channels, eps=norm_eps)
        self.predictor = Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=std)
        bias = cast(Tensor, self.predictor.bias)
        nn.init.zeros_(bias)
        nn.init.constant_(bias[:1], math.log((1 - prior) / prior))

    def forward(self, state: Tensor) -> Tensor:
        """`(N, K, H, W)` logits of a state `(N, C, H, W)`."""
        logits: Tensor = self.predictor(self.norm(state))
        return logits


class ContourHead(nn.Module):
    """What the heads share: a feature map to start from, a readout and the focal loss.

    Args:
        in_feature: name of the feature map.
        readout: from a state to logits.
        focal_gamma, focal_detached: see `focal_loss`.
        loss_weight: factor of the loss.
        ignore_value: label of pixels that don't count.
    """

    def __init__(
        self,
        *,
        in_feature: str,
        readout: ContourReadout,
        focal_gamma: float,
        focal_detached: bool,
        loss_weight: float,
        ignore_value: int,
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.readout = readout
        self.focal_gamma = focal_gamma
        self.focal_detached = focal_detached
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    def loss(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        """The weighted focal loss, 0-dimensional, of logits `(N, K, H, W)` for `(N, H, W)`."""
        assert targets is not None, "training needs targets"
        return self.loss_weight * focal_loss(
            logits,
            targets,
            gamma=self.focal_gamma,
            ignore_value=self.ignore_value,
            detached=self.focal_detached,
        )


@SEM_SEG_HEADS_REGISTRY.register()
class RecurrentSemSegHead(ContourHead):
    """`T` steps of a circuit on a feature map, and a readout: for Detectron2's `SemanticSegmentor`.

    Args:
        in_feature: name of the feature map, the circuit's drive.
        recurrence: the circuit with its learning algorithm.
        readout: from a state to logits; of a state of several tensors the first is read out.
        focal_gamma, focal_detached: see `focal_loss`.
        loss_weight: factor of `loss_sem_seg` and `loss_early`.
        chunk_samples: compute at most this many images at a time; `None` for all at once.
        every_step: `loss_sem_seg` is the mean over all recorded steps.
        early_loss_weight: further factor of `loss_early`.
        early_from: see `crbp_d2.core.EarlyState`; `None` for no such loss.
        earlier: phases of training before the one that the other arguments describe.
        ignore_value: label of pixels that don't count.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        recurrence: Recurrence,
        readout: ContourReadout,
        focal_gamma: float = 2.0,
        focal_detached: bool = False,
        loss_weight: float = 1.0,
        chunk_samples: int | None = None,
        every_step: bool = False,
        early_loss_weight: float = 0.0,
        early_from: float | None = None,
        earlier: Sequence[Phase] = (),
        ignore_value: int = 255,
    ) -> None:
        super().__init__(
            in_feature=in_feature,
            readout=readout,
            focal_gamma=focal_gamma,
            focal_detached=focal_detached,
            loss_weight=loss_weight,
            ignore_value=ignore_value,
        )
        self.recurrence = recurrence
        self.recipe = Recipe(
            recurrence,
            chunk_samples=chunk_samples,
            every_step=every_step,
            early_loss_weight=early_loss_weight,
            early_from=early_from,
        )
        self.phases = Phases(earlier, self.recipe)
        self.dynamics = DynamicsLog()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **_common_arguments(cfg, input_shape),
            **build.head_options(cfg.CRBP, cfg.SOLVER.MAX_ITER),
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Losses in training, else logits.

        Args:
            features: with `in_feature`, `(N, C, H, W)`.
            targets: `(N, H, W)` classes, or `ignore_value`; in training only.

        Returns:
            In training nothing, and `loss_sem_seg` (see `every_step`), `loss_early` where asked
            for, and `loss_<penalty>` for every penalty; else logits `(N, K, H, W)` of the last step
            and no loss.
        """
        drive = features[self.in_feature]
        if not self.training:
            return self.read_out(self.recipe.run(drive).state), {}
        iteration = self.dynamics.begin(self.phases.number)
        recipe = self.phases.at(iteration)
        result = recipe.run(drive, iteration=iteration)
        self.dynamics.keep(result.diagnostics)
        states = result.states if recipe.every_step else [result.state]
        losses = {"loss_sem_seg": self._mean_loss(states, targets)}
        if result.early_states:
            early = self._mean_loss(result.early_states, targets)
            losses["loss_early"] = recipe.early_loss_weight * early
        losses.update({f"loss_{name}": value for name, value in result.penalties.items()})
        return None, losses

    def read_out(self, state: State) -> Tensor:
        """Logits `(N, K, H, W)` of a state, which may be of any step."""
        logits: Tensor = self.readout(to_parts(state)[0])
        return logits

    def _mean_loss(self, states: list[State], targets: Tensor | None) -> Tensor:
        return torch.stack([self.loss(self.read_out(state), targets) for state in states]).mean()


@SEM_SEG_HEADS_REGISTRY.register()
class FeedForwardSemSegHead(ContourHead):
    """Convolutions with norm and ReLU in place of the circuit. Two of them have about its number of
    parameters.

    Args:
        in_feature: name of the feature map.
        channels: `C` of all layers.
        kernel_size: of all layers, odd.
        layers: how many.
        norm, norm_eps: of each layer; see `crbp_d2.modeling.build.output_norm`.
        bias: give the layers biases beside their norms, too.
        readout, focal_gamma, focal_detached, loss_weight, ignore_value: see `RecurrentSemSegHead`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        channels: int,
        kernel_size: int,
        layers: int,
        norm: str,
        readout: ContourReadout,
        norm_eps: float = 0.0,
        bias: bool = False,
        focal_gamma: float = 2.0,
        focal_detached: bool = False,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ) -> None:
        super().__init__(
            in_feature=in_feature,
            readout=readout,
            focal_gamma=focal_gamma,
            focal_detached=focal_detached,
            loss_weight=loss_weight,
            ignore_value=ignore_value,
        )
        if layers < 1:
            raise ConfigurationError(f"MODEL.SEM_SEG_HEAD.LAYERS must be at least 1, got {layers}")
        self.layers = nn.Sequential(
            *(
                Conv2d(
                    channels,
                    channels,
                    kernel_size,
                    padding=kernel_size // 2,
                    bias=bias or not norm,
                    norm=build.output_norm(norm, channels, eps=norm_eps),
                    activation=F.relu,
                )
                for _ in range(layers)
            )
        )
        for layer in self.layers:
            nn.init.kaiming_normal_(cast(Conv2d, layer).weight)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            **_common_arguments(cfg, input_shape),
            "channels": cfg.CRBP.CELL.CHANNELS,
            "kernel_size": cfg.CRBP.CELL.KERNEL_SIZE,
            "layers": head.LAYERS,
            "norm": head.OUTPUT_NORM if head.LAYER_NORM is None else head.LAYER_NORM,
            "norm_eps": head.OUTPUT_NORM_EPS,
            "bias": head.LAYER_BIAS,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """As `RecurrentSemSegHead.forward`, with the one loss `loss_sem_seg`."""
        logits = self.readout(self.layers(features[self.in_feature]))
        if not self.training:
            return logits, {}
        return None, {"loss_sem_seg": self.loss(logits, targets)}


def _common_arguments(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    head, width = cfg.MODEL.SEM_SEG_HEAD, cfg.CRBP.CELL.CHANNELS
    if head.FOCAL_GAMMA < 0:
        raise ConfigurationError(
            f"MODEL.SEM_SEG_HEAD.FOCAL_GAMMA must be at least 0, got {head.FOCAL_GAMMA}"
        )
    (in_feature,) = head.IN_FEATURES
    channels = input_shape[in_feature].channels
    if channels != width:
        raise ConfigurationError(
            f"CRBP.CELL.CHANNELS is {width}, but the feature map {in_feature!r} of MODEL.BACKBONE "
            f"has {channels} channels; make them equal"
        )
    return {
        "in_feature": in_feature,
        "readout": ContourReadout(
            channels=channels,
            num_classes=head.NUM_CLASSES,
            norm=head.OUTPUT_NORM,
            prior=head.PRIOR,
            norm_eps=head.OUTPUT_NORM_EPS,
            std=head.READOUT_STD,
        ),
        "focal_gamma": head.FOCAL_GAMMA,
        "focal_detached": head.FOCAL_DETACHED,
        "loss_weight": head.LOSS_WEIGHT,
        "ignore_value": head.IGNORE_VALUE,
    }
