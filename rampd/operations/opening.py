"""Opening an event's files beside its daemon: whatever is not there yet is not made by looking."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.errors import StoreError
from rampd.event import JOURNAL_FILE, STORE_FILE, WAKE_FILE, build_journal, build_store
from rampd.state_lock import is_held

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rampd.config import Settings
    from rampd.journal import Journal
    from rampd.stores.base import SubmissionStore


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """An event's store and journal; None where no daemon has made them yet."""

    store: SubmissionStore | None
    journal: Journal | None


@asynccontextmanager
async def opened(settings: Settings, *, create: bool = False) -> AsyncIterator[OpenFiles]:
    """Open an event's store and journal.

    Parameters
    ----------
    settings
        The event's.
    create
        Make the journal where there is none: for a request that a daemon to come shall find.

    Raises
    ------
    StoreError
        They are there and cannot be opened, or cannot be made.
    """
    state_dir = settings.dispatcher.state_dir
    async with AsyncExitStack() as stack:
        # A board is there before any daemon is; the embedded store is made by the first one.
        is_there = settings.board is not None or (state_dir / STORE_FILE).exists()
        store = build_store(settings) if is_there else None
        if store is not None:
            await store.open(stack)
        journal = build_journal(settings)
        if create:
            try:
                state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{state_dir}: cannot be made: {error.strerror}") from error
        elif not (state_dir / JOURNAL_FILE).exists():
            yield OpenFiles(store, None)
            return
        await journal.open(stack)
        yield OpenFiles(store, journal)


def wake(settings: Settings) -> int | None:
    """Have the daemon look at what was asked for; return its pid (0 if it is not known), None where there is none."""
    state_dir = settings.dispatcher.state_dir
    try:
        (state_dir / WAKE_FILE).touch()
    except OSError as error:
        raise StoreError(f"{state_dir / WAKE_FILE}: cannot be touched: {error.strerror}") from error
    return is_held(state_dir)
