"""Opening one event for a process that runs its submissions: folders, lock, store, journal, worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rampd.event import Event, make_folders
from rampd.state_lock import StateLock

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from rampd.config import Settings


async def open_event(settings: Settings, stack: AsyncExitStack) -> Event:
    """Make, lock and open what an event needs; all of it is closed, and the lock given back, with `stack`.

    Raises
    ------
    LockedError
        Another process serves the event.
    RampdError
        Its folders, store, journal or worker cannot be opened.
    """
    make_folders(settings)
    lock = StateLock(settings.dispatcher.state_dir)
    # In a thread: whoever holds it is given a moment, and the other events go on meanwhile.
    taking = asyncio.ensure_future(asyncio.to_thread(lock.acquire))
    stack.callback(lock.release)
    try:
        await asyncio.shield(taking)
    except asyncio.CancelledError:
        await asyncio.wait({taking})
        raise
    event = Event.build(settings)
    await event.open(stack)
    return event
