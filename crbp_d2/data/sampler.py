"""Training streams that depend on their seed alone, so that a resumed run continues them exactly.

Detectron2's TrainingSampler starts its stream anew when a run is resumed, and augmentations draw
from generators seeded by the worker: a resumed run sees other images than an uninterrupted one.
Here the position in the stream follows from the iteration, and the random generators of a sample
from its position. Neither depends on the number of workers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info


@functools.lru_cache(maxsize=2)
def _shuffled(size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return order.permutation(size)


class ResumableTrainingSampler(Sampler[int]):
    """An infinite stream of indices: every epoch a permutation of `range(size)`.

    The stream is common to all processes; each takes every world-size-th element, as with
    Detectron2's TrainingSampler. Which of them this process takes is decided when the sampler is
    built: it may be iterated over in a data worker, which knows no process group.

    Args:
        size: number of records in the data set.
        shuffle: whether to permute, anew in every epoch.
        seed: of the permutations, the same in all processes.
        start: elements of the common stream to leave out: iterations done times total batch size.
        stamp_epochs: add `epoch * size` to every index, so that no element ever repeats. For
            data sets that take such an index (`SeededMapDataset`).

    Raises:
        ValueError: `size` is not positive, or `seed` or `start` is negative.
        RuntimeError: when it is iterated over, as it was built before the process group.
    """

    def __init__(
        self,
        size: int,
        *,
        shuffle: bool = True,
        seed: int,
        start: int = 0,
        stamp_epochs: bool = False,
    ) -> None:
        if size <= 0:
            raise ValueError(f"size={size}: there is nothing to sample from")
        if seed < 0:
            raise ValueError(f"seed={seed}: a run that can be resumed needs a seed of at least 0")
        if start < 0:
            raise ValueError(f"start={start}: must be at least 0")
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.start = start
        self.stamp_epochs = stamp_epochs
        self.rank = comm.get_rank()
        self.world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        if get_worker_info() is None and comm.get_world_size() != self.world_size:
            raise RuntimeError(
                f"this sampler was built for {self.world_size} processes, but "
                f"{comm.get_world_size()} are running: build it after the process group, or all "
                "of them see the same images"
            )
        position = self.start + self.rank
        while True:
            epoch, index = divmod(position, self.size)
            if self.shuffle:
                index = int(_shuffled(self.size, self.seed, epoch)[index])
            yield index + epoch * self.size if self.stamp_epochs else index
            position += self.world_size


@contextmanager
def seeded_generators(*entropy: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and PyTorch (CPU), and restores them after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededMapDataset(Dataset[Any]):
    """Applies a mapper to records, with random generators that follow from the stamped index.

    Args:
        dataset: records by index.
        mapper: from a record to a model input; any Detectron2 mapper. It must not return None.
        seed: of the augmentations.
        endless: pass the stamped index itself to `dataset`, which then must take any index (as the
            drawn Pathfinder images do) and never repeats an image.
    """

    def __init__(
        self,
        dataset: Sequence[Any] | Dataset[Any],
        mapper: Callable[[Any], Any],
        *,
        seed: int,
        endless: bool = False,
    ) -> None:
        self.dataset: Any = (
            DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
        )
        self.mapper = mapper
        self.seed = seed
        self.endless = endless

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, stamped_index: int) -> Any:
        """The mapped record `stamped_index % len(self)` of epoch `stamped_index // len(self)`."""
        record = self.dataset[stamped_index if self.endless else stamped_index % len(self)]
        with seeded_generators(self.seed, stamped_index):
            sample = self.mapper(record)
        if sample is None:
            raise ValueError(
                f"the mapper returned None for {record!r}: a stream that can be resumed can't skip "
                "records; leave them out of the data set"
            )
        return sample


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` of a `SeededMapDataset` whose place in the stream `seek` can set.

    PyTorch's own, and not that of Detectron2's `build_batch_data_loader`: what that one accepts has
    changed from one version to the next, and it runs the sampler in the data workers.
    """

    def __iter__(self) -> Any:
        # As a generator it starts, and its workers with it, when the first batch is asked for: a
        # trainer may ask for the iterator before it has read from a checkpoint where to begin.
        yield from super().__iter__()


def build_resumable_train_loader(
    dataset: Sequence[Any] | Dataset[Any],
    *,
    mapper: Callable[[Any], Any],
    total_batch_size: int,
    seed: int,
    start_iteration: int = 0,
    shuffle: bool = True,
    endless: bool = False,
    num_workers: int = 0,
    **loader_options: Any,
) -> ResumableLoader:
    """A training loader that at any iteration gives what an uninterrupted run would have got.

    Images, order and augmentations depend on `seed` and the iteration alone. It takes the place of
    `build_detection_train_loader`, without grouping by aspect ratio: groups that wait for company
    would be lost when a run is interrupted.

    Args:
        dataset: a list of records, or a map-style data set, as for Detectron2's loader.
        mapper: from a record to a model input.
        total_batch_size: images an iteration, over all processes.
        seed: at least 0, the same in all processes.
        start_iteration: iterations already done; see also `seek`.
        endless: never repeat an image; see `SeededMapDataset`.
        loader_options: for `torch.utils.data.DataLoader`.

    Raises:
        ValueError: the processes can't share `total_batch_size` evenly, or the sampler refuses an
            argument.
    """
    seeded = SeededMapDataset(dataset, mapper, seed=seed, endless=endless)
    sampler = ResumableTrainingSampler(
        len(seeded),
        shuffle=shuffle,
        seed=seed,
        start=start_iteration * total_batch_size,
        stamp_epochs=True,
    )
    batch_size, rest = divmod(total_batch_size, sampler.world_size)
    if rest or batch_size < 1:
        raise ValueError(
            f"total_batch_size={total_batch_size}: must be a multiple of the {sampler.world_size} "
            "processes that share it"
        )
    # A generator of its own, as starting the loader would else draw from the model's.
    loader_options.setdefault("generator", torch.Generator().manual_seed(seed))
    # Images of one batch may differ in size: they stay a list.
    loader_options.setdefault("collate_fn", list)
    return ResumableLoader(
        seeded,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
        **loader_options,
    )


def is_resumable(loader: Any) -> bool:
    """Whether `seek` can move a loader."""
    return isinstance(loader, ResumableLoader)


def seek(loader: DataLoader[Any], iteration: int) -> None:
    """Let a loader of `build_resumable_train_loader` start at an iteration.

    For trainers that build their loader before they read the checkpoint. Call it before the first
    batch is taken: iterators that run already are not moved.

    Raises:
        TypeError: another loader.
    """
    if not is_resumable(loader) or loader.batch_size is None:
        raise TypeError("seek() needs a loader built by build_resumable_train_loader()")
    sampler: Any = loader.sampler
    sampler.start = iteration * loader.batch_size * sampler.world_size
