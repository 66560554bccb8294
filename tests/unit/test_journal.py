"""The journal: attempts and their steps, requests and their answers, failures, backoffs and facts."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.errors import StoreError
from rampd.journal import Failures, Journal, LatestAttempt
from rampd.models import Attempt, Exit, StepScore, Verdict
from rampd.states import Outcome, RequestKind, Step
from support.attempts import OK, ONE, TWO, at_step, end

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN = Attempt("nobody", "one", 1, 1, "conda", Step.OPENED, 0.0)
CANCEL, RETRY = RequestKind.CANCEL, RequestKind.RETRY


async def test_an_attempt_begins_with_what_is_known(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number, its worker and the moment; nothing else."""
    monkeypatch.setattr(clock, "wall", lambda: 1234.5)
    attempt = await journal.open_attempt(ONE, "conda")
    assert attempt == Attempt(attempt.id, "one", 1, 1, "conda", Step.OPENED, 1234.5)
    assert await journal.attempts() == [attempt]


async def test_numbers_go_up_per_submission(journal: Journal) -> None:
    """Each submission counts from one, and every attempt has an id of its own."""
    attempts = [await journal.open_attempt(submission, "conda") for submission in (ONE, ONE, TWO, ONE)]
    assert [attempt.number for attempt in attempts] == [1, 2, 1, 3]
    assert len({attempt.id for attempt in attempts}) == 4


async def test_attempts_that_open_at_once_have_different_numbers(journal: Journal) -> None:
    """The number is given in the statement that takes it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(journal.open_attempt(ONE, "conda")) for _ in range(10)]
    assert sorted(task.result().number for task in tasks) == list(range(1, 11))


async def test_an_attempt_survives_its_process(tmp_path: Path) -> None:
    """What one daemon committed the next one reads, numbers included."""
    for number in (1, 2):
        async with AsyncExitStack() as stack:
            journal = Journal(tmp_path / "journal.sqlite3")
            await journal.open(stack)
            await journal.open_attempt(ONE, "conda")
            assert [attempt.number for attempt in await journal.unfinished()] == list(range(1, number + 1))


async def test_an_allocation_is_kept(journal: Journal) -> None:
    """The worker's JSON, and the step."""
    attempt = await journal.open_attempt(ONE, "conda")
    await journal.record_allocation(attempt.id, '{"pid": 1}')
    (found,) = await journal.attempts()
    assert (found.step, found.allocation, found.launched_at) == (Step.SET_UP, '{"pid": 1}', None)


async def test_a_launch_is_kept_with_its_times(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock's, the boot clock's, and which boot that was."""
    monkeypatch.setattr(clock, "wall", lambda: 5000.25)
    monkeypatch.setattr(clock, "boottime", lambda: 50.5)
    monkeypatch.setattr(clock, "boot_id", lambda: "boot")
    await at_step(journal, Step.SET_UP)
    (attempt,) = await journal.attempts()
    launched = await journal.record_launch(attempt.id, "new")
    assert (launched.step, launched.allocation) == (Step.LAUNCHED, "new")
    assert (launched.launched_at, launched.launched_boottime_s, launched.boot_id) == (5000.25, 50.5, "boot")


async def test_a_repeated_launch_keeps_the_first_ones_time(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is not moved; the allocation is the newer one."""
    first = await at_step(journal, Step.LAUNCHED)
    monkeypatch.setattr(clock, "wall", lambda: 1.0)
    monkeypatch.setattr(clock, "boottime", lambda: 1.0)
    monkeypatch.setattr(clock, "boot_id", lambda: "another")
    again = await journal.record_launch(first.id, "again")
    assert again.allocation == "again"
    assert (again.launched_at, again.launched_boottime_s, again.boot_id) == (
        first.launched_at,
        first.launched_boottime_s,
        first.boot_id,
    )


FROM_AND_TO = {
    "record_allocation": (Step.OPENED, Step.SET_UP),
    "record_launch": (Step.SET_UP, Step.LAUNCHED),
    "close": (Step.DECIDED, Step.CLOSED),
}


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("method", FROM_AND_TO)
async def test_steps_are_taken_in_their_order(journal: Journal, step: Step, method: str) -> None:
    """Each follows the one before it or repeats itself; anything else is refused and changes nothing."""
    before = await at_step(journal, step)
    call = partial(getattr(journal, method), *([before] if method == "close" else [before.id, "x"]))
    if step in FROM_AND_TO[method]:
        await call()
        assert (await journal.attempts())[0].step is FROM_AND_TO[method][1]
    else:
        with pytest.raises(StoreError, match=f"attempt {before.id} is {step} and cannot become"):
            await call()
        assert await journal.attempts() == [before]


@pytest.mark.parametrize("step", [Step.OPENED, Step.SET_UP, Step.LAUNCHED])
async def test_an_attempt_is_decided_at_any_step(journal: Journal, step: Step) -> None:
    """Whatever there is of it when it ends."""
    attempt = await at_step(journal, step)
    decided = await journal.decide(attempt.id, OK, final=True, finished={"a": 1})
    assert (decided.step, decided.outcome, decided.final, decided.finished) == (Step.DECIDED, "ok", True, {"a": 1})


@pytest.mark.parametrize("step", [Step.DECIDED, Step.CLOSED])
async def test_the_first_decision_stands(journal: Journal, step: Step) -> None:
    """A later one gets what was decided, and changes nothing."""
    before = await at_step(journal, step)
    late = Verdict(Outcome.TIMEOUT, 124, "late")
    assert await journal.decide(before.id, late, final=False, finished={"late": True}) == before
    assert await journal.attempts() == [before]


async def test_of_two_decisions_at_once_one_stands(journal: Journal) -> None:
    """Both callers learn the same outcome."""
    attempt = await journal.open_attempt(ONE, "conda")
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(journal.decide(attempt.id, Verdict(outcome, None), final=True, finished={}))
            for outcome in (Outcome.OK, Outcome.CANCELLED)
        ]
    assert {task.result().outcome for task in tasks} == {Outcome.OK}


async def test_a_verdict_comes_back_whole(journal: Journal) -> None:
    """Every field of it, its exit and its scores, infinities and all."""
    scores = {"acc": {"train": StepScore(0.5, 0.1, None), "test": StepScore(math.inf, -math.inf, 0.25)}}
    exit_ = Exit(137, 9, 12345, 678, log_capped=True)
    verdict = Verdict(Outcome.PARTICIPANT_ERROR, 137, "Trace\N{SNOWMAN}\n", "why", scores, exit_, 42)
    attempt = await journal.open_attempt(ONE, "conda")
    decided = await journal.decide(attempt.id, verdict, final=True, finished={})
    assert decided.verdict == verdict
    assert (await journal.attempts())[0].verdict == verdict


async def test_a_nan_comes_back(journal: Journal) -> None:
    """JSON has none; scores have."""
    verdict = Verdict(Outcome.OK, 0, scores={"acc": {"train": StepScore(math.nan, 0.0, None)}})
    attempt = await journal.open_attempt(ONE, "conda")
    await journal.decide(attempt.id, verdict, final=True, finished={})
    (found,) = await journal.attempts()
    assert found.verdict is not None
    assert found.verdict.scores is not None
    assert math.isnan(found.verdict.scores["acc"]["train"].mean)


@pytest.mark.parametrize("method", ["record_allocation", "record_launch", "close"])
async def test_an_unknown_attempt_is_a_store_error(journal: Journal, method: str) -> None:
    """The sentence names it."""
    with pytest.raises(StoreError, match="the journal has no attempt nobody"):
        await getattr(journal, method)(*([UNKNOWN] if method == "close" else [UNKNOWN.id, "x"]))


async def test_an_attempt_that_was_decided_meanwhile_keeps_its_outcome(journal: Journal) -> None:
    """Whoever closes it may hold it as it was before."""
    opened = await journal.open_attempt(ONE, "conda")
    await journal.decide(opened.id, OK, final=True, finished={})
    await journal.close(opened)
    (found,) = await journal.attempts()
    assert found.step is Step.CLOSED
    assert found.verdict is not None
    assert found.verdict.outcome is OK.outcome


async def test_deciding_an_unknown_attempt_is_a_store_error(journal: Journal) -> None:
    """Nothing is made up."""
    with pytest.raises(StoreError, match="the journal has no attempt nobody"):
        await journal.decide("nobody", OK, final=True, finished={})


@pytest.mark.parametrize("step", Step)
async def test_what_is_not_closed_is_unfinished(journal: Journal, step: Step) -> None:
    """A decided attempt still has something to be done."""
    attempt = await at_step(journal, step)
    assert await journal.unfinished() == ([] if step is Step.CLOSED else [attempt])


async def test_unfinished_attempts_come_oldest_first(journal: Journal) -> None:
    """As they were opened, whatever the submissions' ids are."""
    attempts = [await journal.open_attempt(submission, "conda") for submission in (TWO, ONE, TWO)]
    assert await journal.unfinished() == attempts
    assert await journal.attempts(2) == [attempts[0], attempts[2]]


async def test_a_final_line_is_due_until_it_is_announced(journal: Journal) -> None:
    """Only final attempts have one, and those that were announced are left out, closed or not."""
    first, second = [await end(journal, Outcome.OK, submission, final=True) for submission in (ONE, TWO)]
    await end(journal, Outcome.LOST_HOST, TWO)
    await journal.close(second)
    assert [attempt.id for attempt in await journal.unannounced()] == [first.id, second.id]
    await journal.mark_announced([first.id, "nobody"])
    assert [attempt.id for attempt in await journal.unannounced()] == [second.id]
    await journal.mark_announced([])
    await journal.mark_announced({first.id, second.id})
    assert await journal.unannounced() == []


async def test_the_latest_attempt_in_short(journal: Journal) -> None:
    """Of each submission the last one alone, decided or not."""
    await end(journal, Outcome.LOST_HOST)
    await end(journal, Outcome.TIMEOUT)
    await end(journal, Outcome.OK, TWO)
    await journal.open_attempt(TWO, "dask")
    assert await journal.latest_attempts() == {
        1: LatestAttempt(2, "conda", None, "timeout", "timeout"),
        2: LatestAttempt(2, "dask", None, None, None),
    }


async def test_the_latest_attempt_may_have_a_nan(journal: Journal) -> None:
    """`rampctl status` is not stopped by a score."""
    attempt = await journal.open_attempt(ONE, "conda")
    verdict = Verdict(Outcome.OK, 0, reason="why", scores={"acc": {"train": StepScore(math.nan, math.inf, None)}})
    await journal.decide(attempt.id, verdict, final=True, finished={})
    assert (await journal.latest_attempts())[1].reason == "why"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], Failures(0, 0)),
        (["lost_host", "platform_error"], Failures(2, 0, lost=1)),
        (["interrupted", "lost_host", "interrupted", "interrupted"], Failures(1, 2, lost=1)),
        (["lost_host", "interrupted", "lost_host"], Failures(2, 0, lost=2)),
        (["no_capacity", "interrupted", "no_capacity"], Failures(0, 0, 1)),
        (["participant_error", "timeout", "cancelled", "ok"], Failures(0, 0)),
    ],
)
async def test_failures_are_counted(journal: Journal, outcomes: list[str], expected: Failures) -> None:
    """Those that count, and how many of the last ones were interruptions or found no room."""
    for outcome in outcomes:
        await end(journal, Outcome(outcome))
    await end(journal, Outcome.LOST_HOST, TWO)
    assert await journal.failures(1) == expected


async def test_what_goes_on_does_not_count(journal: Journal) -> None:
    """An undecided attempt breaks no row and is no failure."""
    await end(journal, Outcome.INTERRUPTED)
    await journal.open_attempt(ONE, "conda")
    assert await journal.failures(1) == Failures(0, 1)


async def test_a_count_starts_anew_and_numbers_go_on(journal: Journal) -> None:
    """The operator's retry forgets the failures of that submission so far, as often as it is asked for."""
    for submission in (ONE, TWO):
        await end(journal, Outcome.LOST_HOST, submission)
    await journal.start_count_anew(1)
    assert await journal.failures(1) == Failures(0, 0)
    assert await journal.failures(2) == Failures(1, 0, lost=1)
    assert (await end(journal, Outcome.LOST_HOST)).number == 2
    assert await journal.failures(1) == Failures(1, 0, lost=1)
    await journal.start_count_anew(1)
    assert await journal.failures(1) == Failures(0, 0)


async def test_a_count_may_start_before_there_is_any(journal: Journal) -> None:
    """Nothing to forget is no error, and hides nothing of what follows."""
    await journal.start_count_anew(1)
    await end(journal, Outcome.LOST_HOST)
    assert await journal.failures(1) == Failures(1, 0, lost=1)


async def test_backoffs_are_set_and_cleared(journal: Journal) -> None:
    """The later one replaces the earlier one of its submission."""
    await journal.set_backoff(1, 10.5)
    await journal.set_backoff(2, 20.0)
    await journal.set_backoff(1, 30.0)
    assert await journal.backoffs() == {1: 30.0, 2: 20.0}
    await journal.clear_backoff(1)
    await journal.clear_backoff(1)
    assert await journal.backoffs() == {2: 20.0}


async def test_a_request_waits_for_its_answer(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it is pending, in the order of asking."""
    monkeypatch.setattr(clock, "wall", lambda: 7.0)
    ids = [
        await journal.request(CANCEL, "one"),
        await journal.request(RETRY, "one"),
        await journal.request(CANCEL, "two"),
    ]
    pending = await journal.pending_requests()
    assert [(request.id, request.kind, request.submission) for request in pending] == [
        (ids[0], CANCEL, "one"),
        (ids[1], RETRY, "one"),
        (ids[2], CANCEL, "two"),
    ]
    assert {(request.requested_at, request.answered_at, request.answer, request.accepted) for request in pending} == {
        (7.0, None, None, None)
    }


async def test_a_pending_request_is_not_doubled(journal: Journal) -> None:
    """Who asks again meanwhile gets the same id, and it stands once."""
    ids = {await journal.request(CANCEL, "one") for _ in range(3)}
    assert [request.id for request in await journal.pending_requests()] == list(ids)


async def test_the_last_word_counts(journal: Journal) -> None:
    """Who cancels, retries and cancels again wants it cancelled; what others ask of other submissions is left alone."""
    others = [await journal.request(CANCEL, "two"), await journal.request(RETRY, "three")]
    first, retry = await journal.request(CANCEL, "one"), await journal.request(RETRY, "one")
    last = await journal.request(CANCEL, "one")
    assert last == await journal.request(CANCEL, "one")
    assert [request.id for request in await journal.pending_requests()] == [*others, retry, last]
    outdated = await journal.get_request(first)
    assert (outdated.accepted, outdated.answer) == (False, "it was asked for again, later")


async def test_an_answered_request_can_be_made_again(journal: Journal) -> None:
    """It is a new one, with an id that was never used."""
    first = await journal.request(CANCEL, "one")
    await journal.answer(first, "done", accepted=True)
    second = await journal.request(CANCEL, "one")
    assert second > first
    assert [request.id for request in await journal.pending_requests()] == [second]


@pytest.mark.parametrize("accepted", [True, False])
async def test_the_first_answer_stands(journal: Journal, monkeypatch: pytest.MonkeyPatch, *, accepted: bool) -> None:
    """With its time and its word; a second one changes nothing."""
    request_id = await journal.request(RETRY, "one")
    monkeypatch.setattr(clock, "wall", lambda: 9.0)
    await journal.answer(request_id, "first", accepted=accepted)
    monkeypatch.setattr(clock, "wall", lambda: 10.0)
    await journal.answer(request_id, "second", accepted=not accepted)
    found = await journal.get_request(request_id)
    assert (found.answered_at, found.answer, found.accepted) == (9.0, "first", accepted)
    assert await journal.pending_requests() == []


async def test_an_unknown_request_is_a_store_error(journal: Journal) -> None:
    """The sentence names it; an answer to it is lost in silence."""
    await journal.answer(5, "nobody", accepted=True)
    with pytest.raises(StoreError, match="the journal has no request 5"):
        await journal.get_request(5)


async def test_facts_are_kept_replaced_and_dropped(journal: Journal) -> None:
    """Any JSON by its key; what is not there is None."""
    value = {"since": 1.5, "why": ["a", None, True], "text": "\N{SNOWMAN}"}
    await journal.put("held", 1)
    await journal.put("held", value)
    await journal.put("null", None)
    assert (await journal.get("held"), await journal.get("null"), await journal.get("none")) == (value, None, None)
    assert await journal.facts() == {"held": value, "null": None}
    await journal.delete("held")
    await journal.delete("held")
    assert await journal.facts() == {"null": None}


async def test_a_name_that_comes_again_is_numbered_on(journal: Journal) -> None:
    """A submission that went and came again has a new id; its attempts go on, since readers know it by its name."""
    comes_again = dataclasses.replace(ONE, id=3)
    attempts = [await journal.open_attempt(submission, "conda") for submission in (ONE, comes_again, TWO)]
    assert [attempt.number for attempt in attempts] == [1, 2, 1]
