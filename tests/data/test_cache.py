"""Derived files: renewed with their sources, all or nothing, one process at a time."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.data import DatasetError, PanopticSource, prepare
from crbp_d2.data.parallel import ordered_map
from crbp_d2.data.storage import locked, replacing

from .panoptic_data import CUP, DOG, Written, segment_ids, write_panoptic


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def made_at(source: PanopticSource) -> int:
    return source.derived.stat().st_ino


def test_lies_beside_the_json_and_is_made_once(data: Written) -> None:
    source = PanopticSource.locate(**data.arguments())
    assert source.derived.parent == data.folder / "crbp_d2_cache"
    manifest = prepare(source)
    first = made_at(source)
    assert prepare(source) == manifest
    assert made_at(source) == first


def test_number_of_workers_changes_nothing(data: Written, tmp_path: Path) -> None:
    sources = [
        PanopticSource.locate(**data.arguments(), cache=tmp_path / str(workers))
        for workers in (1, 2)
    ]
    for workers, source in enumerate(sources, start=1):
        prepare(source, workers=workers)
    assert contents(sources[0].derived) == contents(sources[1].derived)


def change_json(data: Written) -> None:
    content = data.read()
    content["categories"][0]["name"] = "mug"
    data.write(content)


def change_png(data: Written) -> None:
    ids = segment_ids()
    ids[30:38, 2:4] = CUP
    Image.fromarray(id2rgb(ids)).save(data.pngs / "0.png")


def touch_image(data: Written) -> None:
    os.utime(data.images / "1.jpg", ns=(1, 1))


@pytest.mark.parametrize("change", [change_json, change_png, touch_image])
def test_renewed_when_a_source_changes(data: Written, change) -> None:
    source = PanopticSource.locate(**data.arguments())
    prepare(source)
    first, old = made_at(source), contents(source.derived)
    change(data)
    prepare(source)
    assert made_at(source) != first
    assert contents(source.derived) != old
    assert made_at(source) == made_at(source)
    if change is change_png:
        assert np.array(Image.open(source.stuff_maps / "0.png"))[32, 3] == 0


def test_failure_keeps_what_was_there(data: Written) -> None:
    source = PanopticSource.locate(**data.arguments())
    prepare(source)
    old = contents(source.derived)
    (data.pngs / "1.png").unlink()
    with pytest.raises(DatasetError, match="1.png"):
        prepare(source)
    assert contents(source.derived) == old
    assert [path.name for path in source.derived.parent.iterdir() if path.is_dir()] == [
        source.derived.name
    ]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    leftover = tmp_path / ".target.making-x"
    (leftover / "new").mkdir(parents=True)
    with locked(target), replacing(target) as fresh:
        (fresh / "file").write_text("new")
    assert not leftover.exists()
    assert (target / "file").read_text() == "new"


def test_read_only_data_use_the_users_cache(
    data: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data.folder.chmod(0o555)
    try:
        with caplog.at_level("INFO", logger="crbp_d2"):
            source = PanopticSource.locate(**data.arguments())
        prepare(source)
    finally:
        data.folder.chmod(0o755)
    assert source.derived.parent == tmp_path / "home" / "crbp_d2"
    assert "is read-only: using" in caplog.text
    assert source.measured_json.is_file()


def test_different_combinations_of_files_never_share(data: Written, tmp_path: Path) -> None:
    arguments = data.arguments()
    copy = tmp_path / "copy"
    copy.symlink_to(arguments["images"])
    other = PanopticSource.locate(**{**arguments, "images": copy})
    assert other.derived != PanopticSource.locate(**arguments).derived


def _prepare_together(source: PanopticSource, barrier, results) -> None:
    barrier.wait()
    prepare(source, workers=1)
    results.put(made_at(source))


def test_processes_that_start_together_make_it_once(data: Written) -> None:
    source = PanopticSource.locate(**data.arguments())
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_prepare_together, args=(source, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    seen = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    # Had the second one made it anew, it would have seen another folder.
    assert seen == {made_at(source)}


def _square_or_fail(number: int) -> int:
    if number == DOG:
        raise ValueError(f"{number} is refused")
    return number * number


def test_ordered_map_keeps_order_and_passes_errors_on() -> None:
    assert list(ordered_map(_square_or_fail, range(50), workers=2)) == [n * n for n in range(50)]
    with pytest.raises(ValueError, match="1000 is refused"):
        list(ordered_map(_square_or_fail, [1, DOG, 2], workers=2))
    with pytest.raises(ValueError, match="at least one"):
        list(ordered_map(_square_or_fail, [1], workers=0))


def test_ordered_map_reads_only_a_little_ahead() -> None:
    unread = iter(range(1000))
    results = ordered_map(_square_or_fail, unread, workers=2)
    assert [next(results) for _ in range(10)] == [n * n for n in range(10)]
    assert 10 <= next(unread) < 50
    results.close()
