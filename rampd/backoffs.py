"""Which submissions back off, and until when: on CLOCK_BOOTTIME, whatever is done to the wall clock meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rampd import clock
from rampd.judging import LONGEST_BACKOFF_S

if TYPE_CHECKING:
    from collections.abc import Mapping


class Backoffs:
    """One event's, by the submissions' ids. The journal has them by the wall clock, for a restart."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def load(self, journaled: Mapping[int, float]) -> None:
        """Take over what the journal has, in seconds since the epoch.

        Later than any backoff lasts is only what was set under a clock that has been put back since: it is over.
        """
        now, wall = clock.boottime(), clock.wall()
        left = {one: until - wall for one, until in journaled.items()}
        self._until = {one: now + left_s for one, left_s in left.items() if left_s <= LONGEST_BACKOFF_S}

    def set(self, submission_id: int, delay_s: float) -> None:
        """Have a submission back off from now on."""
        self._until[submission_id] = clock.boottime() + delay_s

    def drop(self, submission_id: int) -> bool:
        """Forget a submission's backoff; return whether there was one."""
        return self._until.pop(submission_id, None) is not None

    def waiting(self) -> list[int]:
        """Return the submissions whose time has not come."""
        now = clock.boottime()
        return [one for one, until in self._until.items() if until > now]

    def keep(self, submission_ids: list[int]) -> None:
        """Forget all others: their time has come, and nothing of them is left to wake up for."""
        self._until = {one: self._until[one] for one in submission_ids if one in self._until}

    def next_s(self) -> float | None:
        """Return in how many seconds the first one's time comes; None where nobody backs off."""
        return max(0.0, min(self._until.values()) - clock.boottime()) if self._until else None
