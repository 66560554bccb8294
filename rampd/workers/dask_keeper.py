"""The program that watches over the runs of one Dask worker, as its child: started with the first, ended when idle.

It is the launcher of local runs with one difference: a run's folder goes with its last process, unless it was released.
Its standard input is held by the Dask worker, so that the end of that worker, however it comes, is the end of its
submissions and of their folders.

Sent as code, never installed there: it needs the standard library and its two siblings, which are sent along.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import time
from contextlib import suppress

from rampd.workers.launcher import Launcher
from rampd.workers.supervisor import descendants, report

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself would be carried by every run
if TYPE_CHECKING:
    from rampd.workers.supervisor import Spec

_KILLING_S = 5.0


class Keeper(Launcher):
    """A launcher that removes what it was not told to leave alone."""

    def __init__(self, modes: list[str]) -> None:
        super().__init__(modes)
        self._folders: dict[str, str] = {}
        """To be removed at the end, by run."""

    def _obey(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if word == b"release":
            self._folders.pop(rest.decode(), None)
            return
        super()._obey(line)

    def _run(self, spec: Spec) -> None:
        self._folders[spec["key"]] = spec["folder"]
        super()._run(spec)

    def end(self) -> None:
        """Kill what runs, and remove its folders and those of runs whose results nobody took."""
        _end_all()
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Serve the Dask worker at the other end of standard input until it is gone.

    Arguments are modes; see `Launcher`.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # A service manager sends TERM to all of a worker's processes: the worker's own end tells us what to do.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import json  # noqa: F401, PLC0415 -- before anything is frozen: no run is to pay for it

    keeper = Keeper(sys.argv[1:])
    gc.collect()
    gc.freeze()
    gc.disable()
    report(f"ready {keeper.mode}")
    keeper.serve()
    keeper.end()


def _end_all() -> None:
    """Kill until nothing is left below: what forks meanwhile is killed in the next round."""
    deadline = time.monotonic() + _KILLING_S
    while (below := descendants()) and time.monotonic() < deadline:
        for pid in below:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.001)
