"""The program that watches over one run on a Dask worker's host, as a child of the Dask worker.

It is the launcher of local runs with one difference: the folder goes with the last process. Its standard input is held
by the Dask worker, so that the end of that worker, however it comes, is the end of the submission and of its folder.

Sent as code, never installed there: it needs the standard library and its two siblings, which are sent along.
"""

from __future__ import annotations

import os
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


def main(spec: Spec) -> None:
    """Run a submission, and serve the Dask worker at the other end of standard input until it is gone.

    Arguments are the attempt's folder, and modes; see `Launcher`.
    """
    folder, *modes = sys.argv[1:]
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # A service manager sends TERM to all of a worker's processes: the worker's own end tells us what to do.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    launcher = Launcher(modes)
    report(f"ready {launcher.mode}")
    launcher._run(spec)  # noqa: SLF001 -- its own word for it is for a daemon, and JSON
    launcher.serve()
    _end_all()
    import shutil  # noqa: PLC0415 -- half of what a start would take, and seldom needed

    shutil.rmtree(folder, ignore_errors=True)


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
