"""Scores of hand-made predictions."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from torch.nn.functional import one_hot

from crbp_d2.data.pathfinder import PathfinderImages, PathfinderMapper
from crbp_d2.data.sampler import ResumableTrainingSampler
from crbp_d2.evaluation.pathfinder import PathfinderEvaluator, count_pixels, scores
from tests.distributed import run_processes


def _logits(prediction: torch.Tensor) -> torch.Tensor:
    """(2, H, W) of which `prediction` is the larger."""
    return 3 * one_hot(prediction, 2).permute(2, 0, 1).float() - 1


def _evaluate(pairs: list, **options) -> dict[str, float]:
    """Scores of (truth, prediction) pairs of nested lists."""
    evaluator = PathfinderEvaluator(**options)
    evaluator.reset()
    for truth, prediction in pairs:
        truth, prediction = torch.tensor(truth), torch.tensor(prediction)
        evaluator.process([{"sem_seg": truth}], [{"sem_seg": _logits(prediction)}])
    return evaluator.evaluate()["pathfinder"]


def test_pooled_and_mean_scores_of_known_predictions():
    # 2 hits, 1 false alarm, 1 miss, 4 rejections; then 1, 0, 3, 4.
    first = ([[1, 1, 1, 0], [0, 0, 0, 0]], [[1, 1, 0, 1], [0, 0, 0, 0]])
    second = ([[1, 1, 1, 1], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]])
    result = _evaluate([first, second])
    assert result == pytest.approx(
        {
            "F1": 6 / 11,
            "precision": 3 / 4,
            "recall": 3 / 7,
            "IoU": 3 / 8,
            "balanced_accuracy": (3 / 7 + 8 / 9) / 2,
            "image_F1": (2 / 3 + 2 / 5) / 2,
            "image_precision": (2 / 3 + 1) / 2,
            "image_recall": (2 / 3 + 1 / 4) / 2,
            "image_IoU": (2 / 4 + 1 / 4) / 2,
            "image_balanced_accuracy": ((2 / 3 + 4 / 5) / 2 + (1 / 4 + 1) / 2) / 2,
            # Both in the one batch.
            "batch_F1": 6 / 11,
            "batch_precision": 3 / 4,
            "batch_recall": 3 / 7,
            "batch_IoU": 3 / 8,
            "batch_balanced_accuracy": (3 / 7 + 8 / 9) / 2,
            "images": 2,
        }
    )


def test_batches_are_of_128_images_whatever_the_model_was_given_at_a_time():
    hit, miss = ([[1, 0]], [[1, 0]]), ([[1, 0]], [[0, 1]])
    # In batches of two images: 2 hits; 1 hit, 1 miss with its false alarm; a hit alone.
    result = _evaluate([hit, hit, hit, miss, hit], batch_images=2)
    assert result["batch_F1"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert result["F1"] == result["image_F1"] == pytest.approx(8 / 10)
    # 128 hits; 62 hits and 10 misses.
    result = _evaluate([hit] * 190 + [miss] * 10)
    assert result["batch_F1"] == pytest.approx((1 + 124 / 144) / 2)
    assert result["F1"] == pytest.approx(380 / 400)


def test_images_without_positive_pixels_have_defined_scores():
    nothing, something = [[0, 0]], [[1, 0]]
    correct = _evaluate([(nothing, nothing)])
    assert [correct[key] for key in ("F1", "precision", "recall", "IoU")] == [1, 1, 1, 1]
    assert correct["balanced_accuracy"] == 1
    invented = _evaluate([(nothing, something)])
    assert [invented[key] for key in ("F1", "precision", "recall", "IoU")] == [0, 0, 0, 0]
    assert invented["balanced_accuracy"] == 0.5
    overlooked = _evaluate([(something, nothing)])
    assert [overlooked[key] for key in ("F1", "precision", "recall", "IoU")] == [0, 0, 0, 0]
    assert overlooked["balanced_accuracy"] == 0.5
    everything = scores([4, 0, 0, 0])
    assert everything["balanced_accuracy"] == everything["F1"] == 1


def test_ignored_pixels_do_not_count():
    logits = _logits(torch.tensor([[1, 1, 0, 0]]))
    assert count_pixels(logits, torch.tensor([[1, 255, 255, 0]])) == [1, 0, 0, 1]


def test_truth_is_drawn_again_where_the_record_lacks_it():
    record = PathfinderImages("tiny", seed=2, size=3)[1]
    truth = PathfinderMapper(is_train=False)(record)["sem_seg"]
    evaluator = PathfinderEvaluator()
    evaluator.process([record], [{"sem_seg": _logits(truth)}])
    assert evaluator.evaluate()["pathfinder"]["F1"] == 1
    evaluator.reset()
    evaluator.process([record], [{"sem_seg": _logits(1 - truth)}])
    assert evaluator.evaluate()["pathfinder"]["F1"] == 0


def test_shapes_that_do_not_fit_are_refused():
    evaluator = PathfinderEvaluator()
    for shape in ((2, 4, 5), (1, 4, 4), (3, 4, 4)):
        with pytest.raises(ValueError, match=r"\(4, 4\)"):
            evaluator.process(
                [{"sem_seg": torch.zeros(4, 4, dtype=torch.long)}],
                [{"sem_seg": torch.zeros(shape)}],
            )
    evaluator.reset()
    with pytest.raises(ValueError, match="no image"):
        evaluator.evaluate()


def test_divergence_is_reported(caplog):
    evaluator = PathfinderEvaluator()
    logits = torch.full((2, 2, 2), float("nan"))
    evaluator.process([{"sem_seg": torch.eye(2).long()}], [{"sem_seg": logits}])
    with caplog.at_level(logging.WARNING, logger="crbp_d2.evaluation.pathfinder"):
        assert evaluator.evaluate()["pathfinder"]["F1"] == 0
    assert "1 of 1 predictions hold NaN" in caplog.text


class _Bright(torch.nn.Module):
    """Calls every bright pixel contour: finds the target, and all else that is drawn."""

    def forward(self, batch):
        return [{"sem_seg": _logits((sample["image"][0] > 127).long())} for sample in batch]


def test_it_serves_detectron2s_inference_loop():
    loader = build_detection_test_loader(
        list(DatasetCatalog.get("pathfinder_tiny_val"))[:8],
        mapper=PathfinderMapper(is_train=False),
        batch_size=3,
    )
    result = inference_on_dataset(_Bright(), loader, PathfinderEvaluator())["pathfinder"]
    assert result["images"] == 8
    # The rival and the two distractors have 10 of the 16 dashes.
    assert result["recall"] > 0.75 and 0.2 < result["precision"] < 0.6


def _rank(rank: int, world: int) -> torch.Tensor:
    """The elements of the common stream that a rank takes, then its scores."""
    stream = iter(ResumableTrainingSampler(10, seed=3, start=4))
    taken = [next(stream) for _ in range(6)]
    evaluator = PathfinderEvaluator()
    truth = torch.tensor([[1, 1, 0, 0]])
    prediction = torch.tensor([[1, rank, 1 - rank, 0]])
    for _ in range(1 + rank):
        evaluator.process([{"sem_seg": truth}], [{"sem_seg": _logits(prediction)}])
    result = evaluator.evaluate()
    assert (result is None) == (rank > 0)
    values = {} if result is None else result["pathfinder"]
    of_interest = [values.get(name, 0) for name in ("F1", "batch_F1", "images")]
    return torch.tensor([*taken, *of_interest], dtype=torch.float64)


def test_processes_share_the_stream_and_the_scores():
    first, second = run_processes(_rank, 2)
    stream = iter(ResumableTrainingSampler(10, seed=3, start=4))
    common = np.array([next(stream) for _ in range(12)]).reshape(6, 2).T
    assert first[:6].tolist() == common[0].tolist() and second[:6].tolist() == common[1].tolist()
    # Rank 0: 1 hit, 1 false alarm, 1 miss. Rank 1: twice 2 hits.
    assert first[6:].tolist() == pytest.approx([10 / 12, 10 / 12, 3])
