"""One submission in the foreground, without a daemon: `rampctl run`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from rampd.announcements import Announcements
from rampd.conclusion import bound_fields
from rampd.errors import RampdError, SubmissionRefusedError
from rampd.lifecycle import attempt_submission
from rampd.opening import open_event
from rampd.orders import Orders
from rampd.recovery import recover

if TYPE_CHECKING:
    from collections.abc import Callable

    from rampd.config import Settings
    from rampd.models import Submission


async def run_one(settings: Settings, name: str, *, on_orders: Callable[[Orders], None] | None = None) -> Submission:
    """Run one submission in the foreground, without a daemon, by the same way that a daemon takes it.

    Parameters
    ----------
    settings
        The event's.
    name
        The submission's; one that has ended already is run again.
    on_orders
        Called with the attempt's letter box, through which it can be cancelled.

    Returns
    -------
    Submission
        As the store has it afterwards; in state `new` where the attempt failed for the platform's reasons.

    Raises
    ------
    LockedError
        A daemon serves the event.
    UnknownSubmissionError
        There is none of that name.
    SubmissionRefusedError
        There was one, and its folder is gone.
    WorkerSetupError
        The event cannot run at all.
    """
    async with AsyncExitStack() as stack:
        event = await open_event(settings, stack)
        await event.worker.check()
        announcements = Announcements(event.journal)
        await recover(event, announcements=announcements)
        await event.store.scan()
        claimed = await event.store.claim_named(name)
        if claimed is None:
            submission = await event.store.get(name)
            folder = event.store.submission_dir(submission)
            if not await asyncio.to_thread(folder.is_dir):
                # Its scores would be gone as well, and nothing run.
                raise SubmissionRefusedError("missing", f"{name!r}: its folder is gone ({folder}); hand it in again")
            await event.journal.start_count_anew(submission.id)
            await event.store.requeue(submission.id)
            claimed = await event.store.claim_named(name)
        if claimed is None:
            raise RampdError(f"{name!r} cannot be run now")
        attempt = await event.journal.open_attempt(claimed, settings.worker.worker_type)
        orders = Orders()
        if on_orders is not None:
            on_orders(orders)
        with structlog.contextvars.bound_contextvars(**bound_fields(event, claimed, attempt)):
            await attempt_submission(event, claimed, attempt, orders, announcements=announcements)
        await announcements.settle()
        return await event.store.get(name)
