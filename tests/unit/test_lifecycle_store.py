"""A run whose store is away when it begins, and one that another daemon has claimed meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rampd import lifecycle
from rampd.errors import SupersededError
from rampd.states import Outcome, SubmissionState
from support.event import EventRoom, attempt_once, bad_run, closed, fail_times, fake, find, history_of, hung_run

if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("times", [1, 5])
async def test_a_store_that_is_away_keeps_nobody_from_running(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, times: int, after: bool
) -> None:
    """That a run has begun is told when the store is there again, and the run goes on meanwhile."""
    room.submit("one")
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, "store.set_training", times, after=after)
        assert (await attempt_once(event)).outcome is Outcome.OK
        assert len(failures) == times
        assert await closed(event) == [(Outcome.OK, True)]
        assert await history_of(event) == ["new", "sent_to_training", "training", "tested", "scored"]


async def test_an_outcome_says_first_that_the_run_had_begun(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away for the whole run hears of it before the outcome, which then follows."""
    room.submit("one", bad_run(log=b"ValueError: no\n"))
    monkeypatch.setattr(lifecycle, "_TELL_S", 0.0)
    async with room.opened() as event:
        told: list[bool] = []
        set_training = event.store.set_training

        async def hang_at_first(submission_id: int) -> None:
            told.append(bool(told))
            if not told[-1]:
                await asyncio.get_running_loop().create_future()
            await set_training(submission_id)

        monkeypatch.setattr(event.store, "set_training", hang_at_first)
        assert (await attempt_once(event)).outcome is Outcome.PARTICIPANT_ERROR
        assert told == [False, True]
        assert await history_of(event) == ["new", "sent_to_training", "training", "training_error"]


async def test_a_run_whose_claim_was_lost_is_ended(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """What another daemon runs by now is not run on here; nobody is charged, and the store is left alone."""
    room.submit("one", hung_run())
    monkeypatch.setattr(lifecycle, "_LONGEST_NAP_S", 0.01)
    async with room.opened() as event:
        lost = iter([False, False])
        monkeypatch.setattr(event.store, "is_lost", lambda _: next(lost, True))
        assert (await attempt_once(event)).outcome is Outcome.INTERRUPTED
        assert await closed(event) == [(Outcome.INTERRUPTED, False)]
        assert fake(event).outside == {}
    assert len(find(log_records, "submission.retried", reason="another daemon has claimed it, and runs it")) == 1


async def test_a_superseded_outcome_is_dropped(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """Where another daemon has claimed the submission since, its predictions and its state are left alone."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "store.confirm", error=SupersededError)
        assert (await attempt_once(event)).outcome is Outcome.OK
        assert (await event.store.get("one")).state is SubmissionState.TRAINING
        assert list(room.predictions.iterdir()) == []
        assert await closed(event) == [(Outcome.OK, True)]
        assert await event.journal.unannounced() == []
    assert len(find(log_records, "submission.superseded", outcome="ok")) == 1
    assert find(log_records, "submission.finished") == []
