"""What `Arrivals` writes to and listens to, in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from rampd import clock
from rampd.states import SubmissionState
from rampd.stores.arrivals import Known

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rampd.stores.arrivals import Arrival, Rejection
    from rampd.watch import Changes


class RecordingRegistry:
    """Keeps what is written in lists, and fails when it is told to."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.scanned = asyncio.Event()
        self.rows: dict[str, Known] = {}
        self.taken: list[tuple[str, float]] = []
        self.rejected: list[Rejection] = []
        self.forgotten: list[str] = []
        self.changes: list[str] = []
        self.stamps: dict[str, str] = {}
        self.trouble: list[Exception] = []

    async def adopt(self) -> None:
        """Fail if it shall."""
        if self.trouble:
            raise self.trouble.pop(0)

    async def known(self, names: Sequence[str]) -> dict[str, Known]:
        """Return the rows of these names."""
        return {name: self.rows[name] for name in names if name in self.rows}

    async def waiting(self) -> dict[str, int]:
        """Return the ids of what waits."""
        return {name: row.id for name, row in self.rows.items() if row.state is SubmissionState.NEW}

    async def ended(self, after: str, limit: int) -> dict[str, Known]:
        """Return the next ended ones."""
        names = sorted(name for name, row in self.rows.items() if name > after and row.state.is_final)
        return {name: self.rows[name] for name in names[:limit]}

    async def register(self, arrivals: Sequence[Arrival]) -> set[str]:
        """Note name and time."""
        known = {one.name for one in arrivals if one.name in self.rows}
        for one in arrivals:
            if one.name not in known:
                self.rows[one.name] = Known(len(self.rows) + 1, SubmissionState.NEW, one.fingerprint)
                self.taken.append((one.name, clock.wall()))
        return known

    async def forget(self, submission_id: int, name: str) -> None:
        """Drop it."""
        del self.rows[name]
        self.forgotten.append(name)

    async def note_change(self, submission_id: int, state: SubmissionState, found: Arrival) -> None:
        """Note it."""
        self.rows[found.name] = Known(submission_id, state, found.fingerprint)
        self.changes.append(found.name)

    async def rejections(self) -> dict[str, str]:
        """Return a copy."""
        return dict(self.stamps)

    async def reject(self, rejections: Sequence[Rejection]) -> None:
        """Note them."""
        self.rejected += rejections
        self.stamps |= {one.key: one.stamp for one in rejections}

    async def unreject(self, keys: Iterable[str]) -> None:
        """Drop them."""
        for key in keys:
            del self.stamps[key]

    @property
    def names(self) -> list[str]:
        """What was taken, in order."""
        return [name for name, _ in self.taken]

    def taken_at(self, name: str) -> float:
        """When it was taken."""
        return dict(self.taken)[name]

    def end(self, name: str, state: SubmissionState = SubmissionState.SCORED) -> None:
        """Say that it has run."""
        self.rows[name] = replace(self.rows[name], state=state)


class DeafWatch:
    """Hears nothing."""

    def __init__(self, folder: Path, *, poll: bool | None = None) -> None:
        self.folder = folder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def changes(self) -> Changes:
        """Never return."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError
