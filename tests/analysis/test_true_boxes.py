"""Masks in the boxes of the truth: of every step, at the size of the file, scored alone."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog
from torch import nn

from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.true_boxes import (
    TRUE_BOX_SCORES,
    masks_in_true_boxes,
    scores_in_true_boxes,
    true_mapper,
)
from tests.analysis.panoptic_models import tiny_model
from tests.data.mixed_data import registered, write_mixed

NAME = "test_true_boxes_mixed"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("true_boxes")
    with registered(NAME, write_mixed(folder / "data").arguments()):
        yield tiny_model(NAME, "INPUT.MIN_SIZE_TEST", 64)


def mapped_of(cfg) -> list[dict]:
    mapper = true_mapper(cfg)
    found = [mapper(record) for record in DatasetCatalog.get(NAME)]
    return [one for one in found if len(one["instances"])]


def test_masks_of_a_step_are_those_of_a_run_that_ends_with_it(made):
    cfg, model = made
    model.eval()
    recurrence = find_recurrence(model)
    usual = recurrence.test_steps
    for mapped in mapped_of(cfg):
        together = list(masks_in_true_boxes(model, mapped, [1, 3]))
        for step, found in zip([1, 3], together, strict=True):
            recurrence.test_steps = step
            (alone,) = masks_in_true_boxes(model, mapped, None)
            recurrence.test_steps = usual
            assert torch.equal(found.pred_masks, alone.pred_masks)
            assert found.image_size == (mapped["height"], mapped["width"])
            assert found.pred_masks.shape[1:] == found.image_size
            torch.testing.assert_close(found.pred_boxes.tensor, alone.pred_boxes.tensor)


class Fills(nn.Module):
    """A mask head that finds its whole boxes, or nothing: the objects of these data fill theirs."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, _features, instances):
        for one in instances:
            one.pred_masks = torch.full((len(one), 1, 28, 28), self.value)
        return instances


def test_all_objects_are_scored_in_their_own_boxes(made, monkeypatch):
    cfg, model = made
    model.eval()
    # Without a recurrence all steps are alike.
    for value, expected in ((1.0, 100.0), (0.0, 0.0)):
        monkeypatch.setitem(model.roi_heads._modules, "mask_head", Fills(value))
        scores = scores_in_true_boxes(model, cfg, NAME, [1, 2, 4])
        assert scores == [dict.fromkeys(TRUE_BOX_SCORES, pytest.approx(expected))] * 3


def test_a_recurrent_head_is_scored_at_every_step(made):
    cfg, model = made
    scores = scores_in_true_boxes(model.eval(), cfg, NAME, [1, 5])
    assert [list(one) for one in scores] == [list(TRUE_BOX_SCORES)] * 2
    assert all(0 <= value <= 100 for one in scores for value in one.values())
