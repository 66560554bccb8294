"""What the journal keeps, what goes in time, and what it says of a row that was damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rampd.errors import JournalCorruptError, StoreError
from rampd.models import Exit, StepScore, Verdict
from rampd.states import Outcome, RequestKind, Step
from support.attempts import ONE, TWO, at_step, end

if TYPE_CHECKING:
    from rampd.journal import Journal

CANCEL, RETRY = RequestKind.CANCEL, RequestKind.RETRY


async def test_what_the_store_has_goes_when_an_attempt_is_closed(journal: Journal) -> None:
    """Scores and the participant's message are in the store by then; what an operator asks of an attempt stays."""
    attempt = await journal.open_attempt(ONE, "conda")
    scores = {"acc": {"test": StepScore(0.5, 0.1, 0.6)}}
    verdict = Verdict(Outcome.OK, 0, "a traceback", "why", scores=scores, exit=Exit(0, log_bytes=9), output_inode=7)
    await journal.decide(attempt.id, verdict, final=True, finished={"a": 1})
    (decided,) = await journal.attempts()
    assert decided.verdict == verdict
    await journal.close(attempt)
    await journal.close(attempt)
    (closed,) = await journal.attempts()
    assert closed.verdict == Verdict(Outcome.OK, 0, reason="why", exit=Exit(0, log_bytes=9))
    assert (closed.outcome, closed.final, closed.finished) == (Outcome.OK, True, {"a": 1})


async def test_a_lines_fields_go_once_it_was_written(journal: Journal) -> None:
    """Until then they are what is written again after a crash."""
    attempt = await at_step(journal, Step.CLOSED)
    await journal.mark_announced([attempt.id])
    (said,) = await journal.attempts()
    assert (said.finished, said.final, said.outcome) == ({}, True, Outcome.OK)


async def test_attempts_that_say_nothing_of_failures_go_but_for_the_newest(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloud without capacity for a month must not fill the disk: counted and final attempts stay, numbers go on."""
    monkeypatch.setattr("rampd.journal.ATTEMPTS_KEPT", 3)
    outcomes = [
        Outcome.LOST_HOST,
        Outcome.OK,
        *[Outcome.NO_CAPACITY] * 4,
        Outcome.INTERRUPTED,
        Outcome.NO_CAPACITY,
        Outcome.NO_CAPACITY,
    ]
    for outcome in outcomes:
        attempt = await end(journal, outcome, final=outcome is Outcome.OK)
        await journal.close(attempt)
    other = await end(journal, Outcome.NO_CAPACITY, TWO)
    await journal.close(other)
    assert [attempt.number for attempt in await journal.attempts(1)] == [1, 2, 7, 8, 9]
    assert (await journal.open_attempt(ONE, "conda")).number == 10
    assert len(await journal.attempts(2)) == 1
    assert (await journal.failures(1)).counted == 1


async def test_answered_requests_go_but_for_the_newest(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its answer stays, however old it is."""
    monkeypatch.setattr("rampd.journal.REQUESTS_KEPT", 2)
    waiting = await journal.request(CANCEL, "patient")
    ids = []
    for number in range(5):
        ids.append(await journal.request(RETRY, f"s{number}"))
        await journal.answer(ids[-1], "done", accepted=True)
    assert [request.id for request in await journal.pending_requests()] == [waiting]
    assert (await journal.get_request(ids[-1])).answer == "done"
    with pytest.raises(StoreError):
        await journal.get_request(ids[0])


async def test_a_row_that_says_what_nobody_wrote_is_corrupt(journal: Journal) -> None:
    """Not a traceback: the row, and what to do."""
    await at_step(journal, Step.DECIDED)
    await journal._database.run("UPDATE attempts SET verdict = '{'")
    with pytest.raises(JournalCorruptError, match=r"row of 'one', attempt 1: is damaged.*Restore the file"):
        await journal.attempts()
