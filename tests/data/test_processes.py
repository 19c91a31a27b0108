"""Processes that prepare data together: they wait with words, and end with each other."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crbp_d2.data import storage
from crbp_d2.data.files import explained, naming
from crbp_d2.data.parallel import ordered_map
from crbp_d2.data.processes import orderly_end
from crbp_d2.data.storage import locked, replacing
from crbp_d2.interruption import Interrupted, handling
from crbp_d2.launch import run_alone
from tests.faults.data_faults import is_alive, wait_for

FORK = multiprocessing.get_context("fork")


def _hold(folder: Path, has_it) -> None:
    with locked(folder):
        has_it.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """A process that holds the lock of `tmp_path / "set"`."""
    has_it = FORK.Event()
    process = FORK.Process(target=_hold, args=(tmp_path / "set", has_it))
    process.start()
    assert has_it.wait(60)
    assert process.pid is not None
    yield process.pid
    process.kill()
    process.join()


def test_who_waits_says_for_whom_and_how_that_is_stopped(
    tmp_path: Path, holder: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "_TELL_AFTER", 0.3)
    waiting = FORK.Process(target=_enter, args=(tmp_path / "set",))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()
    os.kill(holder, signal.SIGKILL)
    waiting.join(60)
    assert waiting.exitcode == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"{tmp_path / 'set'}: waiting for process {holder} on ")
    assert f"since {time.strftime('%Y-')}" in said and said.endswith(f"kill {holder}")
    assert said.count("\n") == 0


def _enter(folder: Path) -> None:
    storage.logger.warning = lambda message, *values: folder.with_name("said").write_text(
        message % values
    )
    with locked(folder):
        pass


def test_a_lock_ends_with_its_process_whatever_that_has_forked(tmp_path: Path) -> None:
    with locked(tmp_path / "set"):
        process = FORK.Process(target=time.sleep, args=(15,))
        process.start()
    begun = time.monotonic()
    with locked(tmp_path / "set"):
        assert time.monotonic() - begun < 5
    assert process.is_alive()
    process.kill()
    process.join()


def test_a_lock_that_is_deleted_with_its_folder_is_not_waited_for(
    tmp_path: Path, holder: int
) -> None:
    (tmp_path / ".set.lock").unlink()
    begun = time.monotonic()
    with locked(tmp_path / "set"):
        assert time.monotonic() - begun < 5


def _last(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_told_in_one_line() -> None:
    with pytest.raises(ChildProcessError) as caught:
        list(ordered_map(_last, range(9), workers=2))
    message = explained(caught.value)
    assert message.startswith("one of 2 worker processes was killed from outside")
    assert "fewer workers" in message and "\n" not in message


def _write(number: int) -> None:
    with naming(Path(f"file {number}")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disc_is_named_from_workers_too() -> None:
    with pytest.raises(OSError) as caught:
        list(ordered_map(_write, range(3), workers=2))
    assert explained(caught.value).startswith("file 0: No space left on device; make room there")


def _sleep(seconds: int) -> int:
    time.sleep(seconds)
    return os.getpid()


def _work(found) -> None:
    results = ordered_map(_sleep, [0, 0, 0, 600, 600], workers=2)
    for _ in range(3):
        found.put(next(results))
    next(results)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    found = FORK.Queue()
    process = FORK.Process(target=_work, args=(found,))
    process.start()
    workers = {found.get(timeout=60) for _ in range(3)}
    assert process.pid is not None and all(map(is_alive, workers))
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == -number
    wait_for(lambda: not any(map(is_alive, workers)), 10)


def test_sigterm_cleans_up_and_ends_with_its_code(tmp_path: Path, caplog) -> None:
    target = tmp_path / "set"
    target.mkdir()
    with pytest.raises(SystemExit) as ended, locked(target), replacing(target) as fresh:
        (fresh / "half").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert ended.value.code == 143
    assert "as told by SIGTERM" in caplog.text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["set"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_between_starting_workers_leaves_none_behind(monkeypatch) -> None:
    started = []
    start = FORK.Process.start

    def tell(process) -> None:
        start(process)
        if not started:
            os.kill(os.getpid(), signal.SIGTERM)
        started.append(process)

    monkeypatch.setattr(FORK.Process, "start", tell)
    with pytest.raises(Interrupted), handling():
        list(ordered_map(abs, range(50), workers=2))
    assert len(started) == 2
    wait_for(lambda: not any(process.is_alive() for process in started), 10)


@pytest.mark.parametrize("moment", ["mkdtemp", "rmtree"])
def test_a_signal_while_a_folder_is_made_or_removed_leaves_none_behind(
    moment, tmp_path: Path, monkeypatch
) -> None:
    module = {"mkdtemp": storage.tempfile, "rmtree": storage.shutil}[moment]
    usual = getattr(module, moment)

    def tell(*arguments, **options):
        if moment == "rmtree":
            os.kill(os.getpid(), signal.SIGTERM)
        made = usual(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return made

    monkeypatch.setattr(module, moment, tell)
    with pytest.raises(Interrupted), handling(), replacing(tmp_path / "set") as fresh:
        (fresh / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["set"] * (moment == "rmtree")


@pytest.mark.parametrize("name", ["set[1]", "set*", "s?t", "[!a]"])
def test_what_a_kill_left_is_removed_whatever_the_folder_is_called(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / f".{name}.making-killed").mkdir()
    # Of others, who may be at work there.
    others = [tmp_path / f".{other}.making-killed" for other in ("set1", "sets", "b")]
    for other in others:
        other.mkdir()
    with replacing(tmp_path / name) as fresh:
        (fresh / "file").touch()
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / name])


def test_what_a_killed_calls_worker_still_writes_is_removed_at_the_end(tmp_path: Path) -> None:
    with replacing(tmp_path / "set") as fresh:
        (fresh / "1.png").touch()
        late = tmp_path / ".set.making-late" / "new"
        late.mkdir(parents=True)
        (late / "2.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interruption_that_was_seen_to_is_over() -> None:
    with pytest.raises(Interrupted), handling():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert list(ordered_map(abs, [-1, -2], workers=2)) == [1, 2]


def test_what_a_program_does_at_sigterm_stays(tmp_path: Path) -> None:
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with orderly_end():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen == [signal.SIGTERM]


def test_files_are_on_the_disc_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def sync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename(old, new) -> None:
        done.append(f"{old} becomes {new}")
        renamed(old, new)

    renamed = os.rename
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    with replacing(tmp_path / "set") as fresh:
        (fresh / "folder").mkdir()
        for name in ("one", "folder/two"):
            (fresh / name).write_text(name)
    assert set(done[:2]) == {str(fresh / "one"), str(fresh / "folder" / "two")}
    assert done[2:] == [f"{fresh} becomes {tmp_path / 'set'}"]
    storage.write_whole(tmp_path / "file", b"content")
    assert done[3] == str(tmp_path / ".file.part")


def test_ctrl_c_ends_a_tool_in_one_line(capsys) -> None:
    def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    with pytest.raises(SystemExit) as ended:
        run_alone(main, {})
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("\nInterrupted by SIGINT: the same command")
