"""Packing a trained model: what is kept of its training, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from crbp_d2.analysis import packing
from crbp_d2.analysis.commands import COMMANDS
from crbp_d2.analysis.runs import load_run
from crbp_d2.config import keys_of, read_config, value_of
from crbp_d2.data.pathfinder import register_pathfinder
from crbp_d2.engine import run_command
from crbp_d2.zoo import CARD, CONFIG, WEIGHTS, read_card
from tests.modeling.conftest import CONFIGS

DATA = "test_packing_pathfinder"
TEXTS = ["--about", "Small.", "--command", "train it", "--machine", "one thread"]


@pytest.fixture(scope="module", autouse=True)
def _data():
    register_pathfinder(DATA, "tiny", seed=5, size=5)


@pytest.fixture
def training(tmp_path):
    """What a training of three steps leaves, with an optimizer and weights in double precision."""
    folder = tmp_path / "training"
    folder.mkdir()
    overrides = ["CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3, "CRBP.SOLVER.STEPS", 3]
    overrides += [
        "CRBP.SOLVER.SPREAD",
        0,
        "MODEL.DEVICE",
        "cpu",
        "DATASETS.TEST",
        (DATA,),
        "SEED",
        7,
    ]
    overrides += ["OUTPUT_DIR", str(folder), "MODEL.SEM_SEG_HEAD.PRIOR", 0.5]
    cfg = read_config(str(CONFIGS / "quick" / "pathfinder_contracting.yaml"), overrides)
    torch.manual_seed(3)
    model = build_model(cfg)
    (folder / CONFIG).write_text(cfg.dump())
    weights = {name: value.double() for name, value in model.state_dict().items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}}
    torch.save({"model": weights, "optimizer": optimizer, "iteration": 9}, folder / WEIGHTS)
    return folder


def pack(run, output, name="small_3"):
    run_command("", COMMANDS, ["pack", str(run), "--name", name, *TEXTS, "--output", str(output)])


def test_a_packed_model_is_a_run_with_the_weights_of_its_training(training, tmp_path, capsys):
    pack(training, tmp_path / "zoo")
    folder = tmp_path / "zoo" / "small_3"
    assert {path.name for path in folder.iterdir()} == {CARD, CONFIG, WEIGHTS}
    assert f"Weights, config and card: {folder}" in capsys.readouterr().out
    stored = torch.load(folder / WEIGHTS, weights_only=True)
    assert set(stored) == {"model"}
    assert {value.dtype for value in stored["model"].values()} <= {torch.float32, torch.int64}
    before, after = load_run(str(training)), load_run(str(folder))
    assert (after.label, after.trained_steps) == ("small_3", 3)
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name])
    # The whole config, though its file holds what differs from the defaults alone.
    values = [
        {key: json.dumps(value_of(run.cfg, key)) for key in keys_of(run.cfg)}
        for run in (before, after)
    ]
    differing = {key for key, value in values[0].items() if value != values[1][key]}
    assert differing == {"OUTPUT_DIR", "MODEL.WEIGHTS"}
    content = (folder / CONFIG).read_text()
    assert len(content) < len((training / CONFIG).read_text()) / 3
    assert str(tmp_path) not in content


def test_a_card_holds_the_scores_at_half_once_twice_and_four_times_the_steps(training, tmp_path):
    pack(training, tmp_path / "zoo")
    card = read_card(tmp_path / "zoo" / "small_3")
    assert [row["step"] for row in card.scores] == [1, 3, 6, 12]
    assert all(0 <= row["F1"] <= 1 and row["change"] > 0 for row in card.scores)
    assert (card.about, card.command, card.machine) == ("Small.", "train it", "one thread")
    assert (card.seed, card.data_set, card.trained_steps) == (7, DATA, 3)
    assert card.licence == "Apache-2.0"
    # As `tools/analyze.py steps` has them.
    words = ["steps", str(training), "--steps", "1,3,6,12", "--output", str(tmp_path / "steps")]
    run_command("", COMMANDS, words)
    lines = (tmp_path / "steps" / "steps.csv").read_text().splitlines()
    scores = [float(line.split(",")[5]) for line in lines[1:]]
    assert [row["F1"] for row in card.scores] == [round(score, 4) for score in scores]


def test_packing_again_takes_the_place_of_what_was_packed_before(training, tmp_path):
    pack(training, tmp_path / "zoo")
    weights = torch.load(training / WEIGHTS, weights_only=True)
    weights["model"] = {name: value + 1 for name, value in weights["model"].items()}
    torch.save(weights, training / WEIGHTS)
    pack(training / WEIGHTS, tmp_path / "zoo")
    packed = torch.load(tmp_path / "zoo" / "small_3" / WEIGHTS, weights_only=True)["model"]
    assert all(torch.equal(packed[name], value.float()) for name, value in weights["model"].items())


def test_a_packing_that_is_cut_off_leaves_nothing(training, tmp_path, monkeypatch):
    def cut(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "write_json", cut)
    with pytest.raises(KeyboardInterrupt):
        pack(training, tmp_path / "zoo")
    assert not list((tmp_path / "zoo").iterdir())


def test_what_can_not_be_packed_is_refused_before_anything_is_written(training, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(training, unfinished)
    (unfinished / WEIGHTS).rename(unfinished / "model_0000009.pth")
    (unfinished / "last_checkpoint").write_text("model_0000009.pth")
    for run, output, name, message in (
        (training, tmp_path, "training", "holds no packed model; name another folder"),
        (training, tmp_path / "zoo", "../small", "only small letters"),
        (training, training / CONFIG, "small", "is a file; name a folder"),
        (tmp_path / "absent", tmp_path / "zoo", "small", r"there is no config.yaml"),
        (unfinished, tmp_path / "zoo", "small", "its training has not ended"),
    ):
        with pytest.raises(SystemExit) as ended:
            pack(run, output, name)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    shutil.rmtree(unfinished)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_differs_from_the_defaults_is_kept(training):
    cfg = read_config(str(training / CONFIG))
    assert yaml.safe_load(packing.own_keys(cfg).dump())["SEED"] == 7
    phases = read_config(str(CONFIGS / "quick" / "pathfinder_phases.yaml"))
    kept = json.loads(json.dumps(yaml.safe_load(packing.own_keys(phases).dump())))
    assert kept["CRBP"]["PHASES"][0]["SOLVER"] == {"STEPS": 20, "SPREAD": 4}
    assert kept["VERSION"] == cfg.VERSION and "OUTPUT_DIR" not in kept
    assert "ROI_BOX_CASCADE_HEAD" not in kept["MODEL"]
    phases.MODEL.BACKBONE.FILTERS = "/of/the/training/filters.npy"
    assert packing.own_keys(phases).MODEL.BACKBONE == {"NAME": "GaborStem"}
