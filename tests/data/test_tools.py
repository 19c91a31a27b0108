"""The command-line tools, called in this process."""

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from crbp_d2.launch import run_alone

from .panoptic_data import HEIGHT, WIDTH, write_panoptic
from .test_cache import contents

TOOLS = Path(__file__).parents[2] / "datasets"
NAMES = sorted(path.stem for path in TOOLS.glob("prepare_*.py"))


def tool(name: str) -> Callable[[Sequence[str]], None]:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def refusal(name: str, arguments: Sequence[str]) -> str:
    """The message with which a tool ends, after nothing else but the log."""
    with pytest.raises(SystemExit) as ended:
        run_alone(functools.partial(tool(name), arguments), {})
    message = ended.value.code
    assert isinstance(message, str)
    return message.strip()


def panoptic_arguments(folder: Path) -> list[str]:
    return [
        "--name=from_tool",
        f"--images={folder / 'images'}",
        f"--panoptic-json={folder / 'panoptic.json'}",
        f"--panoptic-pngs={folder / 'pngs'}",
        f"--cache={folder / 'cache'}",
        "--workers=1",
    ]


def test_prepare_panoptic_prints_lines_that_work(tmp_path: Path, capsys) -> None:
    write_panoptic(tmp_path / "data")
    tool("prepare_panoptic")(panoptic_arguments(tmp_path / "data"))
    output = capsys.readouterr().out
    assert "|    1 | dog        | thing  |          3 |" in output
    assert "3 images (0 without any segment left out), 2 thing and 2 stuff categories" in output
    lines = [line.strip() for line in output.split("To use it:")[1].strip().splitlines()]
    assert len(lines) == 3
    variables = {"cfg": get_cfg()}
    exec("\n".join(lines), variables)
    assert variables["cfg"].MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    made = contents(tmp_path / "data" / "cache")
    assert len(DatasetCatalog.get("from_tool")) == 3
    assert contents(tmp_path / "data" / "cache") == made


def test_prepare_panoptic_converts_deep_images(tmp_path: Path, capsys) -> None:
    data = write_panoptic(tmp_path / "data")
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(deep).save(data.images / "1.jpg", "png")
    arguments = [*panoptic_arguments(data.folder), "--name=deep_from_tool"]
    assert "give the data set an intensity_range" in refusal("prepare_panoptic", arguments)
    capsys.readouterr()
    tool("prepare_panoptic")([*arguments, "--intensity-range", "0", "4095"])
    output = capsys.readouterr().out
    assert "images converted to 8 bits: 1" in output
    lines = [line.strip() for line in output.split("To use it:")[1].strip().splitlines()]
    made = contents(data.folder / "cache")
    exec("\n".join(lines), {"cfg": get_cfg()})
    assert Path(DatasetCatalog.get("deep_from_tool")[1]["file_name"]).name == "1.jpg.png"
    assert contents(data.folder / "cache") == made


def test_prepare_panoptic_reports_problems(tmp_path: Path) -> None:
    data = write_panoptic(tmp_path / "data")
    (data.pngs / "1.png").unlink()
    message = refusal("prepare_panoptic", panoptic_arguments(data.folder))
    assert message.endswith("1.png: no such file; add the PNG or correct its file_name")


def test_prepare_shapes(tmp_path: Path, capsys) -> None:
    arguments = [f"--output={tmp_path / 'new'}", "--scenes=2", "--size=48", "--workers=1"]
    tool("prepare_shapes")(arguments)
    assert len(list((tmp_path / "new" / "images").iterdir())) == 2
    with pytest.raises(SystemExit):
        tool("prepare_shapes")(arguments)
    assert "exists; remove it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool("prepare_shapes")([f"--output={tmp_path / 'tiny'}", "--size=8"])
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool(name)(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert "example" in output and f"datasets/{name}.py --" in output


@pytest.mark.parametrize("name", NAMES)
def test_works_in_one_process_and_with_one_worker_at_least(name: str, capsys) -> None:
    assert "    run_alone(main)\n" in (TOOLS / f"{name}.py").read_text()
    with pytest.raises(SystemExit) as stopped:
        tool(name)(["--workers=0"])
    assert stopped.value.code == 2
    assert "--workers: 0: at least one is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("prepare_pathfinder", "--images=99999999999999999999", "must be from 1 to 10000000"),
        ("prepare_pathfinder", f"--preset=14@1{'0' * 400}", "images have at most 8192 a side"),
        ("prepare_pathfinder", "--preset=14@8193", "images have at most 8192 a side"),
        ("prepare_pathfinder", "--preset=99999999999@300", "contour_length=99999999999 must be at"),
        ("prepare_pathfinder", f"--preset={'9' * 5000}@300", "integer string conversion"),
        ("prepare_shapes", "--scenes=99999999999999999999", "from 1 to 1000000 scenes"),
        ("prepare_shapes", "--size=8193", "size must be from 32 to 8192"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    name: str, option: str, message: str, tmp_path: Path, capsys
) -> None:
    begun = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        tool(name)([f"--output={tmp_path / 'set'}", option])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert time.monotonic() - begun < 5 and not list(tmp_path.iterdir())


def test_contours_that_find_no_room_are_told_in_one_line(tmp_path: Path) -> None:
    arguments = [f"--output={tmp_path / 'set'}", "--preset=1000@300", "--images=1", "--workers=1"]
    message = refusal("prepare_pathfinder", arguments)
    assert message.startswith("two contours of contour_length=1000 dashes found no room in ")
    assert "\n" not in message
