"""Whole models: training, resuming, checkpoints, several processes and real images."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError, register_panoptic, set_num_classes
from crbp_d2.engine import Trainer, argument_parser, main
from tests.data.shapes_data import registered_shapes
from tests.distributed import python_path, run_processes
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

ROOT = CONFIGS.parent
SHARED = ROOT.parent / "shared" / "data"
NAME = "test_training_shapes"
needs_coco = pytest.mark.skipif(
    not (SHARED / "coco").is_dir(),
    reason="needs real COCO images, which can't be redistributed, in ../shared/data/coco",
)
SMALL = [
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0",
    "CRBP.SOLVER.STEPS", "4", "TEST.PICTURES", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Twelve small scenes, registered under a name of their own."""
    folder = tmp_path_factory.mktemp("shapes") / "train"
    with registered_shapes(folder, NAME, scenes=12, seed=3) as made:
        yield made


def run(output: Path, config: str, *overrides: object, flags: tuple[str, ...] = ()):
    arguments = [
        "--config-file", str(CONFIGS / config), *flags,
        "OUTPUT_DIR", str(output),
        "DATASETS.TRAIN", f"('{NAME}',)",
        "DATASETS.TEST", f"('{NAME}',)",
        *SMALL, *map(str, overrides),
    ]  # fmt: skip
    return main(argument_parser().parse_args(arguments))


def logged(output: Path) -> dict[int, dict]:
    lines = (output / "metrics.json").read_text().splitlines()
    return {line["iteration"]: line for line in map(json.loads, lines)}


def test_ten_iterations_leave_metrics_checkpoint_results_and_a_picture(shapes, tmp_path):
    results = run(tmp_path, "quick/shapes_crbp.yaml", "SOLVER.MAX_ITER", 10)
    assert set(results) >= {"panoptic_seg", "sem_seg", "segm", "bbox"}
    assert json.loads((tmp_path / "results.json").read_text())["panoptic_seg"]["PQ"] >= 0
    assert (tmp_path / "model_final.pth").is_file()
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 1
    last = logged(tmp_path)[9]
    assert last["loss_mask"] > 0 and last["loss_lcp"] >= 0
    assert last["recurrence/steps"] == 4 and 0 < last["recurrence/neumann_terms"] <= 10
    config = (tmp_path / "config.yaml").read_text()
    assert "NUM_CLASSES: 6" in config and "NUM_CLASSES: 5" in config


def test_evaluation_alone_and_with_other_steps(shapes, tmp_path):
    trained = run(tmp_path / "a", "quick/shapes_crbp.yaml", "SOLVER.MAX_ITER", 2)
    weights = ("MODEL.WEIGHTS", tmp_path / "a" / "model_final.pth")
    again = run(tmp_path / "b", "quick/shapes_crbp.yaml", *weights, flags=("--eval-only",))
    assert again["panoptic_seg"] == trained["panoptic_seg"]
    assert again["sem_seg"] == trained["sem_seg"]
    more = ("CRBP.SOLVER.TEST_STEPS", 8, "TEST.PICTURES", 0)
    run(tmp_path / "c", "quick/shapes_crbp.yaml", *weights, *more, flags=("--eval-only",))
    assert not (tmp_path / "c" / "predictions").exists()


def test_evaluation_without_weights_is_refused(shapes, tmp_path):
    with pytest.raises(ConfigurationError, match=r"MODEL\.WEIGHTS.*model_final\.pth"):
        run(tmp_path, "quick/shapes_crbp.yaml", flags=("--eval-only",))
    assert not (tmp_path / "results.json").exists()


def test_data_sets_of_other_categories_are_refused_before_training(shapes, tmp_path):
    categories = json.loads((shapes / "panoptic.json").read_text())
    categories["categories"][0]["id"] = 77
    for annotation in categories["annotations"]:
        for segment in annotation["segments_info"]:
            if segment["category_id"] == 1:
                segment["category_id"] = 77
    (shapes / "renumbered.json").write_text(json.dumps(categories))
    register_panoptic(
        "renumbered_shapes",
        images=shapes / "images",
        panoptic_json=shapes / "renumbered.json",
        panoptic_pngs=shapes / "panoptic",
    )
    with pytest.raises(DatasetError, match=f"{NAME} and renumbered_shapes have different"):
        run(tmp_path, "quick/shapes_crbp.yaml", "DATASETS.TEST", "('renumbered_shapes',)")


def test_expected_results_that_are_missed_fail_the_run(shapes, tmp_path):
    expected = ("TEST.EXPECTED_RESULTS", "[['panoptic_seg', 'PQ', 99.0, 0.5]]")
    with pytest.raises(SystemExit):
        run(tmp_path, "quick/shapes_crbp.yaml", "SOLVER.MAX_ITER", 1, *expected)


def test_a_run_goes_on_exactly_where_it_was_interrupted(shapes, tmp_path):
    options = (
        *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3, "DATASETS.TEST", "()"),
        *("TEST.PICTURES", 0, "CRBP.PENALTY.SAMPLES", 2),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, "quick/shapes_crbp.yaml", *options)
    # What a run killed in its fifth iteration leaves behind.
    cut.mkdir()
    shutil.copy(whole / "model_0000002.pth", cut)
    (cut / "last_checkpoint").write_text("model_0000002.pth")
    run(cut, "quick/shapes_crbp.yaml", *options, flags=("--resume",))
    expected, resumed = (
        torch.load(folder / "model_final.pth", weights_only=False)["model"]
        for folder in (whole, cut)
    )
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config-file", "absent.yaml"), "config file absent.yaml: no such file"),
        ((), "config file (none given): no such file"),
        (
            (
                *("--config-file", CONFIGS / "quick" / "pathfinder_crbp.yaml"),
                *("CRBP.SOLVER.STEPS", 0, "OUTPUT_DIR", "out"),
            ),
            "CRBP.SOLVER.STEPS: steps must be an integer of at least 1, got 0",
        ),
        (
            (
                *("--config-file", CONFIGS / "quick" / "coco_crbp.yaml"),
                *("OUTPUT_DIR", "out"),
            ),
            "no such folder",
        ),
        (
            ("--config-file", CONFIGS / "quick" / "pathfinder_crbp.yaml", "CRBP.STEPZ", 3),
            "Non-existent key: CRBP.STEPZ; did you mean CRBP.SOLVER.STEPS",
        ),
        (
            (
                *("--num-gpus", 2, "--config-file", CONFIGS / "quick" / "pathfinder_crbp.yaml"),
                *("DATASETS.TEST", "('pathfinder_tini_val',)", "OUTPUT_DIR", "out"),
            ),
            "DATASETS.TEST: no data set is registered as 'pathfinder_tini_val' (did you mean "
            "pathfinder_tiny_val",
        ),
        (
            (
                *("--num-machines", 2, "--dist-url", "tcp://127.0.0.1:9"),
                *("--config-file", CONFIGS / "quick" / "pathfinder_crbp.yaml", "CRBP.STEPZ", 3),
            ),
            "Non-existent key: CRBP.STEPZ; did you mean CRBP.SOLVER.STEPS",
        ),
    ],
)
def test_a_mistake_ends_with_its_message_alone(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train_net.py"), *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
    )
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_mixed_precision_needs_a_gpu(load_config, shapes):
    cfg = load_config("quick/shapes_crbp.yaml", "SOLVER.AMP.ENABLED", True)
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.ENABLED"):
        Trainer(cfg)


def test_an_unknown_optimizer_lists_the_choices(load_config):
    cfg = load_config("quick/shapes_crbp.yaml", "SOLVER.OPTIMIZER", "lion")
    with pytest.raises(ValueError, match="adam, adamw, sgd"):
        Trainer.build_optimizer(cfg, torch.nn.Linear(2, 2))


def test_a_feed_forward_checkpoint_fills_all_but_the_mask_trunk(load_config, tmp_path, caplog):
    feedforward = build_model(load_config("quick/shapes_feedforward.yaml"))
    path = tmp_path / "baseline.pth"
    torch.save({"model": feedforward.state_dict()}, path)
    recurrent = build_model(load_config("quick/shapes_crbp.yaml", "CRBP.CELL.CHANNELS", 64))
    trunk = ("roi_heads.mask_head.recurrence.", "roi_heads.mask_head.output_norm.")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(recurrent).load(str(path))
    loaded = recurrent.state_dict()
    for key, value in feedforward.state_dict().items():
        if ".mask_fcn" not in key:
            assert torch.equal(loaded[key], value), key
    missing = set(loaded) - set(feedforward.state_dict())
    assert missing and all(key.startswith(trunk) for key in missing)
    # The log names what found no weights, and what found no place.
    assert "mask_head.recurrence.cell" in caplog.text and "mask_fcn1" in caplog.text


def _gradients(cfg, batch, rank: int, world: int) -> torch.Tensor:
    torch.manual_seed(0)
    model = build_model(cfg)
    share = batch if world == 1 else batch[rank : rank + 1]
    runner = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    with EventStorage():
        losses = runner(share)
    sum(losses.values()).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("chunk", [0, 1])
def test_two_processes_of_one_image_average_to_one_of_two_images(load_config, shapes, chunk):
    # Equal numbers of regions per image, as means over regions are taken in each process: all
    # proposals are used, none but the true boxes are foreground, and both images have as many.
    cfg = load_config(
        "quick/shapes_crbp.yaml",
        *["MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN"],
        *["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4096, "MODEL.RPN.NMS_THRESH", 1.0],
        *["MODEL.RPN.POST_NMS_TOPK_TRAIN", 8, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4096],
        *["MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.999]],
        *["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none"],
        *[
            "CRBP.SOLVER.STEPS",
            6,
            "CRBP.PENALTY.LCP.REDUCTION",
            "mean",
            "CRBP.PENALTY.LCP.BOUND",
            0.0,
        ],
        *["CRBP.PENALTY.LCP.WEIGHT", 1.0],
    )
    set_num_classes(cfg, NAME)
    items = list(map(DatasetMapper(cfg, is_train=True), DatasetCatalog.get(NAME)))
    whole = [item for item in items if not (item["sem_seg"] == 255).any()]
    pairs = (
        [a, b]
        for i, a in enumerate(whole)
        for b in whole[i + 1 :]
        if len(a["instances"]) == len(b["instances"])
    )
    batch = next(pairs)
    alone = _gradients(cfg, batch, 0, 1)
    cfg.CRBP.CHUNK_SAMPLES = chunk
    for found in run_processes(functools.partial(_gradients, cfg, batch), 2):
        assert float((found - alone).norm() / alone.norm()) < 1e-5


@needs_coco
def test_real_images_train_and_losses_fall(load_config, monkeypatch, tmp_path):
    command = [
        sys.executable, ROOT / "tools" / "train_net.py",
        "--config-file", CONFIGS / "quick" / "coco_crbp.yaml",
        "OUTPUT_DIR", tmp_path / "run",
        "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
        "INPUT.MAX_SIZE_TRAIN", "160", "INPUT.MAX_SIZE_TEST", "160",
        "SOLVER.MAX_ITER", "40", "SOLVER.WARMUP_ITERS", "5", "SOLVER.IMS_PER_BATCH", "2",
        "CRBP.SOLVER.STEPS", "4",
        "TEST.PICTURES", "1",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(SHARED),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": python_path(),
    }
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = logged(tmp_path / "run")
    assert lines[39]["total_loss"] < 0.9 * lines[19]["total_loss"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100
    assert "NUM_CLASSES: 80" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_full_size_model_takes_two_training_steps(load_config, shapes, tmp_path):
    cfg = load_config(
        "R101_FPN_crbp_3x.yaml",
        *["DATASETS.TRAIN", (NAME,), "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 1],
        *["DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16],
        # Frozen norms are of use with trained weights only.
        *["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0],
        *["INPUT.MASK_FORMAT", "bitmask", "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 2],
        *["SOLVER.BASE_LR", 1e-3],
        *["DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path)],
    )
    set_num_classes(cfg, NAME)
    trainer = Trainer(cfg)
    before = trainer.model.roi_heads.mask_head.recurrence.cell.alpha.detach().clone()
    trainer.train()
    after = trainer.model.roi_heads.mask_head.recurrence.cell.alpha
    assert torch.isfinite(after).all() and not torch.equal(before, after)
