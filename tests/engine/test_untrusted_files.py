"""No tool runs what is in a model, a config or a run folder that somebody else made."""

from __future__ import annotations

import io
import logging
import os
import pickle
import runpy
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from crbp_d2.analysis.commands import COMMANDS
from tests.analysis.page_runs import SMALLER, write_run
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

TOOLS = CONFIGS.parent / "tools"
QUICK = "quick/pathfinder_crbp.yaml"
TINY = (*SMALLER, "CRBP.SOLVER.STEPS", 2, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2)


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def _archive(attack: Attack, path: Path) -> None:
    content = pickle.dumps(attack)
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _pickled(content, path: Path, protocol: int | None = None) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


WEIGHTS = {
    "a tensor's place": ("a.pth", lambda a, p: torch.save({"model": {"w": a}}, p)),
    "beside good weights": (
        "a.pth",
        lambda a, p: torch.save({"model": {"w": torch.ones(1)}, "trainer": a}, p),
    ),
    "a name": ("a.pth", lambda a, p: torch.save({"model": OrderedDict([(a, torch.ones(1))])}, p)),
    "the file itself": ("a.pth", lambda a, p: torch.save(a, p)),
    "the old format": (
        "a.pth",
        lambda a, p: torch.save({"model": {"w": a}}, p, _use_new_zipfile_serialization=False),
    ),
    "the oldest format": ("a.pth", _archive),
    "a pickle": ("a.pth", lambda a, p: _pickled({"model": {"w": a}}, p)),
    "no ending": ("weights", lambda a, p: torch.save({"model": {"w": a}}, p)),
    "another ending": ("a.pyth", lambda a, p: torch.save({"model_state": {"w": a}}, p)),
    "a zoo's file": ("a.pkl", lambda a, p: _pickled({"model": {"w": a}, "__author__": "x"}, p)),
    "a zoo's first file": ("a.pkl", lambda a, p: _pickled({"blobs": {"w": a}}, p, protocol=0)),
    "an array": ("a.pkl", lambda a, p: _pickled({"w": np.array([a], dtype=object)}, p)),
}
CONFIG = "OUTPUT_DIR: !!python/object/apply:os.mkdir [{canary}]\n"
# How each tool is given weights, config and weights, or a run. The others read no such file.
BY_FILE = {"convert_released.py": lambda f: [f.weights, f.folder / "out.pth"]}
BY_CONFIG = {
    "benchmark.py data": lambda f: [f.config, "--batches", 1, "--rounds", 1],
    "train_net.py": lambda f: [
        *["--config-file", f.config, *f.flags, "MODEL.WEIGHTS", f.weights],
        *["SOLVER.MAX_ITER", 1, "TEST.PICTURES", 0],
    ],
}
BY_RUN = {
    "analyze.py curves": lambda f: [f.run],
    "analyze.py pack": lambda f: [
        *(f.run, "--name", "packed", "--output", f.folder, "--about", "one", "--command", "one"),
        *("--machine", "one"),
    ],
    "analyze.py page": lambda f: [f.run, "--output", f.folder / "page.html"],
    "analyze.py stability": lambda f: [f.run],
    "analyze.py states": lambda f: [f.run],
    "analyze.py steps": lambda f: [f.run],
    "analyze.py stopping": lambda f: [f.run, "--batches", 1],
    "benchmark.py gradients": lambda f: [f.run, "--rounds", 1],
    "demo.py": lambda f: [f.run, "--count", 1, "--output", f.folder / "out"],
    "export.py": lambda f: [f.run, "--format", "torchscript", "--output", f.folder / "model.pt"],
}
LOADING = sorted(BY_RUN.keys() - {"analyze.py curves"})
# `compare.py` trains from configs of its user's own, named in a file of his own.
NEITHER = {"benchmark.py", "compare.py"}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A run to take weights and config from."""
    return write_run(tmp_path_factory.mktemp("good") / "run", QUICK, *TINY)


@pytest.fixture
def files(good, tmp_path):
    """Paths of a run of one's own, and of what an attack would leave."""
    run = tmp_path / "run"
    run.mkdir()
    content = yaml.safe_load((good / "config.yaml").read_text())
    content["OUTPUT_DIR"] = str(tmp_path / "outputs")
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    (run / "model_final.pth").write_bytes((good / "model_final.pth").read_bytes())
    (run / "metrics.json").write_text('{"iteration": 0, "total_loss": 1.0}\n')
    return SimpleNamespace(
        folder=tmp_path,
        run=run,
        config=run / "config.yaml",
        weights=run / "model_final.pth",
        canary=tmp_path / "canary",
        flags=("--eval-only",),
    )


def _handlers() -> set[tuple[logging.Logger, logging.Handler]]:
    loggers = [one for one in logging.root.manager.loggerDict.values() if hasattr(one, "handlers")]
    return {(logger, handler) for logger in loggers for handler in logger.handlers}


@pytest.fixture
def refusal(files, monkeypatch, capsys):
    """What a tool says, in one line, when it ends with an error; nothing may have been run."""
    known = _handlers()

    def call(tool: str, *more: object) -> str:
        name, *command = tool.split()
        command += [*{**BY_FILE, **BY_CONFIG, **BY_RUN}[tool](files), *more]
        monkeypatch.setattr(sys, "argv", [name, *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOLS / name), run_name="__main__")
        assert not files.canary.exists()
        assert ended.value.code not in (0, None)
        said = capsys.readouterr().err if isinstance(ended.value.code, int) else ended.value.code
        assert "Traceback" not in said
        *usage, line = said.strip().splitlines()
        assert not any("rror" in one for one in usage)
        return line

    yield call
    # They write to what captured this test.
    for logger, handler in _handlers() - known:
        logger.removeHandler(handler)


def test_every_tool_is_known_to_read_models_or_not():
    known = {tool.split()[0] for tool in (*BY_FILE, *BY_CONFIG, *BY_RUN)}
    assert {path.name for path in TOOLS.glob("*.py")} == known | NEITHER
    assert {f"analyze.py {name}" for name in COMMANDS} <= BY_RUN.keys()


@pytest.mark.parametrize("attack", WEIGHTS)
def test_the_attacks_work_where_a_file_is_trusted(attack, tmp_path):
    name, write = WEIGHTS[attack]
    write(Attack(tmp_path / "canary"), tmp_path / name)
    try:
        if name.endswith(".pkl"):
            pickle.loads((tmp_path / name).read_bytes(), encoding="latin1")
        elif attack == "a pickle":
            pickle.loads((tmp_path / name).read_bytes())
        else:
            torch.load(tmp_path / name, weights_only=False)
    except Exception as error:  # the archive is none that PyTorch can finish reading
        assert attack == "the oldest format", error
    assert (tmp_path / "canary").is_dir()


@pytest.mark.parametrize("attack", WEIGHTS)
@pytest.mark.parametrize("tool", ["demo.py", "analyze.py steps", "train_net.py"])
def test_weights_are_read_without_running_them(tool, attack, files, refusal):
    name, write = WEIGHTS[attack]
    files.weights = files.folder / name
    write(Attack(files.canary), files.weights)
    more = () if tool == "train_net.py" else ("--opts", "MODEL.WEIGHTS", files.weights)
    assert f"MODEL.WEIGHTS {files.weights}: " in refusal(tool, *more)


@pytest.mark.parametrize("attack", WEIGHTS)
@pytest.mark.parametrize("tool", BY_FILE)
def test_a_file_to_convert_is_read_without_running_it(tool, attack, files, refusal):
    name, write = WEIGHTS[attack]
    files.weights = files.folder / name
    write(Attack(files.canary), files.weights)
    assert f"{files.weights}: " in refusal(tool)
    assert not (files.folder / "out.pth").exists()


@pytest.mark.parametrize("attack", ["a tensor's place", "a pickle", "a zoo's file"])
def test_weights_to_start_from_are_read_without_running_them(attack, files, refusal):
    name, write = WEIGHTS[attack]
    files.weights, files.flags = files.folder / name, ()
    write(Attack(files.canary), files.weights)
    assert f"MODEL.WEIGHTS {files.weights}: " in refusal("train_net.py")


@pytest.mark.parametrize("attack", ["a tensor's place", "the old format", "a pickle"])
@pytest.mark.parametrize("tool", LOADING)
def test_the_weights_of_a_run_are_read_without_running_them(tool, attack, files, refusal):
    WEIGHTS[attack][1](Attack(files.canary), files.weights)
    assert f"MODEL.WEIGHTS {files.weights}: " in refusal(tool)


@pytest.mark.parametrize("attack", ["a tensor's place", "a zoo's file", "another ending"])
@pytest.mark.parametrize("tool", LOADING)
def test_the_last_checkpoint_of_a_run_is_read_without_running_it(tool, attack, files, refusal):
    name, write = WEIGHTS[attack]
    files.weights.unlink()
    write(Attack(files.canary), files.run / name)
    (files.run / "last_checkpoint").write_text(name)
    assert f"the last checkpoint, {files.run / name}: " in refusal(tool)


@pytest.mark.parametrize("attack", ["beside good weights", "a zoo's file"])
@pytest.mark.parametrize("flags", [("--resume",), ("--resume", "--eval-only")])
def test_a_checkpoint_to_resume_from_is_read_without_running_it(attack, flags, files, refusal):
    name, write = WEIGHTS[attack]
    files.flags = flags
    (files.folder / "outputs").mkdir()
    write(Attack(files.canary), files.folder / "outputs" / name)
    (files.folder / "outputs" / "last_checkpoint").write_text(name)
    assert "the last checkpoint, " in refusal("train_net.py")


@pytest.mark.parametrize("form", ["itself", "base", "bases", "deep"])
@pytest.mark.parametrize("tool", sorted({**BY_CONFIG, **BY_RUN}))
def test_configs_are_read_without_running_them(tool, form, files, refusal):
    attack = CONFIG.format(canary=files.canary)
    base = files.folder / "base.yaml"
    base.write_text(attack)
    content = files.config.read_text()
    files.config.write_text(
        {
            "itself": content.replace("OUTPUT_DIR:", "SEED: 1\nX:") + attack,
            "base": f"_BASE_: {base}\n{content}",
            "bases": f"_BASE_: [{base}]\n{content}",
            "deep": f"{content}\n? !!python/object/apply:os.mkdir [{files.canary}]\n: 1\n",
        }[form]
    )
    assert "python/object/apply:os.mkdir" in refusal(tool)


@pytest.mark.parametrize("tool", [*BY_CONFIG, *LOADING])
def test_proposals_are_not_read_as_they_are_pickles(tool, files, refusal):
    proposals = files.folder / "proposals.pkl"
    _pickled(Attack(files.canary), proposals)
    content = yaml.safe_load(files.config.read_text())
    content["MODEL"]["LOAD_PROPOSALS"] = True
    for split in ("TRAIN", "TEST"):
        content["DATASETS"][f"PROPOSAL_FILES_{split}"] = [str(proposals)]
    files.config.write_text(yaml.safe_dump(content))
    assert "MODEL.LOAD_PROPOSALS is True: proposals are kept as pickles" in refusal(tool)
