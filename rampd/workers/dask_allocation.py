"""What finds a submission's run on a Dask cluster again, and knows when its time is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rampd import clock
from rampd.workers.base import Allocation

if TYPE_CHECKING:
    from collections.abc import Mapping


class DaskAllocation(Allocation):
    """A run on a Dask worker, which its address finds, under a key at the scheduler.

    Its deadline is the daemon's own and never compared with another host's clock: over there a run has so many seconds
    from its start, by CLOCK_MONOTONIC. Here it is kept by CLOCK_BOOTTIME, for the wall clock may be set while a
    submission runs, and by the wall clock for the time after a reboot, as in the journal.
    """

    attempt_id: str
    attempt_dir: str
    log_path: str
    key: str
    dask_worker: str
    """The Dask worker's address."""
    host: str
    pid: int | None = None
    """Of the run's supervisor, on its host."""
    deadline: float | None = None
    """Wall clock, seconds since the epoch: its time is over then. None: it was not launched yet."""
    deadline_boottime_s: float | None = None
    """The same by CLOCK_BOOTTIME; means something only under the same `boot_id`."""
    boot_id: str | None = None

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return the host and the Dask worker."""
        return {"host": self.host, "dask_worker": self.dask_worker, "pid": self.pid}

    def launched(self, timeout_s: float) -> Self:
        """Return the same of a run that was launched now, and has so much time."""
        return self.model_copy(
            update={
                "deadline": clock.wall() + timeout_s,
                "deadline_boottime_s": clock.boottime() + timeout_s,
                "boot_id": clock.boot_id(),
            }
        )

    def left_s(self) -> float | None:
        """Return how much time the run has left, in seconds, negative when it is over; None if it was not launched."""
        if self.deadline_boottime_s is not None and self.boot_id == clock.boot_id():
            return self.deadline_boottime_s - clock.boottime()
        return None if self.deadline is None else self.deadline - clock.wall()
