"""Tensors that take long to make, kept in a file for the next call."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crbp_d2.data.storage import write_whole
from crbp_d2.weights.reading import UnreadableError, read_checkpoint


def kept(
    folder: Path, name: str, settings: Any, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make()` returns, read from the folder if it was made of the same settings before.

    Args:
        folder: of the file, `NAME_DIGEST.pt`.
        name: of what it holds.
        settings: all that it depends on, as JSON can say it.
        make: tensors by name in `model`, and numbers beside it. Called where the file is damaged,
            too.

    Raises:
        ConfigurationError: the file holds anything else than tensors and numbers.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{name}_{digest}.pt"
    try:
        return read_checkpoint(str(path))
    except UnreadableError:
        pass
    made = make()
    content = io.BytesIO()
    torch.save(made, content)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
    return made
