"""Processes of this machine that a plug-in started for an attempt: found in /proc, and ended.

A plug-in starts processes as it likes, so they carry no mark of ours. Two things give them away: the thread that made
them (proc(5), task/TID/children), and the attempt's folder in their command line or environment, which every ramp-test
has there. Blocking.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rampd.workers.containment import start_time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_PROC = Path("/proc")
_SLICE_S = 0.01
_KILL_S = 5.0
"""How long the kernel may take to end what was killed."""


Known = frozenset[tuple[int, int]]
"""Processes by pid and start time: a pid alone is used again."""


def descendants_of(threads: Collection[int], known: Known = frozenset()) -> Known:
    """Return the living processes that come from these threads of this process, by their kernel ids.

    Those that were known before, and live, stay known, whoever their parent is now.
    """
    children = {pid for thread in threads for pid in _children_of(f"self/task/{thread}")}
    found = {(pid, start) for pid in _with_descendants(children) if (start := start_time_of(pid)) is not None}
    return frozenset(found | {(pid, start) for pid, start in known - found if start_time_of(pid) == start})


def processes_of(folder: Path, threads: Collection[int] = (), known: Known = frozenset()) -> set[int]:
    """Return the living processes of an attempt.

    Parameters
    ----------
    folder
        The attempt's; or the folder of all attempts.
    threads
        Kernel ids of threads of this process whose children are the attempt's.
    known
        What was seen before: a process whose parent has ended leads back to nobody.
    """
    still = {pid for pid, start in known if start_time_of(pid) == start}
    children = {pid for thread in threads for pid in _children_of(f"self/task/{thread}")}
    return _with_descendants(still | children | processes_naming(folder))


def processes_naming(folder: Path) -> set[int]:
    """Return the living processes that name a folder, or something in it, and are nobody's at another terminal."""
    # A person who looks into the folder with a pager names it as well: at a terminal of their own.
    terminals = {0, _terminal_of("self")}
    needle = os.fsencode(folder)
    return {
        int(name)
        for name in _pids()
        if int(name) != os.getpid()
        and _names(name, needle)
        and _terminal_of(name) in terminals
        and start_time_of(int(name)) is not None
    }


def _pids() -> Iterator[str]:
    return (path.name for path in _PROC.iterdir() if path.name.isdigit())


def _names(pid: str, needle: bytes) -> bool:
    for file in ("cmdline", "environ"):
        try:
            words = (_PROC / pid / file).read_bytes()
        except OSError:
            continue
        begin = words.find(needle)
        while begin >= 0:
            # `…/attempts/ab` is not `…/attempts/abc`.
            if words[begin + len(needle) : begin + len(needle) + 1] in (b"", b"\0", b"/", b":"):
                return True
            begin = words.find(needle, begin + 1)
    return False


def _terminal_of(pid: str) -> int | None:
    try:
        return int((_PROC / pid / "stat").read_bytes().rpartition(b")")[2].split()[4])
    except OSError:
        return None


def _children_of(task: str) -> list[int]:
    try:
        return [int(word) for word in (_PROC / task / "children").read_bytes().split()]
    except OSError:
        return []


def _with_descendants(pids: set[int]) -> set[int]:
    found: set[int] = set()
    pending = list(pids)
    while pending:
        pid = pending.pop()
        if pid in found:
            continue
        found.add(pid)
        with suppress(OSError):
            for task in (_PROC / str(pid) / "task").iterdir():
                pending += _children_of(f"{pid}/task/{task.name}")
    return {pid for pid in found if start_time_of(pid) is not None}


def end_all(find: Callable[[], set[int]], *, patience_s: float) -> list[int]:
    """Send TERM to whatever `find` finds, and KILL to what is left of it after `patience_s`, until nothing is.

    Returns
    -------
    list of int
        The pids of what was found.
    """
    ended: set[int] = set()
    number, deadline = signal.SIGTERM, time.monotonic() + patience_s
    while alive := find():
        if time.monotonic() > deadline:
            if number is signal.SIGKILL:
                break
            number, deadline = signal.SIGKILL, time.monotonic() + _KILL_S
        for pid in alive if number is signal.SIGKILL else alive - ended:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        ended |= alive
        time.sleep(_SLICE_S)
    return sorted(ended)


def reap(pids: Collection[int]) -> None:
    """Collect those children of this process that have ended, once nobody else will ask for their status."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
