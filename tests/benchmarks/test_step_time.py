"""The benchmark: order, ratios, memory, and that every variant builds and runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from detectron2.utils.events import EventStorage

from benchmarks.measure import interleave, markdown, peak_bytes, resident_bytes
from benchmarks.subjects import SUBJECTS, Load, build_step, panoptic_model
from crbp_d2.core import ConfigurationError
from tests.modeling.conftest import CONFIGS, load_config  # noqa: F401  a fixture

pytestmark = pytest.mark.slow

TOOL = CONFIGS.parent / "tools" / "benchmark.py"


def test_variants_take_turns_and_are_compared_within_a_round():
    order = []

    def step(label: str, seconds: float):
        def run() -> None:
            order.append(label)
            time.sleep(seconds)

        return run

    first, second = interleave({"a": step("a", 0.002), "b": step("b", 0.004)}, 3)
    # Once each for the memory, then in turn.
    assert order == ["a", "b"] * 4
    assert first.ratios == [1, 1, 1] and len(second.seconds) == 3
    assert second.ratios == [b / a for a, b in zip(first.seconds, second.seconds, strict=True)]
    *_, line = markdown([first, second])
    assert line.startswith("| b | ") and line.endswith(" | - | - |")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its allocator is asked instead")
def test_memory_is_what_autograd_saves():
    value = torch.rand(1000, requires_grad=True)

    def step() -> None:
        ((value * 2).exp() ** 2).sum().backward()

    # exp saves its result, and the power its argument, which is the same tensor.
    assert peak_bytes(step) == 4000


def allocating():
    torch.ones(100_000_000).sum()  # the build's own peak does not count

    def step() -> None:
        torch.ones(25_000_000).sum()

    return step


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its allocator is asked instead")
def test_resident_memory_is_that_of_a_process_of_its_own():
    kept = torch.ones(50_000_000)  # which does not count
    assert 95e6 < resident_bytes(allocating) < 120e6
    assert kept[0] == 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["head", "contour"])
def test_every_variant_builds_and_runs(name, train):
    subject = SUBJECTS[name]
    for label in subject.training if train else subject.inference:
        variant = subject.variant(label)
        # Compilation takes as long as all the others; it is tested with the core.
        small = (*variant.overrides, "CRBP.SOLVER.COMPILE", False)
        if name == "contour":
            small = (*small, "CRBP.CELL.KERNEL_SIZE", 3)
        build_step(subject, replace(variant, overrides=small), CONFIGS, Load(1, 16), train=train)()


def test_a_label_says_which_levers_are_pulled():
    subject = SUBJECTS["head"]
    plain = subject.variant("crbp 20/15, plain")
    assert plain == replace(subject.variant("crbp 20/15"), label=plain.label)
    assert plain.config == "R50_FPN_crbp_1x.yaml"
    one = subject.variant("crbp 12/7, Anderson, bf16, compiled, penalty on 8, tested at 5")
    settings = dict(zip(one.overrides[::2], one.overrides[1::2], strict=True))
    assert settings == {
        "CRBP.ALGORITHM": "crbp",
        "CRBP.SOLVER.STEPS": 12,
        "CRBP.ADJOINT.TERMS": 7,
        "CRBP.ADJOINT.NAME": "anderson",
        "CRBP.SOLVER.NAME": "anderson",
        "CRBP.SOLVER.PRECISION": "bf16",
        "CRBP.ADJOINT.PRECISION": "bf16",
        "CRBP.SOLVER.COMPILE": True,
        "CRBP.PENALTY.SAMPLES": 8,
        "CRBP.SOLVER.TEST_STEPS": 5,
    }
    assert subject.variant("feed-forward").config == "R50_FPN_1x.yaml"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("feedforward", "begins with 'feedforward'"),
        ("crbp", "begins with 'crbp'"),
        ("crbp 0", "begins with 'crbp 0'"),
        ("backprop 5", "unknown algorithm 'backprop'"),
        ("crbp 20/15, fast", "has 'fast'; choose levers from Anderson adjoint"),
        ("crbp 20/15, chunks of N", "has 'chunks of N'"),
        ("crbp 20/15, chunks of 0", "has 'chunks of 0'"),
        ("crbp 20/15, bf16 2", "has 'bf16 2'"),
        ("crbp 20/15, plain, bf16", "has 'plain'"),
    ],
)
def test_another_label_is_refused(label, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        SUBJECTS["model"].variant(label)


@pytest.mark.parametrize("train", [True, False])
def test_whole_models_build_and_run(train):
    subject = SUBJECTS["model"]
    for label in subject.training[:3]:
        build_step(subject, subject.variant(label), CONFIGS, Load(1, 64, regions=3), train=train)()


@pytest.mark.parametrize("train", [True, False])
def test_the_mask_head_of_a_whole_model_gets_as_many_regions_as_asked_for(
    train,
    load_config,  # noqa: F811
):
    model, run = panoptic_model(load_config("R50_FPN_1x.yaml"), Load(2, 128, regions=5))
    seen = []
    head = model.train(train).roi_heads.mask_head
    head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with EventStorage(), torch.set_grad_enabled(train):
        run()
    assert seen == [10]


def test_one_command_prints_a_table_and_writes_the_numbers(tmp_path):
    command = [
        sys.executable, TOOL, "contour", "--count", "1", "--size", "16", "--rounds", "2",
        "--variants", "feed-forward", "bptt 1", "--output", tmp_path / "new" / "result",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "new" / "result.json").read_text())
    assert [one["label"] for one in content["measurements"]] == ["feed-forward", "bptt 1"]
    assert all(one["resident_bytes"] > 0 for one in content["measurements"])
    assert all(len(one["seconds"]) == 2 for one in content["measurements"])
    assert content["machine"]["torch"] == torch.__version__
    assert (tmp_path / "new" / "result.md").read_text() in done.stdout
    wrong = subprocess.run(
        [*map(str, command[:3]), "--variants", "bptt many"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2 and "begins with 'bptt many'; write 'feed-forward'" in wrong.stderr


def test_the_rate_of_the_data_is_printed(tmp_path):
    tool = [sys.executable, str(TOOL), "data"]
    command = [*tool, str(CONFIGS / "quick" / "pathfinder_bptt.yaml"), "--batches", "2"]
    done = subprocess.run([*command, "--rounds", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rate = float(re.search(r"pathfinder_tiny_train: ([\d.]+) images a second", done.stdout)[1])
    assert rate > 1
    wrong = subprocess.run([*tool, "none.yaml"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "none.yaml" in wrong.stderr
