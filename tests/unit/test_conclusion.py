"""Making a decision true: predictions, store, journal, log; and writes that are repeated until they succeed."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from rampd.announcements import Announcements
from rampd.conclusion import conclude, decide_unrun, finished_fields, persist, staging_dir
from rampd.errors import ResultsError, StoreError, WorkerLostError
from rampd.models import Exit, StepScore, Verdict
from rampd.states import Outcome, Step, SubmissionState
from support.event import EventRoom, begin, fake, find, hurry
from support.store_room import until
from support.training_output import build_training_output

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.event import Event
    from rampd.models import Attempt, Submission

    Record = dict[str, Any]

SCORES = {"acc": {"train": StepScore(0.9, 0.01, None), "test": StepScore(0.8, math.nan, 0.85)}}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event with a submission, where nothing that fails is waited for."""
    hurry(monkeypatch)
    room = EventRoom(tmp_path)
    room.submit("one")
    return room


async def decided(event: Event, verdict: Verdict, *, final: bool = True) -> tuple[Submission, Attempt]:
    """Bring the submission's attempt to a decision."""
    submission, attempt = await begin(event)
    allocation = await event.worker.setup(event.job(submission, attempt))
    await event.journal.record_allocation(attempt.id, allocation.model_dump_json())
    await event.store.set_training(submission.id)
    finished = finished_fields(event, submission, attempt, verdict, final=final)
    return submission, await event.journal.decide(attempt.id, verdict, final=final, finished=finished)


async def decided_ok(event: Event) -> tuple[Submission, Attempt]:
    """Bring the submission's attempt to a good decision, with predictions in staging."""
    submission, attempt = await decided(event, Verdict(Outcome.OK, 0, scores=SCORES))
    staging = staging_dir(event, attempt.id)
    build_training_output(staging)
    verdict = Verdict(Outcome.OK, 0, scores=SCORES, output_inode=staging.stat().st_ino)
    return submission, _with(attempt, verdict)


def _with(attempt: Attempt, verdict: Verdict) -> Attempt:
    fields = {name: getattr(attempt, name) for name in type(attempt).__slots__}
    return type(attempt)(**{**fields, "verdict": verdict})


async def conclude_it(event: Event, submission: Submission, attempt: Attempt, **options: Any) -> None:
    """Conclude it."""
    await conclude(event, submission, attempt, announcements=Announcements(event.journal), **options)


async def test_what_is_not_decided_cannot_be_concluded(room: EventRoom) -> None:
    """An attempt without a verdict is a bug of the caller's."""
    async with room.opened() as event:
        submission, attempt = await begin(event)
        with pytest.raises(ValueError, match="not decided"):
            await conclude_it(event, submission, attempt)


async def test_concluding_twice_is_concluding_once(room: EventRoom, log_records: list[Record]) -> None:
    """Repeated after a crash, predictions, scores and states stay as they are."""
    async with room.opened() as event:
        submission, attempt = await decided_ok(event)
        await conclude_it(event, submission, attempt)
        inode = (room.predictions / "one").stat().st_ino
        history = await event.store.history(submission.id)
        await conclude_it(event, await event.store.get("one"), attempt)
        assert (room.predictions / "one").stat().st_ino == inode == attempt.verdict.output_inode  # type: ignore[union-attr]
        assert (room.predictions / "one" / "fold_0" / "scores.csv").is_file()
        assert await event.store.history(submission.id) == history
        (closed,) = await event.journal.attempts()
        assert closed.step is Step.CLOSED
    assert [path.name for path in room.predictions.iterdir()] == ["one"]


async def test_scores_in_the_log_are_plain_numbers(room: EventRoom, log_records: list[Record]) -> None:
    """Mean, std and bagged per score and step; what JSON has no word for is null."""
    async with room.opened() as event:
        await conclude_it(event, *await decided_ok(event))
    (scored,) = find(log_records, "submission.scored")
    assert scored["scores"] == {
        "acc": {
            "train": {"mean": 0.9, "std": 0.01, "bagged": None},
            "test": {"mean": 0.8, "std": None, "bagged": 0.85},
        }
    }


@pytest.mark.parametrize("outcome", [Outcome.PARTICIPANT_ERROR, Outcome.TIMEOUT])
async def test_a_training_error_leaves_no_predictions(room: EventRoom, outcome: Outcome) -> None:
    """Neither its own in staging nor those of an older attempt."""
    async with room.opened() as event:
        submission, attempt = await decided(event, Verdict(outcome, 1, "Traceback"))
        for folder in (staging_dir(event, attempt.id), room.predictions / "one"):
            (folder / "fold_0").mkdir(parents=True)
        await conclude_it(event, submission, attempt)
        assert (await event.store.get("one")).error_msg == "Traceback"
    assert list(room.predictions.iterdir()) == []


@pytest.mark.parametrize("outcome", [Outcome.LOST_HOST, Outcome.NO_CAPACITY, Outcome.PLATFORM_ERROR])
async def test_a_participant_never_sees_the_platforms_reason(room: EventRoom, outcome: Outcome) -> None:
    """Hosts and folders of ours are the operator's to know."""
    async with room.opened() as event:
        await conclude_it(event, *await decided(event, Verdict(outcome, None, reason="10.0.0.7 is gone")))
        submission = await event.store.get("one")
        assert submission.state is SubmissionState.CHECKING_ERROR
        assert submission.error_msg == "The platform failed, not the submission; the organizers can retry it."


async def test_what_is_put_back_leaves_no_staging(room: EventRoom, log_records: list[Record]) -> None:
    """A try that was not final keeps nothing but its backoff."""
    async with room.opened() as event:
        verdict = Verdict(Outcome.LOST_HOST, None, reason="gone", exit=Exit(None))
        submission, attempt = await decided(event, verdict, final=False)
        (staging_dir(event, attempt.id) / "fold_0").mkdir(parents=True)
        await conclude_it(event, submission, attempt, delay_s=100.0)
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert list(await event.journal.backoffs()) == [submission.id]
    assert list(room.predictions.iterdir()) == []
    assert len(find(log_records, "submission.retried", reason="gone", delay_s=100.0, counted=True)) == 1


async def test_an_interruption_has_no_backoff(room: EventRoom) -> None:
    """A submission that the daemon itself cut short waits for nothing."""
    async with room.opened() as event:
        await conclude_it(event, *await decided(event, Verdict(Outcome.INTERRUPTED, None, reason="x"), final=False))
        assert await event.journal.backoffs() == {}


async def test_the_journaled_allocation_is_torn_down(room: EventRoom) -> None:
    """A later process gives back what an earlier one took."""
    async with room.opened() as event:
        submission, attempt = await decided(event, Verdict(Outcome.CANCELLED, None, "Cancelled."))
        await conclude_it(event, submission, attempt)
        assert ("teardown", attempt.id) in fake(event).calls
        assert not event.job(submission, attempt).attempt_dir.exists()


async def test_the_store_knows_before_anything_is_torn_down(room: EventRoom) -> None:
    """A slow teardown delays nobody's result, and a failing one loses none."""
    async with room.opened() as event:
        worker = fake(event)
        worker.stands_in = "teardown"
        concluding = asyncio.ensure_future(conclude_it(event, *await decided_ok(event)))
        await worker.reached.wait()
        assert (await event.store.get("one")).state is SubmissionState.SCORED
        worker.runs["one"].raises["teardown"] = [WorkerLostError("gone")]
        worker.go_on.set()
        await concluding
        assert await event.journal.unfinished() == []


async def test_predictions_that_cannot_be_written_are_tried_again(room: EventRoom, log_records: list[Record]) -> None:
    """A predictions folder that is in the way for a while delays the end, and loses nothing."""
    async with room.opened() as event:
        submission, attempt = await decided_ok(event)
        hidden = room.predictions.with_name("hidden")
        room.predictions.rename(hidden)
        room.predictions.touch()
        concluding = asyncio.ensure_future(conclude_it(event, submission, attempt))
        await until(lambda: find(log_records, "store.unavailable"))
        assert (await event.store.get("one")).state is SubmissionState.TRAINING
        room.predictions.unlink()
        hidden.rename(room.predictions)
        await concluding
        assert (await event.store.get("one")).state is SubmissionState.SCORED
    assert (room.predictions / "one" / "fold_0").is_dir()


@pytest.mark.parametrize("error", [StoreError, ResultsError])
async def test_persist_repeats_what_may_work_later(
    monkeypatch: pytest.MonkeyPatch, log_records: list[Record], error: type[Exception]
) -> None:
    """Said once at each end, however often it failed; the result is the write's."""
    hurry(monkeypatch)
    failures = 5

    async def write() -> str:
        nonlocal failures
        if failures:
            failures -= 1
            raise error("the disk is full")
        return "written"

    assert await persist(write, "a state") == "written"
    (unavailable,) = find(log_records, "store.unavailable")
    assert unavailable["error"] == "a state could not be written: the disk is full"
    assert len(find(log_records, "store.recovered")) == 1


async def test_persist_repeats_no_bug(log_records: list[Record]) -> None:
    """Anything else is not the disk's fault, and nothing is said of a store."""

    async def write() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await persist(write, "a state")
    assert log_records == []


async def test_persist_can_be_cancelled(monkeypatch: pytest.MonkeyPatch, log_records: list[Record]) -> None:
    """A daemon that exits at once does not wait for a disk."""
    hurry(monkeypatch)

    async def write() -> None:
        raise StoreError("the disk is full")

    writing = asyncio.ensure_future(persist(write, "a state"))
    await until(lambda: log_records)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


@pytest.mark.looptime
async def test_persist_is_patient_up_to_ten_seconds_a_try() -> None:
    """Waits grow, with jitter, and are bounded."""
    loop = asyncio.get_running_loop()
    tries: list[float] = []

    async def write() -> None:
        tries.append(loop.time())
        if len(tries) < 40:
            raise StoreError("the disk is full")

    await persist(write, "a state")
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert max(waits) <= 10.001
    assert max(waits[-20:]) > max(waits[:3])


async def test_ending_a_waiting_submission_has_an_attempt(room: EventRoom, log_records: list[Record]) -> None:
    """Each final state has one outcome in the journal and one line, though nothing ran."""
    async with room.opened() as event:
        (submission,) = await event.store.list()
        verdict = Verdict(Outcome.CANCELLED, None, "Cancelled by the organizers.")
        await decide_unrun(event, submission, verdict, announcements=Announcements(event.journal))
        (attempt,) = await event.journal.attempts()
        assert (attempt.outcome, attempt.final, attempt.step) == (Outcome.CANCELLED, True, Step.CLOSED)
        assert fake(event).calls == []
    (finished,) = find(log_records, "submission.finished")
    assert (finished["submission"], finished["attempt"], finished["event_name"]) == ("one", 1, "iris")
    assert finished["setup_s"] is finished["run_s"] is finished["collect_s"] is None


async def test_finished_fields_of_what_is_put_back_say_new(room: EventRoom) -> None:
    """The journal keeps what the state became, not what it would have been."""
    async with room.opened() as event:
        submission, attempt = await begin(event)
        verdict = Verdict(Outcome.LOST_HOST, None, reason="gone")
        assert finished_fields(event, submission, attempt, verdict, final=False)["state"] == "new"
        assert finished_fields(event, submission, attempt, verdict, final=True)["state"] == "checking_error"
