"""Options and `KEY VALUE ...` in any order."""

from __future__ import annotations

import argparse
import runpy
import sys
from types import SimpleNamespace

import pytest

from crbp_d2.core import ConfigurationError
from crbp_d2.engine import KeyValueParser, argument_parser, run_command
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


@pytest.mark.parametrize(
    "words",
    [
        ["train_net.py", "--config-file", QUICK, "CRBP.SOLVER.STEPS", "3", "--no-such-option"],
        ["demo.py", "outputs/a", "--opts", "CRBP.SOLVER.STEPS", "3", "--no-such-option"],
        ["analyze.py", "steps", "outputs/a", "--opts", "SEED", "3", "--no-such-option"],
        ["benchmark.py", "data", QUICK, "--opts", "SEED", "3", "--no-such-option"],
    ],
    ids=lambda words: words[0],
)
def test_an_unknown_option_after_keys_and_values_is_named(words, monkeypatch, capsys):
    tool, *words = words
    words += ["--output", "out"] if tool == "demo.py" else []
    monkeypatch.setattr(sys, "argv", [tool, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(CONFIGS.parent / "tools" / tool), run_name="__main__")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and last.startswith(f"{tool}: error: unrecognized arguments: --no")


def command(explanation: str, error: Exception | None = None) -> SimpleNamespace:
    def add_arguments(parser):
        parser.add_argument("--count", type=int)

    def run(arguments):
        print(arguments.count)  # noqa: T201
        if error is not None:
            raise error

    return SimpleNamespace(__doc__=explanation, add_arguments=add_arguments, run=run)


def test_a_command_is_run_with_its_own_arguments(capsys):
    commands = {"one": command("First.\n\nMore."), "two": command("Second.")}
    run_command("A program.", commands, ["one", "--count", "3"])
    assert capsys.readouterr().out == "3\n"
    for words, shown in ((["--help"], "First."), (["one", "--help"], "More.")):
        with pytest.raises(SystemExit):
            run_command("A program.", commands, words)
        assert shown in capsys.readouterr().out
    for words in ([], ["three"]):
        with pytest.raises(SystemExit) as ended:
            run_command("A program.", commands, words)
        assert ended.value.code == 2
        assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("steps: too few"),
        ValueError("steps: too few"),
        KeyError("steps: too few"),
    ],
)
def test_a_mistake_ends_a_command_with_its_message_alone(error, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command("A program.", {"one": command("First.", error)}, ["one"])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and last.endswith("one: error: steps: too few")


def test_help_names_examples_and_options_once(capsys):
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["--help"])
    said = capsys.readouterr().out
    assert said.count("--resume  ") == 1 and "go on after an interruption" in said
