"""What the end of a run on a Dask worker means: how it exited, or whose fault it is that it did not."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import structlog

from rampd.errors import WorkerError, WorkerLostError, WorkerSetupError
from rampd.models import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger("rampd.workers.dask")


def ending_of(head: Mapping[str, Any], where: str) -> Exit:
    """Return how a run ended.

    Parameters
    ----------
    head
        What the remote part says of it.
    where
        The host, and its Dask worker, for messages.

    Raises
    ------
    WorkerSetupError
        Something that every submission needs is not there.
    WorkerLostError
        It was lost there, or refused because it was run before.
    WorkerError
        The host could not run it.
    """
    if "missing" in head:
        raise WorkerSetupError(f"{head['missing']} on {where}", [str(one) for one in head.get("existing", ())])
    if head.get("fenced"):
        raise WorkerLostError(f"Dask ran the task twice on {where}; the second time was refused")
    if "lost" in head:
        raise WorkerLostError(f"{head['lost']} on {where}")
    if "error" in head:
        raise WorkerError(f"{head['error']} on {where}")
    if "failed" in head:
        raise _not_started(int(head["failed"][0]), str(head["failed"][1]), where)
    if head.get("log_errno"):
        error = f"the log could not be written on {where}: {os.strerror(int(head['log_errno']))}"
        log.warning("worker.lost", error=error, outcome=WorkerError.outcome)
    return Exit(
        status=int(head["status"]),
        signal=int(head["signal"]) or None,
        max_rss_bytes=int(head["max_rss_bytes"]) or None,
        log_bytes=int(head["log_bytes"]),
        log_capped=bool(head["log_capped"]),
        timed_out=bool(head["timed_out"]),
    )


def _not_started(number: int, step: str, where: str) -> WorkerError:
    why = os.strerror(number)
    if step == "process" or number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return WorkerError(f"ramp-test could not be started on {where}: {why}")
    if step == "folder":
        return WorkerSetupError(f"the user that submissions run as cannot enter their folder on {where}: {why}")
    return WorkerSetupError(
        f"worker.conda_env: ramp-test cannot be executed on {where}: {why} "
        "(itself, or the interpreter its first line names)"
    )
