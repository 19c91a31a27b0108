"""Runs by their folders."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from crbp_d2.analysis.commands.arguments import own_folders
from crbp_d2.analysis.runs import (
    load_run,
    load_runs,
    require_different_labels,
    require_shared,
    split_label,
)
from crbp_d2.core import ConfigurationError
from tests.modeling.conftest import CONFIGS, load_config  # noqa: F401  a fixture

TINY = (
    "CRBP.CELL.CHANNELS",
    4,
    "CRBP.CELL.KERNEL_SIZE",
    3,
    "CRBP.SOLVER.STEPS",
    3,
    "CRBP.SOLVER.SPREAD",
    0,
)


@pytest.fixture
def folder(tmp_path, load_config):  # noqa: F811
    cfg = load_config("quick/pathfinder_crbp.yaml", *TINY, "OUTPUT_DIR", "elsewhere")
    (tmp_path / "run_0.5").mkdir()
    (tmp_path / "run_0.5" / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(3)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "run_0.5" / "model_final.pth")
    return tmp_path / "run_0.5"


def test_a_run_is_loaded_with_its_weights_and_left_as_it_was(folder):
    before = (folder / "config.yaml").read_text()
    run = load_run(f"a run={folder}", ["CRBP.SOLVER.TEST_STEPS", "7"])
    assert run.label == "a run" and run.folder == folder and str(folder) == run.cfg.OUTPUT_DIR
    assert not run.model.training and run.model.sem_seg_head.recurrence.test_steps == 7
    stored = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(v, stored[k]) for k, v in run.model.state_dict().items())
    assert (folder / "config.yaml").read_text() == before and len(list(folder.iterdir())) == 2


def test_an_unfinished_run_gives_its_last_checkpoint(folder):
    (folder / "model_final.pth").rename(folder / "model_0000009.pth")
    with pytest.raises(ConfigurationError, match=r"run_0\.5: there is no model_final\.pth"):
        load_run(str(folder))
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    assert load_run(str(folder)).label == "run_0.5"


def test_a_checkpoint_of_a_run_is_one_too(folder):
    final = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    earlier = {key: value + 1 for key, value in final.items()}
    torch.save({"model": earlier}, folder / "model_0000009.pth")
    run = load_run(str(folder / "model_0000009.pth"))
    assert (run.label, run.folder) == ("run_0.5", folder)
    assert all(torch.equal(v, earlier[k]) for k, v in run.model.state_dict().items())
    with pytest.raises(
        ConfigurationError, match=r"model_0000019\.pth: there is no such checkpoint"
    ):
        load_run(str(folder / "model_0000019.pth"))


def test_weights_that_are_named_win_over_those_of_the_run(folder, tmp_path):
    earlier = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    (folder / "model_final.pth").rename(tmp_path / "elsewhere.pth")
    (folder / "last_checkpoint").write_text("absent.pth")
    run = load_run(str(folder), ["MODEL.WEIGHTS", str(tmp_path / "elsewhere.pth")])
    assert all(torch.equal(v, earlier[k]) for k, v in run.model.state_dict().items())


def test_what_is_no_run_is_refused(folder, tmp_path):
    with pytest.raises(ConfigurationError, match=r"there is no config\.yaml"):
        load_run(str(tmp_path))
    with pytest.raises(ConfigurationError, match="of another architecture"):
        load_run(str(folder), ["CRBP.CELL.KERNEL_SIZE", "5"])
    (folder / "model_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigurationError, match=r"model_final\.pth: can't be read"):
        load_run(str(folder))


def test_the_data_set_of_a_run_is_its_own_or_the_named_one(folder):
    assert load_run(str(folder)).data_set == "pathfinder_tiny_val"
    assert (
        load_run(str(folder), data_sets=["pathfinder_tiny_test"]).data_set == "pathfinder_tiny_test"
    )
    run = load_run(str(folder), ["DATASETS.TEST", "()"])
    with pytest.raises(ConfigurationError, match=r"run_0\.5: DATASETS\.TEST .* --dataset"):
        _ = run.data_set


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stability", "stopping", "states", "steps"])
def test_a_command_asks_for_the_data_set_that_a_run_lacks(command, folder):
    config = folder / "config.yaml"
    cfg = yaml.safe_load(config.read_text())
    cfg["DATASETS"]["TEST"] = []
    config.write_text(yaml.safe_dump(cfg))
    tool = [sys.executable, str(CONFIGS.parent / "tools" / "analyze.py")]
    done = subprocess.run(
        [*tool, command, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "name a data set with --dataset" in done.stderr
    assert "Traceback" not in done.stderr


def arguments(*runs: object, output: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(runs=list(map(str, runs)), output=output)


def test_files_about_each_run_have_a_folder_of_their_own(folder, tmp_path):
    assert own_folders(arguments(folder)) == {"run_0.5": folder}
    both = (f"a={folder}", f"b={folder}")
    assert own_folders(arguments(*both, output=tmp_path / "new")) == {
        "a": tmp_path / "new" / "a", "b": tmp_path / "new" / "b",
    }  # fmt: skip
    file = folder / "config.yaml"
    (folder / "model_0000009.pth").touch()
    for given, message in (
        (arguments(*both), "b=.*would take the place of those of another run; name --output"),
        (arguments(folder / "model_0000009.pth"), "one of its checkpoints .* name --output"),
        (arguments(folder, output=file / "x"), "config.yaml is a file; name a folder"),
        (arguments(folder, f"..={folder}", output=tmp_path), "can't be the name of a folder"),
        (arguments(folder, folder, output=tmp_path), "several runs are called run_0.5"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            own_folders(given)


def test_what_is_wrong_with_a_run_is_known_before_others_are_loaded(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="absent: there is no config"):
        load_runs([str(folder), str(tmp_path / "absent")])
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    with pytest.raises(ConfigurationError, match="would be that of all runs"):
        load_runs([str(folder), f"b={folder}"], weights)
    with pytest.raises(ConfigurationError, match=r"names weights, and so does MODEL\.WEIGHTS"):
        load_run(str(folder / "model_final.pth"), weights)


def test_runs_of_other_data_are_not_compared():
    require_shared({"a": "x", "b": "x"})
    with pytest.raises(ConfigurationError, match="differs: a has x, b has y; .*--dataset"):
        require_shared({"a": "x", "b": "y"})


def test_other_data_are_known_before_the_first_run_is_loaded(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(
        config.replace("pathfinder_tiny_val", "pathfinder_small_val")
    )
    with pytest.raises(ConfigurationError, match="run_0.5 has pathfinder_tiny_val, other has"):
        load_runs([str(folder), str(other)], same_data=True)
    assert len(list(load_runs([str(folder), str(other)]))) == 2


def test_labels(tmp_path):
    assert split_label("C-RBP=out/a") == ("C-RBP", Path("out/a"))
    assert split_label("out/crbp_0") == ("crbp_0", Path("out/crbp_0"))
    (tmp_path / "lr=0.1").mkdir()
    assert split_label(f"{tmp_path}/lr=0.1") == ("lr=0.1", tmp_path / "lr=0.1")
    assert split_label(f"{tmp_path}/run_0.5/steps.csv")[0] == "run_0.5"
    assert split_label("x=out/steps.csv") == ("x", Path("out/steps.csv"))


def test_runs_of_one_label_are_refused():
    require_different_labels(["a", "b"])
    with pytest.raises(ConfigurationError, match="several runs are called a, c; .*LABEL=CSV"):
        require_different_labels(["c", "a", "b", "a", "c"], "LABEL=CSV")
