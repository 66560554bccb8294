"""What tests of the core share: an event with fakes around it, and a journal."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from rampd.journal import Journal
from support.event import EventRoom, hurry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event that ends when nothing is left, and where nothing that fails is waited for."""
    hurry(monkeypatch)
    return EventRoom(tmp_path)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """Give a new journal."""
    async with AsyncExitStack() as stack:
        journal = Journal(tmp_path / "journal.sqlite3")
        await journal.open(stack)
        yield journal
