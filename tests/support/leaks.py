"""What a test may not leave behind: processes, threads, open files, asyncio tasks."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_PATIENCE_S = 3.0
"""What ends by itself may take its time: threads that were told to, a killed process that the kernel still holds."""
_PR_SET_CHILD_SUBREAPER = 36
_FDS = Path("/proc/self/fd")


def adopt_orphans() -> None:
    """Become the parent of whatever our descendants leave behind (prctl(2)), so that `Snapshot` sees it.

    Otherwise the submissions of a killed daemon would be PID 1's, and nobody would miss them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment, to compare a later one with."""

    processes: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]
    files: frozenset[tuple[str, str]]

    @classmethod
    def take(cls) -> Self:
        """Look at this process."""
        return cls(frozenset(_children()), frozenset(threading.enumerate()), frozenset(_open_files()))

    def left_over(self) -> list[str]:
        """Return what is there now and was not there before, a sentence each, after some patience."""
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self._found()) and time.monotonic() < deadline:
            gc.collect()  # a file in a reference cycle is closed with it, and warns by itself
            time.sleep(0.02)
        self._reap()
        return found

    def _found(self) -> list[str]:
        processes = [child for child in _children() if child not in self.processes and _is_alive(child)]
        threads = [thread for thread in threading.enumerate() if thread not in self.threads]
        files = [(fd, target) for fd, target in _open_files() if (fd, target) not in self.files]
        return [
            *(f"process {process.pid}: {_command_of(process)}" for process in processes),
            *(f"thread {thread.name}" for thread in threads),
            *(f"file descriptor {fd}: {target}" for fd, target in files),
        ]

    def _reap(self) -> None:
        """Collect dead orphans: nobody else will, and each later look would cost more."""
        for child in _children():
            if child not in self.processes and not _is_alive(child):
                with suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)


async def unfinished_tasks() -> list[str]:
    """Return the tasks of the running loop, other than the present one, that do not end within a moment."""
    deadline = time.monotonic() + _PATIENCE_S
    while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return [f"task {task.get_name()}: {task.get_coro()!r}" for task in tasks]


def _children() -> list[psutil.Process]:
    # Direct children are enough: a grandchild either has its parent, or is ours by `adopt_orphans`.
    return psutil.Process().children()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.NoSuchProcess:
        return "(gone)"


def _open_files() -> list[tuple[str, str]]:
    found = []
    for fd in os.listdir(_FDS):  # noqa: PTH208 -- names, not paths
        with suppress(OSError):  # the descriptor of this very listing is closed already
            found.append((fd, str((_FDS / fd).readlink())))
    return found
