"""The configuration node of this plugin, and configurations read from files and command lines."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from crbp_d2.core import ConfigurationError
from crbp_d2.core.errors import did_you_mean


def add_crbp_config(cfg: CfgNode) -> None:
    """Add the node `CRBP` with its default values: the paper's C-RBP mask head.

    The name in brackets is the paper's symbol.

    Args:
        cfg: a Detectron2 config; changed in place.
    """
    node = cfg.CRBP = CfgNode()

    # --- learning -----------------------------------------------------------------------------
    # How gradients reach the recurrent weights: bptt, tbptt, rbp, jfb, phantom, implicit, deq, or
    # crbp, which is rbp with the Lipschitz coefficient penalty. "+lcp" adds that penalty to any
    # other, as in bptt+lcp.
    node.ALGORITHM = "crbp"
    # Steps of the recurrence in training (T; N in the paper's figures). At least 1.
    node.STEPS = 20
    # Steps outside training; 0 for the same number.
    node.TEST_STEPS = 0
    # In training, draw the number of steps anew in every iteration, up to this many fewer or more:
    # the answer is then asked for at every step from STEPS - STEPS_SPREAD to STEPS + STEPS_SPREAD,
    # so that it comes and stays. Below STEPS; 0 for none.
    node.STEPS_SPREAD = 0
    # In training, a sample's steps end early once |h_t - h_{t-1}| <= TOLERANCE |h_t|; 0.0 for a
    # fixed number of steps. Not for bptt.
    node.TOLERANCE = 0.0
    # The same outside training.
    node.TEST_TOLERANCE = 0.0
    # rbp, crbp: terms of the Neumann series after the first (K). At least 1; without terms it is
    # jfb.
    node.NEUMANN_TERMS = 15
    # rbp, crbp: a sample's series ends when a term falls under this fraction of the first.
    node.NEUMANN_TOLERANCE = 1e-4
    # rbp, crbp: end the series once its norm exceeds this, in units of the loss. The released code
    # has 1.0, which silently gives one-step gradients for large losses; 0.0 for no such cap.
    node.NEUMANN_NORM_CAP = 0.0
    # rbp, crbp: how the adjoint equation is solved. none is the series; anderson (Anderson
    # acceleration) takes fewer products, NEUMANN_TERMS being their number then: 10 are as near to
    # the exact gradient as a series of 15, and 7 nearly so (docs/benchmarks.md).
    node.ADJOINT_ACCELERATION = "none"
    # rbp, crbp: the same for the steps before the last one, STEPS being the evaluations of the
    # circuit; its states are then no longer those of plain steps. It gains nothing where the state
    # is on its way, as along a contour. Not with a tolerance, nor with EARLY_LOSS_WEIGHT.
    node.FORWARD_ACCELERATION = "none"
    # Earlier changes that Anderson acceleration mixes. At least 1; each takes the memory of two
    # states.
    node.ANDERSON_MEMORY = 5
    # implicit: relative residual at which GMRES stops, in (0, 1).
    node.ADJOINT_TOLERANCE = 1e-6
    # implicit: most vector-Jacobian products between restarts of GMRES. At least 1.
    node.KRYLOV_SIZE = 100
    # implicit: most restarts. With 1, KRYLOV_SIZE bounds the products of an iteration. At least 1.
    node.KRYLOV_RESTARTS = 20
    # tbptt, phantom: last steps that gradients go through.
    node.BACKWARD_STEPS = 3
    # phantom: damping of those steps (tau), in (0, 1].
    node.DAMPING = 0.5
    # bptt: mean of the losses of all steps, instead of the last step's loss.
    node.LOSS_ON_EVERY_STEP = False
    # bptt: recompute steps in the backward pass, which needs less memory and more time.
    node.CHECKPOINT = False
    # Weight of a loss on one earlier step, drawn anew in every iteration, which makes the model
    # answer early; its gradient goes through that step alone. 0.0 for none.
    node.EARLY_LOSS_WEIGHT = 0.0
    # The earlier step is drawn from those after this fraction of all (of the fewest that
    # STEPS_SPREAD allows), in [0, 1).
    node.EARLY_FROM = 0.25
    # What to do with samples whose state or gradient is NaN or infinite: raise, or skip (and
    # count).
    node.ON_NONFINITE = "raise"
    # Run the steps without gradients through torch.compile.
    node.COMPILE = False
    # full, or bf16: the steps before the last three and the Neumann series in bfloat16, all else in
    # float32. Gradients differ by a hundredth. It pays where the hardware multiplies bfloat16 and
    # the convolutions are direct. Without effect under SOLVER.AMP; not for bptt, implicit, deq.
    node.SOLVE_PRECISION = "full"
    # crbp, rbp, jfb, implicit: compute at most this many RoIs (images of a contour model) at a
    # time, so that memory hardly grows with their number; costs one more step and a second value of
    # each penalty. 0 for all at once. Not with EARLY_LOSS_WEIGHT, NEUMANN_NORM_CAP, ON_NONFINITE
    # skip or NORM BN.
    node.CHUNK_SAMPLES = 0

    # --- penalties ----------------------------------------------------------------------------
    # Weight of the Lipschitz coefficient penalty (lambda), used where ALGORITHM asks for it.
    node.LCP_WEIGHT = 0.001
    # Column sums of the Jacobian up to this are free (mu), in [0, 1).
    node.LCP_BOUND = 0.95
    # mean or sum over the elements of the state; the released panoptic model: sum.
    node.LCP_REDUCTION = "sum"
    # Penalise negative column sums, too; the paper's penalty leaves them free.
    node.LCP_TWO_SIDED = False
    # Weight of the Jacobian-Frobenius penalty, for any ALGORITHM; 0.0 for none.
    node.FROBENIUS_WEIGHT = 0.0
    # Weight of the spectral penalty, for any ALGORITHM; 0.0 for none.
    node.SPECTRAL_WEIGHT = 0.0
    # Spectral radius that costs nothing, in [0, 1).
    node.SPECTRAL_MARGIN = 0.9
    # Steps of power iteration before the product that is penalised.
    node.SPECTRAL_POWER_STEPS = 4
    # Weight of the penalty on the squared relative change of the state in the last step, for any
    # ALGORITHM; 0.0 for none.
    node.RESIDUAL_WEIGHT = 0.0
    # Compute penalties on this many samples (RoIs), drawn at random, to save memory; 0 for all.
    node.PENALTY_SAMPLES = 0
    # Factor on the weights of the Frobenius, spectral and residual penalties over training:
    # ((iteration, factor), ...), linear between the points. ((1000, 0.0), (2000, 1.0)) learns first
    # and contracts afterwards. The Lipschitz coefficient penalty is part of its algorithm and keeps
    # its weight. () for none.
    node.PENALTY_SCHEDULE = ()

    # --- circuit ------------------------------------------------------------------------------
    # mask_hgru (the mask head's), hgru (Pathfinder's) or conv_lstm.
    node.CELL = "mask_hgru"
    # Channels of drive and state (C). Features of another width pass a 1x1 convolution first.
    node.CHANNELS = 256
    # Size of the suppression and facilitation kernels (E), odd.
    node.KERNEL_SIZE = 3
    # hgru: how those kernels are convolved, direct, fft (in the Fourier domain, the same up to
    # rounding), or auto: fft where it was measured to be faster, for kernels from 9 on a CPU. Steps
    # that COMPILE compiles are direct.
    node.CONVOLUTION = "auto"
    # mask_hgru: suppression gate, gala (global and local attention, the paper) or pointwise.
    node.GATE = "gala"
    # mask_hgru, hgru: norm inside the cell, GN, IN, BN or "". SyncBN can't be differentiated twice.
    node.NORM = "GN"
    # mask_hgru, hgru: initial scale of those norms; the released code starts at 0.1.
    node.NORM_SCALE = 0.1
    # Norm of the last state before the readout: GN, IN, BN, SyncBN, FrozenBN, LN or "".
    node.OUTPUT_NORM = "GN"
    # mask_hgru: phi, softplus (the paper), relu, elu or tanh.
    node.ACTIVATION = "softplus"
    # hgru: put the new state through a softplus as well, as the released cell does.
    node.RECTIFY_STATE = False
    # mask_hgru, hgru: initial gate biases, chrono (the paper's intent), released (without its
    # logarithm) or zero (half-open gates).
    node.GATE_BIAS = "chrono"
    # Steps of the longest time scale that chrono and released start with. A gate that stays at its
    # start lets the state decay by 1 - 1 / CHRONO_STEPS a step, so fewer make it settle sooner.
    # 0: the fewest steps of training.
    node.CHRONO_STEPS = 0

    # --- contour models (Pathfinder) ----------------------------------------------------------
    # Layers of FeedForwardSemSegHead, the recurrent head's rival.
    node.FEEDFORWARD_LAYERS = 6
    # Size of the stem's Gabor filters, odd.
    node.STEM_KERNEL_SIZE = 7
    # Focusing of the focal loss (gamma); 0.0 is the cross entropy.
    node.FOCAL_GAMMA = 2.0
    # Probability that an untrained model gives to a contour, in (0, 1).
    node.CONTOUR_PRIOR = 0.01
    # Never show an image twice: past the end of an epoch, fresh ones are drawn.
    node.ENDLESS = False
    # Besides INPUT.RANDOM_FLIP, exchange rows and columns at random.
    node.TRANSPOSE = False

    # --- training -----------------------------------------------------------------------------
    # sgd (Detectron2's), adam or adamw, with the learning rates and decays of SOLVER.
    node.OPTIMIZER = "sgd"

    # --- data and results ---------------------------------------------------------------------
    # A YAML or JSON file of panoptic data sets of your own to register, see datasets/README.md.
    node.DATASETS_FILE = ""
    # Prediction pictures to draw from the first test set after training or evaluation.
    node.PICTURES = 8

    cfg.register_renamed_key(
        "CRBP.EXTRA_STEPS",
        "CRBP.STEPS_SPREAD",
        message="which draws on both sides of STEPS. EXTRA_STEPS 8 with STEPS 16 is STEPS_SPREAD 4 "
        "with STEPS 20",
    )


# Detectron2 then takes the usual decay, and the usual rate.
_MAY_BE_NONE = ("SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_NORM")


def read_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration that a file and `KEY VALUE ...` describe, not frozen.

    Files are read as plain data: Detectron2 itself would run what a YAML tag as `!!python/object`
    asks for.

    Raises:
        ConfigurationError: there is no such file, it can't be read, or a key or value can't be.
    """
    if not os.path.isfile(config_file):
        raise ConfigurationError(
            f"--config-file {config_file or '(none given)'}: no such file; name one, as "
            "configs/quick/shapes_crbp.yaml"
        )
    cfg = get_cfg()
    add_crbp_config(cfg)
    with _naming(f"--config-file {config_file}", cfg):
        cfg.merge_from_file(config_file, allow_unsafe=False)
    with _naming("KEY VALUE on the command line", cfg):
        cfg.merge_from_list(list(overrides))
    _require_values(cfg)
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or ""
    return cfg


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key by its full name."""
    return functools.reduce(lambda node, name: node[name], key.split("."), cfg)


@contextmanager
def _naming(place: str, cfg: CfgNode) -> Iterator[None]:
    """Whatever merging raises says in one line where, and which key may have been meant."""
    try:
        yield
    except yaml.constructor.ConstructorError as error:
        raise ConfigurationError(
            f"{place}: {error.problem}{_position(error)}; only plain values are read, for others "
            "could run code: write the value itself"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(
            f"{place}: {error.context or ''} {error.problem}{_position(error)}; correct the YAML"
        ) from error
    except (AttributeError, MemoryError, RecursionError, TypeError) as error:
        raise ConfigurationError(
            f"{place}: not keys with plain values ({type(error).__name__}: {error})"
        ) from error
    except (AssertionError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{place}: {_said(error, cfg)}") from error


def _position(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return "" if mark is None else f" in {mark.name}, line {mark.line + 1}"


def _require_values(cfg: CfgNode) -> None:
    """Refuse `None`, which Detectron2 lets take the place of any value, where nothing can use it.

    Parts of models may: a norm of `None` is none.
    """
    default = get_cfg()
    add_crbp_config(default)
    for key in _keys(cfg):
        usual = value_of(default, key)
        if value_of(cfg, key) is not None or usual is None or key in _MAY_BE_NONE:
            continue
        if not key.startswith("MODEL."):
            raise ConfigurationError(
                f"{key}: None is no value of it; leave the key out for the default, {usual!r}"
            )


def _said(error: Exception, cfg: CfgNode) -> str:
    """The message of an error, with the keys that an unknown one may have been meant to be."""
    message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    if "\n" in message:
        return f"{message.split()[-1]} is a group of keys; give values to single ones of them"
    unknown = re.search(r"Non-existent (?:config )?key: (\S+)", message)
    meant = did_you_mean(unknown[1], _keys(cfg)) if unknown else ""
    return f"{message}; {meant}" if meant else message


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
