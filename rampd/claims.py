"""Taking the next submission from the store, with its attempt open in the journal: both, or neither."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from rampd.errors import StoreError, TransitionRefusedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from rampd.backoffs import Backoffs
    from rampd.event import Event
    from rampd.models import Attempt, Submission


class Claims:
    """One event's.

    Parameters
    ----------
    backoffs
        Who is not to be taken yet.
    """

    def __init__(self, backoffs: Backoffs) -> None:
        self._backoffs = backoffs
        self._unreleased: set[int] = set()

    @property
    def are_open(self) -> bool:
        """Whether something is claimed whose attempt could not be opened, and that could not be put back yet."""
        return bool(self._unreleased)

    async def next(self, event: Event, *, busy: Collection[int]) -> tuple[Submission, Attempt] | None:
        """Claim the oldest submission that neither backs off nor is `busy`, and open its attempt.

        Whoever calls sees to it that nobody else decides about waiting submissions meanwhile.

        Raises
        ------
        StoreError
            The store or the journal cannot be used; what was claimed is put back, now or by the next call.
        """
        # Both at one moment: whatever ends between the two would be in neither.
        skip = [*self._backoffs.waiting(), *busy]
        await self._release(event)
        submission = await event.store.claim(skip)
        if submission is None:
            # Whoever's backoff is over waits no more (cancelled, say, or its folder went): nothing to wake up for.
            self._backoffs.keep(skip)
            return None
        try:
            attempt = await event.journal.open_attempt(submission, event.settings.worker.worker_type)
            if self._backoffs.drop(submission.id):
                with suppress(StoreError):  # it is over anyway, and the attempt is open already
                    await event.journal.clear_backoff(submission.id)
        except BaseException:
            # Nothing has happened outside yet: the row goes back, now or as soon as the store is there again.
            self._unreleased.add(submission.id)
            with suppress(StoreError):
                await asyncio.shield(self._release(event))
            raise
        return submission, attempt

    async def _release(self, event: Event) -> None:
        for submission_id in list(self._unreleased):
            with suppress(TransitionRefusedError):  # somebody else has ended it: there is nothing to put back
                await event.store.release(submission_id)
            self._unreleased.discard(submission_id)
