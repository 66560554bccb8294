"""Attempts in a journal, brought to where a test wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rampd.models import Submission, Verdict
from rampd.states import Outcome, Step, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rampd.journal import Journal
    from rampd.models import Attempt

ONE: Final = Submission(1, "one", SubmissionState.NEW, 0.0, 0.0)
TWO: Final = Submission(2, "two", SubmissionState.NEW, 0.0, 0.0)
OK: Final = Verdict(Outcome.OK, 0)


async def end(journal: Journal, outcome: Outcome, submission: Submission = ONE, *, final: bool = False) -> Attempt:
    """Open an attempt and decide it."""
    attempt = await journal.open_attempt(submission, "conda")
    return await journal.decide(attempt.id, Verdict(outcome, None, reason=outcome), final=final, finished={})


async def at_step(journal: Journal, step: Step) -> Attempt:
    """Bring an attempt to a step, through all that come before it."""
    attempt = await journal.open_attempt(ONE, "conda")
    ways: dict[Step, Callable[[], Awaitable[object]]] = {
        Step.SET_UP: lambda: journal.record_allocation(attempt.id, "1"),
        Step.LAUNCHED: lambda: journal.record_launch(attempt.id, "2"),
        Step.DECIDED: lambda: journal.decide(attempt.id, OK, final=True, finished={}),
        Step.CLOSED: lambda: journal.close(attempt),
    }
    for following in list(Step)[1 : list(Step).index(step) + 1]:
        await ways[following]()
    (found,) = await journal.attempts()
    return found
