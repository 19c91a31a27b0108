"""Graphs written of a recurrence answer as it does, also to other sizes and without any sample."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from crbp_d2.core import (
    ConvLSTMCell,
    HGRUCell,
    MaskHGRUCell,
    NonFiniteError,
    ResidualCell,
    UnsupportedError,
    build_recurrence,
    to_parts,
    wrapped,
)
from crbp_d2.core.graphs import is_exporting
from crbp_d2.core.ops.activations import softplus

pytestmark = [
    # Python looks at shapes, which is what other sizes are tried for.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]

CELLS: dict[str, Callable[[], nn.Module]] = {
    "mask_hgru": lambda: MaskHGRUCell(channels=8),
    "hgru": lambda: HGRUCell(channels=8, kernel_size=3, norm="IN"),
    "residual": lambda: ResidualCell(channels=8),
    "conv_lstm": lambda: ConvLSTMCell(channels=8, kernel_size=3),
}
SHAPES = [(3, 8, 14, 10), (1, 8, 9, 20), (5, 8, 30, 7), (0, 8, 8, 8)]


class Answer(nn.Module):
    """The last state, or of several tensors the first."""

    def __init__(
        self, cell: nn.Module, chunk_samples: int | None = None, steps: int = 2, **solver: object
    ) -> None:
        super().__init__()
        self.recurrence = build_recurrence("crbp", cell, steps=steps, solver=solver)
        self.run = wrapped(self.recurrence, chunk_samples=chunk_samples)
        self.eval()

    def forward(self, drive: Tensor) -> Tensor:
        return to_parts(self.run(drive).state)[0]


def drives() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(shape) for shape in SHAPES]


def traced(model: nn.Module, drive: Tensor) -> Callable[[Tensor], Tensor]:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, drive), file)
    file.seek(0)
    return torch.jit.load(file)


def exported(model: nn.Module, drive: Tensor) -> Callable[[Tensor], Tensor]:
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (drive,), dynamic_shapes=({0: free, 2: free, 3: free},), strict=False
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def require_same(model: nn.Module, loaded: Callable[[Tensor], Tensor]) -> None:
    for drive in drives():
        with torch.no_grad():
            expected = model(drive)
        assert torch.equal(loaded(drive), expected)


@pytest.mark.parametrize("name", CELLS)
def test_a_traced_recurrence_that_was_saved_answers_the_same_to_other_sizes(name):
    torch.manual_seed(0)
    model = Answer(CELLS[name]())
    require_same(model, traced(model, drives()[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_an_exported_program_that_was_saved_answers_the_same_to_other_sizes(name):
    torch.manual_seed(0)
    model = Answer(CELLS[name]())
    require_same(model, exported(model, drives()[0]))


@pytest.mark.parametrize(
    "options", [{"name": "anderson"}, {"precision": "bf16"}, {"chunk_samples": 2}], ids=str
)
def test_solvers_and_chunks_are_traced_for_other_numbers_of_samples(options):
    torch.manual_seed(0)
    model = Answer(MaskHGRUCell(channels=8), **options)
    loaded = traced(model, drives()[0])
    for drive in drives():
        # Computed at once or in chunks, the last digits differ.
        assert torch.allclose(loaded(drive), model(drive), atol=1e-5)


def test_a_large_kernel_is_traced_without_the_tiles_of_one_size():
    torch.manual_seed(0)
    model = Answer(HGRUCell(channels=16, kernel_size=15, norm="IN"))
    loaded = traced(model, torch.rand(1, 16, 40, 40))
    for height, width in ((40, 40), (57, 90)):
        drive = torch.rand(1, 16, height, width)
        with torch.no_grad():
            assert model.recurrence.cell.suppression._in_fourier_domain(drive)
            assert torch.allclose(loaded(drive), model(drive), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_tolerance": 0.1}, "a tolerance stops steps by their values.*test_tolerance None"),
        ({"name": "torchdeq"}, "torchdeq stops by values.*take the solver steps"),
    ],
)
def test_what_stops_by_values_is_refused(options, message):
    if "name" in options:
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    model = Answer(MaskHGRUCell(channels=8), steps=6, **options)
    with pytest.raises(UnsupportedError, match=message):
        torch.jit.trace(model, drives()[0])
    with torch.no_grad():
        assert model(drives()[0]).isfinite().all()


def test_a_recurrence_in_training_is_not_traced():
    model = Answer(MaskHGRUCell(channels=8)).train()
    with pytest.raises(UnsupportedError, match=r"call eval\(\) first"):
        torch.jit.trace(model, drives()[0])


def test_checks_and_the_function_of_the_softplus_are_back_afterwards():
    torch.manual_seed(0)
    model, x = Answer(MaskHGRUCell(channels=8)), torch.tensor([0.5], requires_grad=True)
    during: list[bool] = []
    model.register_forward_hook(lambda *_: during.append(is_exporting()))
    torch.jit.trace(model, drives()[0], check_trace=False)
    assert during == [True] and not is_exporting()
    with pytest.raises(NonFiniteError, match="after step 1 of 2"):
        model(torch.full(SHAPES[0], float("nan")))
    assert softplus(x).grad_fn.name() == "_SoftplusBackward"
