"""What autograd keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


def bytes_saved_by(run: Callable[[], object]) -> int:
    """The most bytes of distinct storages that autograd holds at a time while `run` runs, weights
    included."""
    holders: Counter[int] = Counter()
    held = peak = 0

    def release(address: int, size: int) -> None:
        nonlocal held
        holders[address] -= 1
        if not holders[address]:
            held -= size

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held, peak
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not holders[address]:
            held += size
            peak = max(peak, held)
        holders[address] += 1
        # Not the tensor itself: the graph would hold its own output, and never be freed.
        kept = tensor.detach()
        weakref.finalize(kept, release, address, size)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return peak
