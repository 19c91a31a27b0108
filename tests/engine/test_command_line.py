"""Options and `KEY VALUE ...` in any order."""

from __future__ import annotations

import argparse
import runpy
import sys

import pytest

from crbp_d2.engine import KeyValueParser, argument_parser
from tests.modeling.conftest import CONFIGS

QUICK = str(CONFIGS / "quick" / "pathfinder_crbp.yaml")


@pytest.mark.parametrize(
    ("words", "opts"),
    [
        (["--resume", "A.B", "1"], ["A.B", "1"]),
        (["A.B", "1", "--resume"], ["A.B", "1"]),
        (["A.B", "-1", "--resume", "C", "-1e-3"], ["A.B", "-1", "C", "-1e-3"]),
        (["A.B", "(1, 2)", "--num-gpus", "1", "C", "", "--resume"], ["A.B", "(1, 2)", "C", ""]),
        (["--resume"], []),
        (["A.B", "--resume"], ["A.B"]),
    ],
)
def test_options_may_follow_keys_and_values(words, opts):
    parsed = argument_parser().parse_args(["--config-file", "one.yaml", *words])
    assert (parsed.config_file, parsed.resume, parsed.eval_only) == ("one.yaml", True, False)
    assert parsed.opts == opts and parsed.num_gpus == 1


def test_of_two_values_of_an_option_the_last_counts():
    parsed = argument_parser().parse_args(["--num-gpus", "2", "A", "1", "--num-gpus=3"])
    assert parsed.num_gpus == 3


def test_a_required_option_may_follow_and_may_not_be_missing(capsys):
    parser = KeyValueParser()
    parser.add_argument("--output", required=True)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(["A", "1", "--output", "out", "B", "2", "--count", "3"])
    assert (parsed.output, parsed.count, parsed.opts) == ("out", 3, ["A", "1", "B", "2"])
    with pytest.raises(SystemExit):
        parser.parse_args(["A", "1", "--count", "3"])
    assert "the following arguments are required: --output" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["train_net.py", "eval_steps.py", "demo.py", "benchmark_data.py"])
def test_an_unknown_option_after_keys_and_values_is_named(tool, monkeypatch, capsys):
    words = ["--config-file", QUICK, "CRBP.SOLVER.STEPS", "3", "--no-such-option"]
    words += ["--output", "out"] if tool == "demo.py" else []
    monkeypatch.setattr(sys, "argv", [tool, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(CONFIGS.parent / "tools" / tool), run_name="__main__")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and last.startswith(f"{tool}: error: unrecognized arguments: --no")


def test_help_names_examples_and_options_once(capsys):
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["--help"])
    said = capsys.readouterr().out
    assert said.count("--resume  ") == 1 and "go on after an interruption" in said
