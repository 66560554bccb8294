"""What the operator asked for through the journal: cancel and retry, answered while the daemon runs or at its start."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, assert_never

import structlog

from rampd.conclusion import cancel_unrun, persist
from rampd.errors import TransitionRefusedError, UnknownSubmissionError
from rampd.orders import Order
from rampd.states import RequestKind, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rampd.announcements import Announcements
    from rampd.event import Event
    from rampd.orders import Run

log = structlog.get_logger("rampd.requests")


class Requests:
    """Answers requests one after the other; the dispatcher sees to it that nothing is claimed meanwhile.

    Parameters
    ----------
    event
        The event's rooms.
    runs
        What has a slot, by name; read only.
    announcements
        Remembers whose canonical line was written.
    """

    def __init__(self, event: Event, runs: Mapping[str, Run], *, announcements: Announcements) -> None:
        self.event = event
        self._runs = runs
        self._announcements = announcements

    async def answer(self) -> list[int]:
        """Answer every pending request.

        Returns
        -------
        list of int
            The ids of submissions whose backoff is over by the operator's word.
        """
        released: list[int] = []
        for request in await self.event.journal.pending_requests():
            try:
                match request.kind:
                    case RequestKind.CANCEL:
                        accepted, answer = await self._cancel(request.submission)
                    case RequestKind.RETRY:
                        accepted, answer = await self._retry(request.submission)
                        if accepted:
                            released.append((await self.event.store.get(request.submission)).id)
                    case _:
                        assert_never(request.kind)
            except (UnknownSubmissionError, TransitionRefusedError) as error:
                accepted, answer = False, str(error)
            if not accepted:
                log.warning("request.refused", submission=request.submission, kind=request.kind, answer=answer)
            # Until it is written: what was done already must not be asked for, and refused or done, a second time.
            answering = partial(self.event.journal.answer, request.id, answer, accepted=accepted)
            await persist(answering, "an answer to the operator")
        return released

    def _running(self, name: str) -> Run | None:
        """Return the run of a submission; one whose task has ended is none any more, though nobody has said so yet."""
        run = self._runs.get(name)
        return None if run is None or run.task.done() else run

    async def _cancel(self, name: str) -> tuple[bool, str]:
        run = self._running(name)
        if run is not None:
            run.orders.give(Order.CANCEL)
            if run.orders.has_ended:
                return True, "its run has just ended: what came of it stands, and it is not tried again"
            return True, "it is being stopped"
        # Only now: what does not run, and cannot be claimed meanwhile, stays as it is found here.
        submission = await self.event.store.get(name)
        if submission.state is SubmissionState.NEW:
            await cancel_unrun(self.event, submission, announcements=self._announcements)
            return True, "it was waiting and will not run"
        if not submission.state.is_final:
            return False, f"another daemon runs it ({submission.state}); ask there"
        return False, f"it has ended already ({submission.state})"

    async def _retry(self, name: str) -> tuple[bool, str]:
        if self._running(name) is not None:
            return False, "it is running; cancel it first, or wait for its end"
        submission = await self.event.store.get(name)
        if submission.state is not SubmissionState.NEW and not submission.state.is_final:
            return False, f"another daemon runs it ({submission.state}); cancel it there, or wait for its end"
        folder = self.event.store.submission_dir(submission)
        if not await asyncio.to_thread(folder.is_dir):
            return False, f"its folder is gone ({folder}): hand it in again"
        # The count first: a crash in between leaves a request that is answered again, the same way.
        await self.event.journal.start_count_anew(submission.id)
        await self.event.journal.clear_backoff(submission.id)
        if submission.state is SubmissionState.NEW:
            return True, "it is waiting already, without delay and with all its attempts"
        await self.event.store.requeue(submission.id)
        return True, "it waits at the end of the queue"
