"""The core is usable alone."""

from __future__ import annotations

import subprocess
import sys

HIDDEN = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"detectron2", "fvcore", "LabGym", "scipy", "cv2", "iopath"}:
            raise ImportError(name + " is hidden")

sys.meta_path.insert(0, Hide())
import torch
from crbp_d2.core import HGRUCell, build_recurrence
recurrence = build_recurrence("crbp", HGRUCell(channels=2, kernel_size=3), steps=3)
result = recurrence(torch.rand(2, 2, 5, 5))
(result.state.sum() + sum(result.penalties.values())).backward()
try:
    build_recurrence("implicit", HGRUCell(channels=2), steps=3)(torch.rand(1, 2, 5, 5))
except ValueError as error:
    print("says:", error)
"""


def test_the_core_needs_torch_alone():
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "says: `implicit` needs SciPy: pip install scipy"
