"""The configs of the released models, and the page that holds them against this project's."""

from __future__ import annotations

import csv
import re
import shlex
from importlib.resources import files

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from crbp_d2.analysis import published
from crbp_d2.config.reading import keys_of, value_of
from crbp_d2.core import ADJOINTS, CELLS, PENALTIES
from crbp_d2.data.pathfinder import PathfinderImages, PathfinderMapper
from crbp_d2.data.pathfinder.images import TRAINING_IMAGES
from crbp_d2.engine.optimizers import build_optimizer
from tests.modeling.conftest import CONFIGS

PAGE = (CONFIGS.parent / "docs" / "released.md").read_text()
RELEASED = sorted(
    path.name for path in (CONFIGS / "released").glob("*.yaml") if "Base-" not in path.name
)
PAIRS = {
    "R50_FPN_crbp_1x.yaml": ("R50_FPN_crbp_1x.yaml", "COCO"),
    "R101_FPN_crbp_3x.yaml": ("R101_FPN_crbp_3x.yaml", "COCO"),
    "hgru_14.yaml": ("pathfinder/hgru_14.yaml", "hGRU"),
    "hgru_20.yaml": ("pathfinder/hgru_20.yaml", "hGRU"),
    "hgru_25.yaml": ("pathfinder/hgru_25.yaml", "hGRU", "25 dashes"),
    "conv_lstm_14.yaml": ("pathfinder/conv_lstm_14.yaml", "ConvLSTM"),
    "feedforward_14.yaml": ("pathfinder/feedforward_14.yaml", "rival"),
}
"""Preset -> what it is held against, and the rows of the table that are about it."""
NOT_IN_THE_TABLE = {"OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"}


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def code(cell: str) -> str:
    """What stands between backticks; nothing where none do."""
    return "".join(re.findall(r"`([^`]*)`", cell))


DIFFERENCES = [(row[0], *re.findall(r"`([^`]*)`", row[-1])) for row in table("Differences")]
"""Models, key, value here and in the preset."""
COCO = [(code(row[1]), *row[2:]) for row in table("Models on COCO")]
CONTOURS = [(code(row[1]), *row[2:]) for row in table("Models of Pathfinder")]


@pytest.fixture
def load(load_config):
    def released(name: str, keys: str = "", *overrides: object) -> CfgNode:
        return load_config(f"released/{name}", *shlex.split(code(keys)), *overrides)

    return released


def shown(value: object) -> str:
    return '""' if value == "" else value if isinstance(value, str) else repr(value)


def values(cfg: CfgNode, key: str) -> set[str]:
    """How a value may be written: as it is, and for `None` also the default of the part."""
    value = value_of(cfg, key)
    parts = {
        "CRBP.CELL": CELLS.options(cfg.CRBP.CELL.NAME),
        "CRBP.ADJOINT": ADJOINTS.options("neumann"),
        "CRBP.PENALTY.LCP": PENALTIES.options("lcp"),
    }
    node, _, option = key.rpartition(".")
    found = {shown(value)}
    if value is None and node in parts:
        found.add(shown(parts[node][option.lower()].default))
    return found


def test_every_released_config_is_on_the_page():
    assert sorted(PAIRS) == RELEASED
    assert {name for name, *_ in COCO + CONTOURS} >= set(RELEASED)
    of = {one for row in DIFFERENCES for one in row[0].split(", ")}
    assert of == {one for _, *groups in PAIRS.values() for one in groups}


@pytest.mark.parametrize("name", RELEASED)
def test_the_table_has_every_value_in_which_a_preset_differs(name, load, load_config):
    usual, *groups = PAIRS[name]
    here, preset = load_config(usual), load(name)
    rows = [row for row in DIFFERENCES if set(groups) & set(row[0].split(", "))]
    for _, key, is_here, is_preset in rows:
        assert is_here in values(here, key), key
        assert is_preset in values(preset, key), key
    differ = {key for key in keys_of(preset) if value_of(here, key) != value_of(preset, key)}
    assert differ - NOT_IN_THE_TABLE <= {key for _, key, *_ in rows}


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys", "parameters", "_"), COCO)
def test_panoptic_models_have_the_published_parameters(name, keys, parameters, _, load):
    assert f"{trainable(build_model(load(name, keys))):,}" == parameters


@pytest.mark.parametrize(("name", "keys", "parameters", "_"), CONTOURS)
def test_contour_models_have_the_parameters_of_the_page(name, keys, parameters, _, load):
    assert f"{trainable(build_model(load(name, keys))):,}" == parameters


def panoptic_key(cfg: CfgNode) -> tuple[str, str, int | None]:
    recurrent = cfg.MODEL.ROI_MASK_HEAD.NAME == "RecurrentMaskHead"
    model = cfg.CRBP.ALGORITHM if recurrent else "feedforward"
    backbone = f"R{cfg.MODEL.RESNETS.DEPTH}"
    return backbone, model, cfg.CRBP.SOLVER.STEPS if recurrent else None


def test_the_page_has_every_published_panoptic_model_with_its_score(load):
    found = {panoptic_key(load(name, keys)): score for name, keys, _, score in COCO}
    assert len(found) == len(COCO)
    rows = files(published).joinpath("panoptic_coco_val2017.csv").read_text().splitlines()
    assert found == {
        (row["backbone"], row["model"], int(row["steps"]) if row["steps"] else None): (
            f"{float(row['PQ']):.2f}"
        )
        for row in csv.DictReader(rows)
    }


def contour_key(cfg: CfgNode) -> tuple[str, str, int, int | None, int | None]:
    node = cfg.CRBP
    by_algorithm = {"tbptt": "tbptt_3_of_6"}
    name = by_algorithm.get(node.ALGORITHM, node.ALGORITHM)
    steps: int | None = node.SOLVER.STEPS
    if node.LOSS.EVERY_STEP:
        name = "bptt_per_step_loss"
    if node.CELL.NAME == "conv_lstm":
        name = f"convlstm_{name}"
    if cfg.MODEL.SEM_SEG_HEAD.NAME == "FeedForwardSemSegHead":
        name, steps = "feedforward_6_layers", None
    terms = node.ADJOINT.TERMS or ADJOINTS.options("neumann")["terms"].default
    (trained,), (tested,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    dataset = trained.removesuffix("_train")
    assert tested == f"{dataset}_val"
    return dataset, name, node.CELL.KERNEL_SIZE, steps, terms if "rbp" in name else None


def test_the_page_has_every_published_contour_model_with_its_score(load):
    found = {contour_key(load(name, keys)): score for name, keys, _, score in CONTOURS}
    assert len(found) == len(CONTOURS)
    assert found.pop(("pathfinder_14", "convlstm_crbp", 15, 60, 15)) == "a curve alone"
    assert found == {
        (one.dataset, one.algorithm, one.kernel_size, one.steps, one.neumann_terms): (
            f"{one.best:.4f}".removeprefix("0")
        )
        for one in published.pathfinder_f1()
    }


def test_contour_models_are_trained_for_twenty_epochs(load):
    for name, keys, *_ in CONTOURS:
        cfg = load(name, keys)
        (length,) = re.findall(r"\d+", cfg.DATASETS.TRAIN[0])
        images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
        assert images == 20 * TRAINING_IMAGES[int(length)]


def train_once(cfg: CfgNode, batch: list[dict]) -> dict[str, torch.Tensor]:
    """One step of a config's optimizer, and the losses after it."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    with EventStorage():
        losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        after = model(batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(trained)
    assert after.keys() == losses.keys() and all(loss.isfinite() for loss in after.values())
    return losses


FEW_STEPS = 4


@pytest.mark.parametrize(
    ("name", "keys"),
    [pytest.param(*row[:2], marks=[pytest.mark.slow] if row[1] else []) for row in CONTOURS],
)
def test_contour_models_take_a_step_of_their_training(name, keys, load):
    cfg = load(name, keys)
    cfg.CRBP.SOLVER.STEPS = min(cfg.CRBP.SOLVER.STEPS, FEW_STEPS)
    images = PathfinderImages("tiny", seed=1, size=2)
    batch = [PathfinderMapper(is_train=False)(record) for record in images]
    for record in batch:  # 21 x 32 pixels
        image, mask = record["image"][:, :21, :32], record["sem_seg"][:21, :32]
        record.update(image=image, sem_seg=mask)
    losses = train_once(cfg, batch)
    recurrent = name != "feedforward_14.yaml"
    penalised = recurrent and cfg.CRBP.ALGORITHM in ("crbp", "bptt+lcp")
    assert set(losses) == {"loss_sem_seg", *(("loss_lcp",) if penalised else ())}


SMALL_BODY = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    # Frozen norms are for trained weights.
    *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8),
)


def image_with_an_object(height: int = 64, width: int = 96) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[16.0, 8.0, 56.0, 40.0]]))
    instances.gt_classes = torch.tensor([3])
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 8:40, 16:56] = True
    instances.gt_masks = BitMasks(mask)
    return {
        "image": torch.randint(0, 255, (3, height, width), generator=generator).float(),
        "instances": instances,
        "sem_seg": torch.zeros(height, width, dtype=torch.long),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), [row[:2] for row in COCO])
def test_panoptic_models_take_a_step_of_their_training(name, keys, load):
    cfg = load(name, keys, *SMALL_BODY)
    cfg.CRBP.SOLVER.STEPS = min(cfg.CRBP.SOLVER.STEPS, FEW_STEPS)
    losses = train_once(cfg, [image_with_an_object()])
    recurrent = "crbp" in name and cfg.CRBP.ALGORITHM == "crbp"
    assert "loss_mask" in losses and ("loss_lcp" in losses) == recurrent


@pytest.mark.parametrize("steps", [5, 20])
def test_the_released_mask_circuit_has_gates_by_its_steps_and_a_norm_over_processes(steps, load):
    cfg = load("R50_FPN_crbp_1x.yaml", "", "CRBP.SOLVER.STEPS", steps)
    torch.manual_seed(0)
    head = build_mask_head(cfg, ShapeSpec(channels=256, height=14, width=14))
    biases = head.recurrence.cell.suppression_gate.bias.detach()
    assert biases.min() >= 1 and steps - 1.2 < biases.max() <= steps - 1
    assert isinstance(head.output_norm, torch.nn.SyncBatchNorm)
    assert head.recurrence.adjoint.stopping == "released" and head.recurrence.adjoint.norm_cap == 1


def test_the_released_hgru_starts_with_the_released_values(load):
    torch.manual_seed(0)
    model = build_model(load("hgru_25.yaml"))
    cell, readout = model.sem_seg_head.recurrence.cell, model.sem_seg_head.readout
    biases = cell.suppression_gate.bias.detach()
    assert biases.min() >= 1 and 6 < biases.max() <= 7
    assert torch.equal(cell.recurrent_gate.bias, -biases)
    assert (cell.gamma == 1).all() and (cell.nu == 0.5).all() and (cell.omega == 0.5).all()
    for norm in (cell.suppression_norm, cell.facilitation_norm):
        assert (norm.weight == 0.1).all() and norm.eps == 1e-3
    assert readout.norm.eps == 1e-3 and not readout.predictor.bias.any()
    assert 0 < model.backbone.filters.bias.abs().max() <= 1 / 7
