"""Orders to a running attempt, and runs that an earlier daemon launched."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.errors import (
    WorkerLostError,
)
from rampd.lifecycle import Parked
from rampd.orders import Order, Orders
from rampd.states import Outcome, Step, SubmissionState
from support.event import (
    EventRoom,
    attempt_once,
    begin,
    carry_on,
    closed,
    fake,
    find,
    good_run,
    hung_run,
)
from support.store_room import until

if TYPE_CHECKING:
    from typing import Any

    from rampd.event import Event
    from rampd.lifecycle import Conclusion

    Record = dict[str, Any]


async def _interrupted(event: Event) -> Conclusion:
    orders = Orders()
    attempting = asyncio.ensure_future(attempt_once(event, orders))
    await until(lambda: fake(event).outside)
    orders.give(Order.INTERRUPT)
    return await attempting


async def test_interruptions_are_free_until_the_tenth_in_a_row(room: EventRoom, log_records: list[Record]) -> None:
    """A submission that the daemon's own end cuts short again and again comes to an end as well."""
    room.worker["max_attempts"] = 1
    room.submit("one", hung_run())
    async with room.opened() as event:
        for _ in range(10):
            conclusion = await _interrupted(event)
            assert (conclusion.outcome, conclusion.final, conclusion.delay_s) == (Outcome.INTERRUPTED, False, 0.0)
        assert (await _interrupted(event)).final
        assert (await event.store.get("one")).state is SubmissionState.CHECKING_ERROR
        assert len(await closed(event)) == 11
    assert len(find(log_records, "submission.retried", counted=False, delay_s=0)) == 10
    (finished,) = find(log_records, "submission.finished")
    assert finished["outcome"] == "platform_error"


async def test_an_interruption_puts_it_back_at_its_place(room: EventRoom) -> None:
    """A submission that is interrupted is the next one again."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        room.submit("two")
        await event.store.scan()
        await _interrupted(event)
        assert [submission.name for submission in await event.store.list({SubmissionState.NEW})] == ["one", "two"]


@pytest.mark.parametrize("step", ["setup", "launch_submission", "wait"])
@pytest.mark.parametrize("order", list(Order))
async def test_an_order_ends_each_step(room: EventRoom, step: str, order: Order, log_records: list[Record]) -> None:
    """Cancelled or interrupted in any step, nothing of the attempt is left, and the step was begun once."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        worker, orders = fake(event), Orders()
        worker.stands_in = step
        attempting = asyncio.ensure_future(attempt_once(event, orders))
        await worker.reached.wait()
        orders.give(order)
        await attempting
        cancelled = order is Order.CANCEL
        outcome = Outcome.CANCELLED if cancelled else Outcome.INTERRUPTED
        assert await closed(event) == [(outcome, cancelled)]
        submission = await event.store.get("one")
        assert submission.state is (SubmissionState.CHECKING_ERROR if cancelled else SubmissionState.NEW)
        assert submission.error_msg == ("Cancelled by the organizers." if cancelled else "")
        torn_down = [step for step, _ in worker.calls].count("teardown")
        assert torn_down == (0 if step == "setup" else 1)  # a setup that is cancelled leaves nothing behind
    assert bool(find(log_records, "submission.cancelled")) is cancelled


async def test_an_order_during_collection_comes_too_late(room: EventRoom) -> None:
    """A run that has ended is judged, and torn down, whatever is asked for then."""
    room.submit("one")
    async with room.opened() as event:
        worker, orders = fake(event), Orders()
        worker.stands_in = "collect_results"
        attempting = asyncio.ensure_future(attempt_once(event, orders))
        await worker.reached.wait()
        orders.give(Order.CANCEL)
        assert orders.has_ended
        worker.go_on.set()
        assert (await attempting).outcome is Outcome.OK
        assert await closed(event) == [(Outcome.OK, True)]


@pytest.mark.parametrize("method", ["stop", "teardown"])
async def test_a_cancel_stands_where_the_host_is_lost(room: EventRoom, method: str) -> None:
    """What cannot even be stopped is cancelled all the same."""
    room.submit("one", hung_run(raises={method: [WorkerLostError("gone")]}))
    async with room.opened() as event:
        orders = Orders()
        attempting = asyncio.ensure_future(attempt_once(event, orders))
        await until(lambda: room.outside)
        orders.give(Order.CANCEL)
        assert (await attempting).outcome is Outcome.CANCELLED
        assert (await event.store.get("one")).state is SubmissionState.CHECKING_ERROR


async def _launched(event: Event, *, in_training: bool = True, **fields: object) -> Conclusion:
    """Go on with an attempt that was launched by another process."""
    submission, attempt = await begin(event)
    job = event.job(submission, attempt)
    allocation = await event.worker.setup(job)
    await event.journal.record_allocation(attempt.id, allocation.model_dump_json())
    allocation = await event.worker.launch_submission(job, allocation)
    attempt = await event.journal.record_launch(attempt.id, allocation.model_dump_json())
    if in_training:
        await event.store.set_training(submission.id)
    return await carry_on(event, submission, replace(attempt, **fields))  # type: ignore[arg-type]


async def test_a_resumed_run_is_not_launched_again(room: EventRoom, log_records: list[Record]) -> None:
    """A run that goes on is waited for, and said to be resumed."""
    room.submit("one", good_run(0.02))
    async with room.opened() as event:
        assert (await _launched(event)).outcome is Outcome.OK
        assert len(fake(event).launches) == 1
    assert len(find(log_records, "submission.resumed", pid=1)) == 1
    assert not find(log_records, "submission.started")


async def test_the_deadline_counts_from_the_journaled_launch(room: EventRoom, log_records: list[Record]) -> None:
    """Time that a run spent under an earlier daemon is not given again."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        conclusion = await asyncio.wait_for(_launched(event, launched_boottime_s=clock.boottime() - 59.95), 5)
        assert conclusion.outcome is Outcome.TIMEOUT
    (finished,) = find(log_records, "submission.finished")
    assert 60 <= finished["run_s"] < 65


async def test_after_a_reboot_the_deadline_counts_by_the_wall_clock(room: EventRoom) -> None:
    """A boot-time figure of another boot means nothing."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        fields: dict[str, Any] = {
            "boot_id": "another",
            "launched_boottime_s": clock.boottime(),
            "launched_at": clock.wall() - 59.95,
        }
        assert (await asyncio.wait_for(_launched(event, **fields), 5)).outcome is Outcome.TIMEOUT


async def test_a_resumable_run_is_parked(room: EventRoom) -> None:
    """Where a later process can take it over, a stop leaves the run and its rows as they are."""
    room.resumable = True
    room.submit("one", hung_run())
    async with room.opened() as event:
        with pytest.raises(Parked):
            await _interrupted(event)
        (attempt,) = await event.journal.attempts()
        assert attempt.step is Step.LAUNCHED
        assert (await event.store.get("one")).state is SubmissionState.TRAINING
        assert list(room.outside) == [attempt.id]


async def test_a_resumable_run_is_cancelled_like_any_other(room: EventRoom) -> None:
    """The organizers' word does not park."""
    room.resumable = True
    room.submit("one", hung_run())
    async with room.opened() as event:
        orders = Orders()
        attempting = asyncio.ensure_future(attempt_once(event, orders))
        await until(lambda: room.outside)
        orders.give(Order.CANCEL)
        assert (await attempting).outcome is Outcome.CANCELLED
        assert await closed(event) == [(Outcome.CANCELLED, True)]


async def test_a_run_that_was_taken_over_just_after_its_launch_is_in_training(room: EventRoom) -> None:
    """A daemon that was killed between launching a run and saying so does not keep the run from being scored."""
    room.submit("one", good_run(0.02))
    async with room.opened() as event:
        conclusion = await asyncio.wait_for(_launched(event, in_training=False), 5)
        assert conclusion.outcome is Outcome.OK
        assert (await event.store.get("one")).state is SubmissionState.SCORED


@pytest.mark.parametrize("order", list(Order))
async def test_a_wait_that_fails_when_an_order_comes_is_no_noise(room: EventRoom, order: Order) -> None:
    """The order is obeyed, and asyncio has no exception to report that nobody asked for."""
    room.submit("one", hung_run())
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    begun = asyncio.Event()

    async def lose(_: object) -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise WorkerLostError("gone") from None

    async with room.opened() as event:
        fake(event).wait = lose  # type: ignore[method-assign, assignment] # a worker whose wait ends badly
        orders = Orders()
        attempting = asyncio.ensure_future(attempt_once(event, orders))
        await begun.wait()
        orders.give(order)
        assert (await attempting).outcome is (Outcome.CANCELLED if order is Order.CANCEL else Outcome.INTERRUPTED)
    del attempting
    gc.collect()
    assert complaints == []
