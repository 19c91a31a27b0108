"""Streams that a resumed run continues exactly."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader

from crbp_d2.data.sampler import (
    ResumableTrainingSampler,
    SeededMapDataset,
    build_resumable_train_loader,
    seeded_generators,
    seek,
)

RECORDS = [{"number": number} for number in range(10)]


def _take(iterable, count: int) -> list:
    return list(itertools.islice(iterable, count))


def _noisy(record: dict) -> tuple[int, float, float, float]:
    """Draws from all generators, as augmentations may."""
    return record["number"], random.random(), np.random.random(), torch.rand(()).item()


def test_every_epoch_is_another_permutation():
    stream = _take(ResumableTrainingSampler(10, seed=3), 30)
    epochs = [stream[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(10))
    assert _take(ResumableTrainingSampler(10, seed=4), 30) != stream
    in_order = _take(ResumableTrainingSampler(10, shuffle=False, seed=3), 25)
    assert in_order == [*range(10), *range(10), *range(5)]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 27, 1_000_003])
def test_start_leaves_out_the_first_elements(start):
    kept = _take(ResumableTrainingSampler(10, seed=3, start=start), 15)
    assert (
        kept
        == _take(ResumableTrainingSampler(10, seed=3, start=start - start % 10), 30)[
            start % 10 : start % 10 + 15
        ]
    )
    if start < 100:
        assert kept == _take(ResumableTrainingSampler(10, seed=3), 200)[start : start + 15]


def test_stamped_indices_name_their_epoch():
    plain = _take(ResumableTrainingSampler(10, seed=3), 30)
    stamped = _take(ResumableTrainingSampler(10, seed=3, stamp_epochs=True), 30)
    assert [index % 10 for index in stamped] == plain
    assert [index // 10 for index in stamped] == [0] * 10 + [1] * 10 + [2] * 10


@pytest.mark.parametrize("wrong", [{"size": 0}, {"seed": -1}, {"start": -1}])
def test_wrong_arguments_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResumableTrainingSampler(**{"size": 10, "seed": 0, **wrong})


def test_it_serves_detectron2s_own_loader():
    sampler = ResumableTrainingSampler(len(RECORDS), seed=3, start=4)
    loader = build_detection_train_loader(
        RECORDS,
        mapper=lambda record: {**record, "width": 1, "height": 1},
        sampler=sampler,
        total_batch_size=2,
    )
    numbers = [record["number"] for batch in _take(loader, 6) for record in batch]
    assert numbers == _take(ResumableTrainingSampler(10, seed=3), 16)[4:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumed_loader_gives_what_the_uninterrupted_one_would_have(workers):
    options = {"mapper": _noisy, "total_batch_size": 3, "seed": 5}
    uninterrupted = _take(build_resumable_train_loader(RECORDS, **options), 12)
    assert len({sample for batch in uninterrupted for sample in batch}) == 36
    resumed = build_resumable_train_loader(
        RECORDS, **options, start_iteration=7, num_workers=workers
    )
    assert _take(resumed, 5) == uninterrupted[7:]
    late = build_resumable_train_loader(RECORDS, **options, num_workers=workers)
    seek(late, 7)
    assert _take(late, 5) == uninterrupted[7:]


def test_loading_leaves_the_models_generators_alone():
    dataset = SeededMapDataset(RECORDS, _noisy, seed=0)
    with seeded_generators(1):
        before = torch.rand(3), np.random.random(), random.random()
    with seeded_generators(1):
        assert dataset[3] == dataset[3] != dataset[13]
        after = torch.rand(3), np.random.random(), random.random()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_mapper_that_skips_records_is_refused():
    dataset = SeededMapDataset(RECORDS, lambda record: None, seed=0)
    with pytest.raises(ValueError, match="'number': 3"):
        dataset[13]


def test_seek_refuses_other_loaders():
    with pytest.raises(TypeError, match="build_resumable_train_loader"):
        seek(torch.utils.data.DataLoader([1, 2, 3]), 1)
