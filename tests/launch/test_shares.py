"""What the processes of a run see together, and learn together: what one process would.

Their data workers are spawned, as in a run that is started by `--num-gpus`, and know no process
group.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

import crbp_d2.modeling  # noqa: F401  registers heads and backbone
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import (
    build_test_loader,
    build_train_loader,
    ensure_prepared,
    register_panoptic,
    require_even_batches,
)
from crbp_d2.launch import form_local_groups
from crbp_d2.place import Place
from tests.data.mixed_data import registered, write_mixed
from tests.data.panoptic_data import Written
from tests.distributed import run_processes
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

NAME = "mixed_shares"
BATCHES = 3
# Without batch norm, as its means are over the images of a process.
PATHFINDER = (
    "SOLVER.IMS_PER_BATCH",
    4,
    "CRBP.SOLVER.STEPS",
    6,
    "MODEL.SEM_SEG_HEAD.OUTPUT_NORM",
    "GN",
)
PANOPTIC = (
    *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "SOLVER.IMS_PER_BATCH", 2),
    *("INPUT.MIN_SIZE_TRAIN", (48, 64)),
)
# Number of workers, config, overrides.
STREAMS: dict[str, tuple[int, str, tuple[object, ...]]] = {
    "fresh images": (2, "quick/pathfinder_crbp.yaml", (*PATHFINDER, "DATALOADER.ENDLESS", True)),
    "panoptic images": (1, "quick/shapes_crbp.yaml", PANOPTIC),
    "drawn images": (0, "quick/pathfinder_crbp.yaml", (*PATHFINDER, "DATALOADER.ENDLESS", False)),
    "groups of alike shape": (
        *(0, "quick/shapes_crbp.yaml"),
        (*PANOPTIC, "DATALOADER.ASPECT_RATIO_GROUPING", True),
    ),
}


def config(stream: str, *, workers: int | None = None) -> CfgNode:
    usual, name, overrides = STREAMS[stream]
    return read_config(
        str(CONFIGS / name),
        list(map(str, ("SEED", 3, "MODEL.DEVICE", "cpu", *overrides)))
        + ["DATALOADER.NUM_WORKERS", str(usual if workers is None else workers)],
    )


def batches(stream: str, *, workers: int | None = None) -> list[list[dict[str, Any]]]:
    cfg = config(stream, workers=workers)
    return list(itertools.islice(build_train_loader(cfg), BATCHES))


def seen(found: list[list[dict[str, Any]]]) -> torch.Tensor:
    """`(batches, images, 2)`: each image's number, and a sum that no other view of it has."""
    return torch.tensor(
        [[[image["image_id"], fingerprint(image["image"])] for image in batch] for batch in found],
        dtype=torch.float64,
    )


def fingerprint(image: torch.Tensor) -> float:
    pixels = image.double().flatten()
    return float(pixels @ torch.linspace(1, 2, len(pixels), dtype=torch.float64)) + len(pixels)


def gradient(cfg: CfgNode, batch: list[dict[str, Any]]) -> torch.Tensor:
    """Of the losses of one batch, over all processes."""
    torch.manual_seed(0)
    model = build_model(cfg)
    several = comm.get_world_size() > 1
    runner = torch.nn.parallel.DistributedDataParallel(model) if several else model
    with EventStorage():
        losses = runner(batch)
    sum(losses.values()).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])


def _process(written: Written, rank: int, world: int) -> dict[str, Any]:
    # As Detectron2 0.6 is, which forms no local groups for others.
    del comm.create_local_process_group
    form_local_groups(Place(rank, world, rank, world))
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, world)
    register_panoptic(NAME, **written.arguments())
    streams = {stream: batches(stream) for stream in STREAMS}
    test_loader = build_test_loader(config("panoptic images", workers=0), NAME)
    tested = [record["image_id"] for (record,) in test_loader]
    cfg = config("fresh images")
    return {
        "seen": {stream: seen(found) for stream, found in streams.items()},
        "tested": tested,
        "gradient": gradient(cfg, streams["fresh images"][0]),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    made = write_mixed(tmp_path_factory.mktemp("shares") / "data", ((96, 61), (57, 140), (48, 75)))
    with registered(NAME, made.arguments()):
        ensure_prepared(NAME, workers=1)
        yield made


@pytest.fixture(scope="module")
def both(written: Written) -> list[Any]:
    return run_processes(functools.partial(_process, written), 2)


@pytest.mark.parametrize("stream", [name for name in STREAMS if name != "groups of alike shape"])
def test_two_processes_share_the_images_of_one(both, stream: str):
    first, second = (process["seen"][stream] for process in both)
    for workers in (0, 1, 2):
        alone = seen(batches(stream, workers=workers))
        # By turns within each batch.
        assert torch.equal(torch.stack([first, second], dim=2).flatten(1, 2), alone)


def test_two_processes_with_groups_see_different_images(both):
    first, second = (process["seen"]["groups of alike shape"] for process in both)
    # Of three images, of which one is the only tall one, two processes see two at a time.
    assert not torch.equal(first[..., 0], second[..., 0])
    assert not torch.equal(first[..., 1], second[..., 1])


def test_runs_without_a_seed_have_different_orders(written):
    cfg = config("panoptic images")
    cfg.SEED = -1
    first, second = (
        [image["image_id"] for batch in itertools.islice(loader, 20) for image in batch]
        for loader in (build_train_loader(cfg), build_train_loader(cfg))
    )
    assert first != second and sorted(first[:3]) == sorted(second[:3]) == [1, 2, 3]


def test_every_test_image_is_seen_once(both):
    assert sorted(both[0]["tested"] + both[1]["tested"]) == [1, 2, 3]


def test_gradients_are_those_of_one_process_with_all_images(both):
    alone = gradient(config("fresh images"), batches("fresh images", workers=0)[0])
    for process in both:
        # Sums of float32 in another order.
        assert float((process["gradient"] - alone).norm() / alone.norm()) < 1e-5


def test_a_batch_that_processes_cannot_share_is_refused_by_its_key():
    cfg = config("drawn images")
    cfg.SOLVER.IMS_PER_BATCH = 3
    build_train_loader(cfg)
    with pytest.raises(ConfigurationError, match=r"SOLVER\.IMS_PER_BATCH is 3: .* 2 processes"):
        require_even_batches(cfg, 2)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    with pytest.raises(ConfigurationError, match=r"SOLVER\.REFERENCE_WORLD_SIZE"):
        require_even_batches(cfg, 3)
    cfg.SOLVER.IMS_PER_BATCH = 4
    require_even_batches(cfg, 3)
