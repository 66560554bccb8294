"""An event's folders, and what looks at them, for the tests of the embedded store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rampd.stores.arrivals import Arrivals
from support.recording_registry import RecordingRegistry
from support.store_room import StoreRoom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Arriving = Callable[..., Arrivals]

_LONG_S = 3600.0


@pytest.fixture
async def registry() -> RecordingRegistry:
    """Return an empty one."""
    return RecordingRegistry()


@pytest.fixture
def room(tmp_path: Path) -> StoreRoom:
    """Return an event's folders, with one for submissions."""
    (tmp_path / "submissions").mkdir()
    return StoreRoom(tmp_path)


@pytest.fixture
def arriving(room: StoreRoom, registry: RecordingRegistry) -> Arriving:
    """Return what makes `Arrivals`; they rescan only when they are told to."""

    def make(
        settle_time_s: float = 0.0,
        *,
        rescan_interval_s: float = _LONG_S,
        poll: bool | None = None,
        sandbox: str = "kit",
    ) -> Arrivals:
        return Arrivals(
            registry,
            room.submissions,
            sandbox_dir=sandbox,
            settle_time_s=settle_time_s,
            rescan_interval_s=rescan_interval_s,
            poll=poll,
        )

    return make
