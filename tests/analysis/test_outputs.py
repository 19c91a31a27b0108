"""What a model answers at every step, of images of any size at any test size."""

from __future__ import annotations

import copy

import pytest
import torch

from crbp_d2.analysis.outputs import find_recurrence, outputs_at, runs_agree
from crbp_d2.analysis.steps import evaluate_steps, step_evaluators
from crbp_d2.data import build_test_loader
from tests.analysis.linear import images, linear_model
from tests.analysis.panoptic_models import tiny_model, write_own_answers
from tests.data.mixed_data import registered, write_mixed
from tests.data.real_data import needs_real_data, real_arguments

NAME = "test_outputs"
STEPS = [1, 2, 5]
# Anchors far smaller than the image, or larger than it.
SIZES = ("INPUT.MIN_SIZE_TEST", 40), ("INPUT.MIN_SIZE_TEST", 75), ("INPUT.MIN_SIZE_TEST", 160)
OTHER_RUNS = [
    ("CRBP.SOLVER.PRECISION", "bf16"),
    ("CRBP.SOLVER.TEST_TOLERANCE", 0.5),
    ("CRBP.SOLVER.NAME", "anderson"),
    ("CRBP.ALGORITHM", "deq"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    written = write_mixed(tmp_path_factory.mktemp("outputs") / "data")
    with registered(NAME, written.arguments()):
        yield written


def answers_of_runs(model, batch: list[dict], steps: list[int]) -> dict[int, list[dict]]:
    """What the model itself returns, told to take so many steps."""
    recurrence, found = find_recurrence(model), {}
    for step in steps:
        recurrence.test_steps = step
        with torch.no_grad():
            found[step] = model(batch)
    return found


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    if "instances" not in expected:
        return
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    one, other = found["instances"], expected["instances"]
    assert one.image_size == other.image_size
    assert one.get_fields().keys() == other.get_fields().keys()
    assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(one.get(field), other.get(field)), field


@pytest.mark.parametrize("size", SIZES, ids=lambda pair: pair[1])
def test_every_step_of_an_image_of_another_size_is_what_the_model_returns(mixed, size):
    cfg, model = tiny_model(NAME, *size)
    moved = []
    for batch in build_test_loader(cfg, NAME):
        expected = answers_of_runs(model, batch, STEPS)
        for one in outputs_at(model, batch, STEPS):
            assert_equal(one.outputs[0], expected[one.step][0])
        first, last = (expected[step][0]["instances"].pred_masks for step in (1, 5))
        moved.append(not torch.equal(first, last))
        (alone,) = outputs_at(model, batch, STEPS[-1:])
        assert_equal(alone.outputs[0], expected[STEPS[-1]][0])
        assert torch.equal(alone.change, one.change)
    assert any(moved)


@pytest.mark.parametrize("run", OTHER_RUNS, ids=lambda pair: str(pair[1]))
def test_runs_that_differ_by_their_length_are_run_one_by_one(mixed, run):
    cfg, model = tiny_model(NAME, "INPUT.MIN_SIZE_TEST", 40, "CRBP.SOLVER.STEPS", 4, *run)
    assert not runs_agree(find_recurrence(model))
    steps = [4, 5, 9]
    batch = next(iter(build_test_loader(cfg, NAME)))
    expected = answers_of_runs(model, batch, steps)
    found = list(outputs_at(model, batch, steps))
    assert [one.step for one in found] == steps
    for one in found:
        assert_equal(one.outputs[0], expected[one.step][0])


def test_contours_at_another_size_than_their_image_are_what_the_model_returns():
    model, batch = linear_model(0.8, steps=4), images(3)
    batch[0].update(height=11, width=7)
    expected = answers_of_runs(model, batch, STEPS)
    for one in outputs_at(model, batch, STEPS):
        for found, usual in zip(one.outputs, expected[one.step], strict=True):
            assert_equal(found, usual)
    assert one.outputs[0]["sem_seg"].shape == (2, 11, 7)


def test_no_two_steps_share_what_can_be_changed(mixed):
    cfg, model = tiny_model(NAME, "INPUT.MIN_SIZE_TEST", 40)
    batch = next(iter(build_test_loader(cfg, NAME)))
    found = [one.outputs[0] for one in outputs_at(model, batch, STEPS)]
    later = copy.deepcopy(found[1:])
    found[0]["instances"].pred_boxes.scale(9, 9)
    found[0]["instances"].scores.zero_()
    found[0]["sem_seg"].zero_()
    found[0]["panoptic_seg"][0].zero_()
    for segment in found[0]["panoptic_seg"][1]:
        segment.clear()
    for one, kept in zip(found[1:], later, strict=True):
        assert_equal(one, kept)


def test_evaluators_leave_an_answer_as_it_was(mixed):
    cfg, model = tiny_model(NAME, "INPUT.MIN_SIZE_TEST", 40)
    batch = next(iter(build_test_loader(cfg, NAME)))
    (one,) = outputs_at(model, batch, [2])
    kept = copy.deepcopy(one.outputs[0])
    for evaluator in step_evaluators(NAME):
        evaluator.reset()
        evaluator.process(batch, one.outputs)
    assert_equal(one.outputs[0], kept)


def scores_against_own_answer(tmp_path, name: str, own: str, *overrides: object) -> list[float]:
    """PQ at `STEPS`, where what the model answers at the last of them is the truth."""
    cfg, model = tiny_model(name, *overrides)
    find_recurrence(model).test_steps = STEPS[-1]
    written = write_own_answers(tmp_path / own, name, cfg, model)
    with registered(own, written.arguments()):
        loader = build_test_loader(cfg, own, num_workers=0)
        found = evaluate_steps(model, loader, STEPS, step_evaluators(own))
    return [one.scores["PQ"] for one in found]


@pytest.mark.parametrize("size", SIZES, ids=lambda pair: pair[1])
def test_a_model_is_always_right_about_its_own_answer(mixed, size, tmp_path):
    *earlier, last = scores_against_own_answer(tmp_path, NAME, f"own_{size[1]}", *size)
    assert last == pytest.approx(100) and max(earlier) < 99.9


@needs_real_data
@pytest.mark.parametrize("kind", ["nuclei", "coco"])
def test_a_model_is_always_right_about_its_own_answer_to_real_images(kind, tmp_path):
    arguments = real_arguments(kind, tmp_path / "data", images=3)
    name = f"test_outputs_{kind}"
    with registered(name, arguments):
        size = ("INPUT.MIN_SIZE_TEST", 96)
        *earlier, last = scores_against_own_answer(tmp_path, name, f"{name}_own", *size)
    assert last == pytest.approx(100) and max(earlier) < 99.9
