"""What is used of Detectron2 is public, and called by arguments that the installed one has.

Read off the sources, as far as arguments are written out there, so that a change of Detectron2 is
told by the name of what it breaks. A function that hands `**options` on takes any keyword, until
one day it sets that option itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .checkout import ROOT

# Handed on by design: to DistributedDataParallel and torch.nn.Conv2d, or any name will do.
HANDED_ON = {
    "create_ddp_model": {"device_ids"},
    "Conv2d": {"kernel_size", "padding", "bias", "norm", "activation"},
    "DetectionCheckpointer": {"trainer"},
    "Instances": None,
}


class Use(NamedTuple):
    place: str
    module: str
    name: str
    call: ast.Call | None = None


def uses() -> Iterator[Use]:
    """Every name that a source file imports from Detectron2, and every call of one."""
    for file in sorted([*ROOT.glob("crbp_d2/**/*.py"), *ROOT.glob("tools/*.py")]):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        modules = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectron2"):
                for alias in node.names:
                    modules[alias.asname or alias.name] = (node.module or "", alias.name)
        for node in ast.walk(tree):
            place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in modules:
                yield Use(place, *modules[node.func.id], node)
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                # A function of a module, as comm.get_rank(), or of a class, as Boxes.cat(...).
                module, name = modules.get(node.func.value.id, ("", ""))
                if module:
                    yield Use(place, f"{module}.{name}", node.func.attr, node)
        for module, name in modules.values():
            yield Use(str(file.relative_to(ROOT)), module, name)


def found(use: Use) -> Any:
    """The object, or None where it is an object's method, which can't be looked up."""
    try:
        return getattr(importlib.import_module(use.module), use.name)
    except ModuleNotFoundError:
        module, _, owner = use.module.rpartition(".")
        return getattr(getattr(importlib.import_module(module), owner), use.name, None)


USES = list(uses())


def test_nothing_private_is_imported():
    names = [(use.place, *use.module.split("."), use.name) for use in USES]
    assert not [name for name in names if any(re.match(r"_[^_]", part) for part in name[1:])]


def test_everything_is_there():
    assert len({(use.module, use.name) for use in USES}) > 60
    assert not [use for use in USES if use.call is None and found(use) is None]


def test_calls_fit_the_signatures():
    wrong = []
    for use in USES:
        function = use.call and found(use)
        if not callable(function):
            continue
        parameters = inspect.signature(function).parameters.values()
        named = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
        named |= HANDED_ON.get(use.name) or set()
        for keyword in use.call.keywords:
            if keyword.arg not in {None, *named} and HANDED_ON.get(use.name, ()) is not None:
                wrong.append(f"{use.place}: {use.name} has no {keyword.arg}")
    assert not wrong
