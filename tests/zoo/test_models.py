"""The models that come with the package: by address, as their cards say, and never written to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.utils.file_io import PathManager

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.commands import COMMANDS
from crbp_d2.analysis.page import load_recurrent_runs
from crbp_d2.analysis.page.figures import figures_html
from crbp_d2.analysis.runs import load_run, split_label
from crbp_d2.analysis.steps import evaluate_steps, step_evaluators
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data.pathfinder import register_pathfinder
from crbp_d2.engine import load_model, run_command
from crbp_d2.zoo import CARD, CONFIG, WEIGHTS, folder_of, in_package, names, read_card
from crbp_d2.zoo.cards import markdown

ROOT = Path(__file__).parents[2]
BPTT = "crbp://pathfinder_tiny_bptt"
LEAST_F1 = 0.95
# Of a circuit that goes on moving, rounding moves a few pixels of a thousand.
MOVED = 0.005


def files_of_the_package() -> dict[str, int]:
    folder = ROOT / "crbp_d2" / "zoo"
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(autouse=True)
def unchanged():
    """Nothing here may leave anything in the package."""
    before = files_of_the_package()
    assert len(before) > 3 * len(names())
    yield
    assert files_of_the_package() == before


def test_a_model_is_found_by_its_address_with_and_without_a_label():
    assert "pathfinder_tiny_bptt" in names()
    for name in names():
        address = f"crbp://{name}"
        assert split_label(address) == (name, folder_of(address))
        assert split_label(f"a model={address}") == ("a model", folder_of(address))
        assert in_package(folder_of(address)) and not in_package(ROOT / "crbp_d2")


def test_an_unknown_model_is_answered_with_those_there_are():
    with pytest.raises(ConfigurationError, match="there are .*pathfinder_tiny_bptt.*; did you"):
        load_run("a=crbp://pathfinder_tiny_btpp")
    for name in ("", "..", "../zoo", "pathfinder_tiny_bptt/..", CONFIG):
        with pytest.raises(ConfigurationError, match="there is no such model in the package"):
            folder_of(f"crbp://{name}")


def test_a_config_takes_weights_by_their_address():
    folder = folder_of(BPTT)
    cfg = read_config(
        str(ROOT / "configs" / "quick" / "pathfinder_bptt.yaml"),
        ["MODEL.WEIGHTS", BPTT, "MODEL.DEVICE", "cpu"],
    )
    stored = torch.load(folder / WEIGHTS, weights_only=True)["model"]
    found = load_model(cfg, resume=False).state_dict()
    assert found.keys() == stored.keys()
    assert all(torch.equal(value, found[name]) for name, value in stored.items())
    cfg.MODEL.WEIGHTS = "crbp://absent"
    with pytest.raises(ConfigurationError, match=r"MODEL\.WEIGHTS crbp://absent: .*there are "):
        load_model(cfg, resume=False)


@pytest.mark.slow
def test_importing_the_engine_is_enough_for_detectron2_to_find_weights():
    code = (
        "import crbp_d2.engine\n"
        "from detectron2.utils.file_io import PathManager\n"
        "print(PathManager.get_local_path('crbp://pathfinder_tiny_bptt'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = Path(done.stdout.strip())
    assert found == Path(PathManager.get_local_path(BPTT))
    assert found.name == WEIGHTS and found.is_file()


@pytest.mark.parametrize("name", names())
def test_files_are_small_and_say_nothing_of_the_machine_of_the_training(name):
    folder = folder_of(f"crbp://{name}")
    assert sorted(path.name for path in folder.iterdir()) == sorted((CARD, CONFIG, WEIGHTS))
    assert (folder / WEIGHTS).stat().st_size < 500_000
    stored = torch.load(folder / WEIGHTS, weights_only=True)
    assert set(stored) == {"model"}
    assert {value.dtype for value in stored["model"].values()} <= {torch.float32, torch.int64}
    config = yaml.safe_load((folder / CONFIG).read_text())
    assert "OUTPUT_DIR" not in config and "WEIGHTS" not in config["MODEL"]
    for file in (CONFIG, CARD):
        assert str(Path.home()) not in (folder / file).read_text()


@pytest.mark.parametrize("name", names())
def test_a_model_is_what_its_command_trains(name):
    card, run = read_card(folder_of(f"crbp://{name}")), load_run(f"crbp://{name}")
    words = card.command.split()
    asked = read_config(str(ROOT / words[words.index("--config-file") + 1]))
    for node in ("CRBP", "INPUT", "DATASETS", "SOLVER"):
        # A tuple within one is a list in a file.
        assert json.dumps(run.cfg[node]) == json.dumps(asked[node])
    assert f"SEED {card.seed}" in card.command and card.seed == run.cfg.SEED
    assert card.trained_steps == run.trained_steps and card.data_set == run.data_set
    assert card.parameters == sum(one.numel() for one in run.model.parameters())
    assert card.licence == "Apache-2.0"


@pytest.mark.parametrize("name", names())
def test_a_model_finds_the_first_contours(name):
    run = load_run(f"crbp://{name}")
    batch = next(iter(scoring_batches(run.cfg, run.data_set)))
    evaluators = step_evaluators(run.data_set)
    (found,) = evaluate_steps(run.model, [batch], [run.trained_steps], evaluators)
    assert found.scores["F1"] > LEAST_F1


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_model_scores_what_its_card_says(name):
    card, run = read_card(folder_of(f"crbp://{name}")), load_run(f"crbp://{name}")
    trained = card.trained_steps
    stated = {row["step"]: row for row in card.scores}
    assert list(stated) == [trained // 2, trained, 2 * trained, 4 * trained]
    loader = scoring_batches(run.cfg, card.data_set)
    found = evaluate_steps(run.model, loader, list(stated), step_evaluators(card.data_set))
    for one in found:
        row = dict(stated[one.step])
        del row["step"]
        assert row == pytest.approx({**one.scores, "change": one.change}, abs=MOVED)
    assert stated[trained]["F1"] > LEAST_F1


def test_the_page_of_the_cards_is_that_of_the_package():
    assert (ROOT / "docs" / "zoo.md").read_text() == markdown()


@pytest.mark.parametrize("file", ["Makefile", "README.md", "docs/pathfinder.md", "tools/demo.py"])
def test_models_that_are_named_are_there(file):
    named = set(re.findall(r"crbp://([a-z0-9_]*[a-z0-9])\b", (ROOT / file).read_text()))
    assert named <= set(names())
    assert named or file == "README.md"


def test_a_card_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"card\.json: not a card of .*; pack the model"):
        read_card(tmp_path)
    card = json.loads((folder_of(BPTT) / CARD).read_text())
    del card["scores"]
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(ConfigurationError, match="KeyError: 'scores'"):
        read_card(tmp_path)


@pytest.mark.parametrize("command", ["steps", "states", "stability", "stopping"])
@pytest.mark.parametrize("as_a_path", [False, True])
def test_a_command_that_would_write_into_the_package_asks_for_a_folder(command, as_a_path, capsys):
    run = str(folder_of(BPTT)) if as_a_path else f"a={BPTT}"
    with pytest.raises(SystemExit) as ended:
        run_command("", COMMANDS, [command, run])
    assert ended.value.code == 2
    assert "nothing is written into the package; name --output" in capsys.readouterr().err


def test_what_a_command_writes_of_a_model_goes_to_the_folder_that_is_named(tmp_path, capsys):
    register_pathfinder("test_zoo_pathfinder", "tiny", seed=5, size=5)
    words = [f"a={BPTT}", "--steps", "1,2", "--output", str(tmp_path / "new")]
    run_command("", COMMANDS, ["steps", *words, "--dataset", "test_zoo_pathfinder"])
    assert "| a " in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"steps.csv", "steps.png", "steps.pdf"}


def test_models_of_the_package_are_shown_side_by_side():
    runs = load_recurrent_runs([f"crbp://{name}" for name in names()])
    assert [run.label for run in runs] == names()
    for run in runs:
        told = figures_html(run)
        assert run.label in told and "a model of the package" in told and "curves" not in told
