"""Real processes of a plug-in's: found by who made them and by what they name, and ended."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from rampd.workers.containment import start_time_of
from rampd.workers.stray_processes import descendants_of, end_all, processes_naming, processes_of, reap
from support.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Process = subprocess.Popen[bytes]


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Give a list whose processes are killed and waited for."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _below(process: Process) -> set[int]:
    """Return the pids of all that descends from a process: the thread that tests has other children, which stay."""
    return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}


def _tree(started: list[Process], *words: str) -> Process:
    """Start a shell with a child, and one in a session of its own; it says when they are there."""
    script = "setsid sleep 1000 & sleep 1000 & echo there; wait"
    process = subprocess.Popen(["sh", "-c", script, *words], stdout=subprocess.PIPE)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    return process


def test_a_folder_gives_them_away(started: list[Process], tmp_path: Path) -> None:
    """What names the attempt's folder is found with all that descends from it; what names another is not."""
    folder = tmp_path / "attempts" / "ab"
    mine = _tree(started, f"{folder}/submissions")
    other = _tree(started, f"{tmp_path}/attempts/abc/submissions")
    named = subprocess.Popen(["sleep", "1000"], env={"PLACE": str(folder)})
    started.append(named)
    # What has been forked and not become another program yet names what its parent does.
    wait_until(
        lambda: len(processes_of(folder)) == 4 and processes_naming(folder) == {mine.pid, named.pid}, what="the tree"
    )
    assert other.pid not in processes_of(folder)
    assert {mine.pid, other.pid, named.pid} <= processes_of(tmp_path / "attempts")
    end_all(partial(processes_of, tmp_path / "attempts"), patience_s=0.0)


def test_the_thread_gives_them_away(started: list[Process], tmp_path: Path) -> None:
    """Children of the given threads are found though they name nothing; those of other threads are not."""
    ids: list[int] = []
    go_on = threading.Event()

    def start() -> None:
        _tree(started)
        ids.append(threading.get_native_id())
        go_on.wait(30)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(ids) == 2)
    try:
        found = processes_of(tmp_path, ids[:1])
        assert len(found) == 3
        assert {pid for pid, _ in descendants_of(ids[:1])} == found
        assert not found & processes_of(tmp_path, ids[1:])
        end_all(partial(processes_of, tmp_path, ids), patience_s=0.0)
        assert processes_of(tmp_path, ids) == set()
    finally:
        go_on.set()
        for thread in threads:
            thread.join()


def test_what_was_seen_is_found_when_its_parent_is_gone(started: list[Process], tmp_path: Path) -> None:
    """An orphan that names nothing is known by pid and start time; another process of that pid is not."""
    parent = _tree(started)
    mine = threading.get_native_id()
    below = _below(parent)
    known = frozenset((pid, start) for pid, start in descendants_of([mine]) if pid in below)
    assert len(known) == 2
    parent.kill()
    parent.wait()
    assert processes_of(tmp_path, (), known) == {pid for pid, _ in known}
    assert processes_of(tmp_path, (), frozenset((pid, start + 1) for pid, start in known)) == set()
    end_all(partial(processes_of, tmp_path, (), known), patience_s=0.0)
    assert [start_time_of(pid) for pid, _ in known] == [None] * len(known)


def test_somebody_who_looks_into_the_folder_is_left_alone(started: list[Process], tmp_path: Path) -> None:
    """A pager at another terminal names the folder, and is a person's."""
    ours, theirs = pty.openpty()
    words = ["setsid", "--ctty", "sh", "-c", "echo there; sleep 1000; true", str(tmp_path)]
    started.append(subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE))
    os.close(theirs)
    try:
        assert started[0].stdout is not None
        assert started[0].stdout.readline() == b"there\n"
        assert processes_naming(tmp_path) == set()
    finally:
        all_of_it = {started[0].pid, *_below(started[0])}
        os.close(ours)
        end_all(lambda: {pid for pid in all_of_it if start_time_of(pid) is not None}, patience_s=0.0)


def test_term_comes_before_kill(started: list[Process], tmp_path: Path) -> None:
    """What obeys a TERM ends by it; what does not is killed after its time."""
    program = "import signal, sys, time\n{}\nprint('there', flush=True)\ntime.sleep(1000)"
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    for line in ("", ignore):
        words = [sys.executable, "-IS", "-c", program.format(line), str(tmp_path)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
    ended = end_all(partial(processes_of, tmp_path), patience_s=0.3)
    assert set(ended) == {process.pid for process in started}
    assert [process.wait() for process in started] == [-15, -9]


def test_what_ended_is_reaped() -> None:
    """A child that nobody asked for leaves no zombie, and one that is no child of ours is passed over."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    wait_until(lambda: start_time_of(pid) is None)
    reap([pid, 1])
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
