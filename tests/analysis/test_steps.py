"""Scores at every step, of a linear circuit in closed form and of whole panoptic models."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from crbp_d2.analysis.commands import COMMANDS
from crbp_d2.analysis.outputs import outputs_at
from crbp_d2.analysis.steps import (
    CONTOUR,
    PANOPTIC,
    Evaluated,
    StepScores,
    evaluate_at_each,
    evaluate_steps,
    read_csv,
    step_evaluators,
    write_csv,
)
from crbp_d2.analysis.steps_figure import Curve, write_figure
from crbp_d2.core import ConfigurationError
from crbp_d2.data import (
    build_test_loader,
    set_num_classes,
)
from crbp_d2.engine import run_command
from crbp_d2.evaluation.pathfinder import PathfinderEvaluator
from tests.analysis.linear import images, linear_model, state_factor
from tests.data.shapes_data import registered_shapes
from tests.modeling.conftest import CONFIGS, load_config  # noqa: F401  a fixture

NAME = "test_steps_shapes"
TINY = [
    "INPUT.MIN_SIZE_TEST", "64", "CRBP.SOLVER.STEPS", "3",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "6",
]  # fmt: skip


def test_scores_and_changes_of_a_linear_circuit_are_known():
    factor, records = 0.8, images(4)
    evaluators = [PathfinderEvaluator(distributed=False)]
    model = linear_model(factor, steps=5)
    found = evaluate_steps(model, [records[:3], records[3:]], [20, 1, 5], evaluators)
    assert [one.step for one in found] == [1, 5, 20]
    for one in found:
        grown = state_factor(factor, one.step)
        claimed = torch.stack([r["image"][0].double() * grown > 3 for r in records])
        true = torch.stack([r["sem_seg"] == 1 for r in records])
        hits = (claimed & true).sum().item()
        assert one.scores["recall"] == pytest.approx(hits / true.sum().item())
        assert one.scores["F1"] == pytest.approx(2 * hits / (claimed.sum() + true.sum()).item())
        change = factor ** (one.step - 1) / grown
        assert one.change == pytest.approx(change, rel=1e-9)
    assert 0 < found[1].scores["F1"] < 1  # so that the comparison above means something


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "val"
    with registered_shapes(folder, NAME, scenes=3, seed=5) as made:
        yield made


@pytest.fixture
def panoptic(shapes, load_config):  # noqa: F811
    """A model with random weights that detects something in every image, and its loader."""
    cfg = load_config("quick/shapes_crbp.yaml", *TINY, "DATASETS.TEST", f"('{NAME}',)")
    set_num_classes(cfg, NAME)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():  # masks that differ from step to step
        model.roi_heads.mask_head.predictor.weight.normal_(std=0.5)
    return model, build_test_loader(cfg, NAME, num_workers=0)


def test_one_pass_answers_what_the_model_answers_at_each_step(panoptic):
    model, loader = panoptic
    batch = next(iter(loader))
    recurrence = model.roi_heads.mask_head.recurrence
    masks = []
    for one in outputs_at(model, batch, [1, 2, 5]):
        recurrence.test_steps = one.step
        with torch.no_grad():
            expected = model(batch)
        for found, usual in zip(one.outputs, expected, strict=True):
            assert len(found["instances"]) == 6
            assert torch.equal(found["instances"].pred_masks, usual["instances"].pred_masks)
            assert torch.equal(found["panoptic_seg"][0], usual["panoptic_seg"][0])
            assert found["panoptic_seg"][1] == usual["panoptic_seg"][1]
            assert torch.equal(found["sem_seg"], usual["sem_seg"])
        masks.append(one.outputs[0]["instances"].pred_masks)
        assert one.change.shape == (6,)
    assert not torch.equal(masks[0], masks[2])


def test_panoptic_scores_of_one_pass_are_those_of_an_evaluation_for_each_step(panoptic):
    model, loader = panoptic
    evaluators = step_evaluators(NAME)
    found = evaluate_steps(model, loader, [1, 4], evaluators)
    assert list(found[0].scores) == list(PANOPTIC)
    usual = evaluate_at_each(model, loader, [1, 4], evaluators)
    for one, other in zip(found, usual, strict=True):
        assert one.scores == pytest.approx(other, nan_ok=True)
    assert found[0].scores["PQ_st"] >= 0 and model.roi_heads.mask_head.recurrence.test_steps == 3


def test_an_image_without_detections_has_no_masks_and_no_change(panoptic):
    model, loader = panoptic
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    (one,) = outputs_at(model, next(iter(loader)), [2])
    assert len(one.outputs[0]["instances"]) == 0 and one.change.shape == (0,)
    (scores,) = evaluate_steps(model, loader, [2], step_evaluators(NAME))
    assert math.isnan(scores.change) and scores.scores["PQ_st"] >= 0


def test_tables_are_read_as_they_were_written(tmp_path):
    entries = [
        StepScores(2, dict.fromkeys(CONTOUR, 1 / 3), 0.25),
        StepScores(4, dict.fromkeys(CONTOUR, 1.0), 0.0),
    ]
    runs = {
        "one, with a comma": Evaluated(2, {"a": entries, "b": entries[:1]}),
        "other": Evaluated(7, {"a": entries[1:]}),
    }
    write_csv(tmp_path / "new" / "steps.csv", runs)
    assert read_csv(tmp_path / "new" / "steps.csv") == runs
    whole = (tmp_path / "new" / "steps.csv").read_text()
    (tmp_path / "bom.csv").write_text(f"\ufeff{whole}")
    assert read_csv(tmp_path / "bom.csv") == runs
    cut, foreign = whole.rstrip("\n"), whole.replace("F1", "Foo")
    negative = whole.replace(",2,2,", ",2,-2,")
    for content in (
        cut,
        foreign,
        negative,
        "a,b\n1,2\n",
        "run,data set,trained steps,step,change\nr,x,y,z,1\n",
        whole.replace("other", "o" * 200_000),
    ):
        (tmp_path / "other.csv").write_text(content)
        with pytest.raises(ConfigurationError, match=r"other\.csv: not a whole steps\.csv"):
            read_csv(tmp_path / "other.csv")
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(ConfigurationError, match=r"other\.csv: holds no scores"):
        read_csv(tmp_path / "other.csv")
    with pytest.raises(ConfigurationError, match="missing.csv"):
        read_csv(tmp_path / "missing.csv")


def test_the_figure_holds_all_curves(tmp_path):
    entries = [StepScores(t, dict.fromkeys(CONTOUR, 0.1 * t), 1 / t) for t in range(1, 6)]
    curves = [Curve("one", 3, entries), Curve("other", 9, entries[:2])]
    write_figure(tmp_path / "deep" / "steps", curves, {"paper": {1: 0.3, 4: 0.2}})
    with Image.open(tmp_path / "deep" / "steps.png") as picture:
        assert picture.size[0] > 2000 and len(set(picture.convert("L").getdata())) > 20
    assert (tmp_path / "deep" / "steps.pdf").read_bytes().startswith(b"%PDF")


def steps(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CONFIGS.parent / "tools" / "analyze.py", "steps", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_one_command_evaluates_a_panoptic_model(panoptic, shapes, tmp_path, load_config):  # noqa: F811
    model, _ = panoptic
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"model": model.state_dict()}, run / "model_final.pth")
    (tmp_path / "data.yaml").write_text(
        f"- name: mine\n  images: {shapes}/images\n  panoptic_json: {shapes}/panoptic.json\n"
        f"  panoptic_pngs: {shapes}/panoptic\n"
    )
    of_data = ("DATASETS.FILE", str(tmp_path / "data.yaml"), "DATASETS.TEST", "('mine',)")
    cfg = load_config("quick/shapes_crbp.yaml", *TINY, *of_data)
    (run / "config.yaml").write_text(cfg.dump())
    given = ("--steps", "1-2,N", "--check-repeated", "--published", "panoptic_R50")
    done = steps(f"mine={run}", *given)
    assert done.returncode == 0, done.stderr[-2000:]
    (label, found), *others = read_csv(run / "steps.csv").items()
    assert (label, found.trained_steps, others) == ("mine", 3, [])
    assert [one.step for one in found.scores["mine"]] == [1, 2, 3]
    assert "largest difference of a score 0" in done.stdout
    other = ("--output", tmp_path / "other", "--opts", "CRBP.CELL.NAME", "conv_lstm")
    for wrong, message in (
        ((run, tmp_path / "absent"), "absent: there is no config.yaml"),
        ((run, f"b={run}", "--opts", "MODEL.WEIGHTS", "x.pth"), "would be that of all runs"),
        ((run / "model_final.pth",), "name --output"),
    ):
        done = steps(*wrong, *given, *(() if len(wrong) == 1 else ("--output", tmp_path / "no")))
        assert done.returncode == 2 and message in done.stderr, done.stderr[-2000:]
        assert not (tmp_path / "no").exists()
    done = steps(run, *given, *other)
    assert done.returncode == 2 and "of another architecture" in done.stderr
    assert not (tmp_path / "other").exists()


def test_runs_that_were_evaluated_before_are_drawn_beside_others(tmp_path, capsys):
    """Their tables stand in the place of the runs."""
    entries = [StepScores(t, dict.fromkeys(CONTOUR, 0.1 * t), 1 / t) for t in (1, 2)]
    write_csv(tmp_path / "a" / "steps.csv", {"first": Evaluated(2, {"d": entries})})
    second = {"second": Evaluated(4, {"d": entries}), "third": Evaluated(4, {"d": entries})}
    write_csv(tmp_path / "b.csv", second)
    both = (f"renamed={tmp_path}/a/steps.csv", tmp_path / "b.csv")
    run_command("", COMMANDS, ["steps", *map(str, both), "--output", str(tmp_path / "out")])
    assert list(read_csv(tmp_path / "out" / "steps.csv")) == ["renamed", "second", "third"]
    assert (tmp_path / "out" / "steps.png").is_file()
    entries = [StepScores(1, dict.fromkeys(PANOPTIC, 50.0), 1.0)]
    write_csv(tmp_path / "c.csv", {"panoptic": Evaluated(4, {"d": entries})})
    for arguments, message in (
        (both, "several runs need --output FOLDER"),
        (
            (f"x={tmp_path}/b.csv", "--output", tmp_path),
            "holds second, third, which have their labels there",
        ),
        ((both[1], both[1], "--output", tmp_path), "several runs are called second, third"),
        ((both[1], tmp_path / "c.csv", "--output", tmp_path), "have no scores in common"),
        ((both[1], "--output", tmp_path, "--steps", "3"), "only tables were given"),
        ((both[1], "--output", tmp_path, "--published", "panoptic_R50"), "and the runs have F1"),
        ((both[1], "--output", tmp_path / "b.csv" / "x"), "b.csv is a file; name a folder"),
        ((both[1],), "name the --output folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command("", COMMANDS, ["steps", *map(str, arguments)])
        assert ended.value.code == 2 and message in capsys.readouterr().err
