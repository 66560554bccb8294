"""One event: slots, wake-ups, claiming, spawning, the hunger policy. Decides what runs next, never how.

The loop takes a slot first and claims then, so that nothing in memory ever holds a submission that has no slot. Every
running submission is one task; the journal and the store know all the rest.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from rampd import clock
from rampd.announcements import Announcements
from rampd.backoffs import Backoffs
from rampd.claims import Claims
from rampd.conclusion import bound_fields, cancel_unrun, persist
from rampd.errors import StoreError
from rampd.event import WAKE_FILE
from rampd.hold import CHECK_INTERVAL_S, Hold
from rampd.lifecycle import Parked, attempt_submission
from rampd.notes import Notes
from rampd.orders import Order, Orders, Run, all_over
from rampd.outage import Outage, until_it_works
from rampd.pulse import Pulse
from rampd.recovery import reclaim_now_and_then, recover
from rampd.requests import Requests
from rampd.slots import Slots
from rampd.states import HungerPolicy, Outcome, SubmissionState
from rampd.watch import FileWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from rampd.config import Settings
    from rampd.event import Event
    from rampd.models import Attempt, Submission

log = structlog.get_logger("rampd.dispatcher")

_INTERRUPTION_S = 20.0
"""How long an interrupted run may take to end: TERM, 5 s, KILL, and the writes after it."""


class Dispatcher:
    """Serves one event until it is told to stop, or until hunger_policy `exit` finds nothing left.

    Parameters
    ----------
    event
        Its rooms, open; nobody else may serve it (the state_dir's lock).
    shared
        The slots of all events of a daemon together, of which each run takes one besides the event's own; None where
        they are not limited.
    on_activity
        Called whenever something may have started, ended or arrived.
    """

    def __init__(
        self, event: Event, *, shared: Slots | None = None, on_activity: Callable[[], None] = lambda: None
    ) -> None:
        self.event = event
        self.ready = asyncio.Event()
        self.finished = 0
        """How many submissions came to a final state under this dispatcher."""
        self._slots = Slots(event.settings.dispatcher.n_workers)
        # One pump an event and first come, first served: so events that wait take turns.
        self._shared = shared or Slots(sys.maxsize)
        self._on_activity = on_activity
        self._pulse = Pulse()
        self._pumping = False
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []
        self._claiming = asyncio.Lock()
        self._closing = asyncio.Event()
        """Nothing more is claimed; what runs may end."""
        self._stopping = asyncio.Event()
        """What runs has shutdown_grace to end."""
        self._drained, self._status = False, 0
        self._backoffs = Backoffs()
        self._claims = Claims(self._backoffs)
        self._held: set[str] = set()
        """The ids of the attempts that have a task: what a reclaiming worker leaves alone."""
        self._announcements = Announcements(event.journal)
        self._hold = Hold(
            event, announcements=self._announcements, deciding=self._claiming, runs=self._runs, pulse=self._pulse
        )
        self._requests = Requests(event, self._runs, announcements=self._announcements)
        self._notes = Notes(event.journal)

    @property
    def running(self) -> int:
        """How many submissions have a slot."""
        return len(self._runs)

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is claimed, for good."""
        return self._closing.is_set()

    def stop(self) -> None:
        """Claim no more. `run` drains for shutdown_grace, then interrupts what is left. Idempotent."""
        self._closing.set()
        self._stopping.set()

    def close(self) -> None:
        """Claim no more. `run` returns once all that runs has ended, however long that takes. Idempotent."""
        self._closing.set()

    def reload(self, settings: Settings) -> None:
        """Put settings in force for what starts from now on; what runs keeps what it started with.

        Parameters
        ----------
        settings
            They differ from the present ones in nothing that needs the event opened anew (`rampd.reloading`).
        """
        self.event = self._hold.event = self._requests.event = self.event.reloaded(settings)
        self._slots.resize(settings.dispatcher.n_workers)
        self.event.store.changed.set()

    async def pulse(self) -> None:
        """Return once the pump has shown that it moves, or has rightly nothing to do; never, if it is stuck."""
        if self._pumping:
            await self._pulse.felt(self.event.store.changed.set)

    async def run(self) -> int:
        """Serve the event.

        Returns
        -------
        int
            0, or 1 where hunger_policy `exit` ended an event that is still held.

        Raises
        ------
        JournalCorruptError, StoreError
            The event cannot be served at all.
        """
        # Whatever is said from here on, by the store's watch or a worker as well, is said of this event.
        with structlog.contextvars.bound_contextvars(event_name=self.event.settings.ramp.event_name):
            try:
                return await self._run_event()
            except ExceptionGroup as several:
                # What broke first is what there is to say; the group would only say that something did.
                raise several.exceptions[0] from several

    async def _run_event(self) -> int:
        try:
            async with asyncio.TaskGroup() as group:
                announcing = group.create_task(self._announcements.run(), name=self._named("announcements"))
                closing = group.create_task(self._closing.wait(), name=self._named("closing"))
                beginning = group.create_task(self._begin(group), name=self._named("beginning"))
                await asyncio.wait({beginning, closing}, return_when=asyncio.FIRST_COMPLETED)
                if beginning.done():
                    await self._serve(group, closing)
                else:
                    # A start that cannot go on (predictions_dir cannot be written, say) must not keep the daemon: it
                    # is begun again at the next one.
                    beginning.cancel()
                    await asyncio.wait({beginning})
                closing.cancel()
                await self._drain()
                for task in self._background:
                    task.cancel()
                await self._announcements.settle()
                announcing.cancel()
        finally:
            # Only where something broke, or the daemon exits at once: what still runs is put back at the next start.
            for task in self._tasks:
                task.cancel()
        return self._status

    async def _serve(self, group: asyncio.TaskGroup, closing: asyncio.Task[Any]) -> None:
        """Claim and start submissions until told to stop, or until there is nothing left."""
        pump = group.create_task(self._pump(), name=self._named("pump"))
        self._pumping = True
        self.ready.set()
        await asyncio.wait({pump, closing}, return_when=asyncio.FIRST_COMPLETED)
        self._pumping = False
        self._pulse.beat()  # for whoever waits to feel it
        with suppress(TimeoutError):  # whoever decides about a waiting submission may wait for a store that is away
            async with asyncio.timeout(_INTERRUPTION_S), self._claiming:  # never between a claim and its task
                pump.cancel()
        pump.cancel()

    async def _begin(self, group: asyncio.TaskGroup) -> None:
        """Take up what the last daemon left, look at the folders once, and obey what was asked for meanwhile."""
        # A store that goes away just now is waited for: recovery begins again where it was.
        recovering = partial(recover, self.event, announcements=self._announcements)
        for submission, attempt in await persist(recovering, "what an earlier daemon left"):
            self._slots.take()
            self._shared.take()
            run = self._spawn(submission, attempt)
            if await self.event.journal.is_cancelled(attempt):
                run.orders.give(Order.CANCEL)  # the last daemon had accepted it, and ended before it could obey
        await self._hold.forget()
        await self._notes.forget()
        self._backoffs.load(await self.event.journal.backoffs())
        self._background.append(group.create_task(self.event.store.watch(), name=self._named("store")))
        await self.event.store.scanned.wait()
        await persist(self._answer_requests, "an answer to the operator")
        self._background.append(group.create_task(self._listen(), name=self._named("operator")))
        if self.event.worker.reclaim_interval_s is not None:
            reclaiming = reclaim_now_and_then(self.event.worker, self._held)
            self._background.append(group.create_task(reclaiming, name=self._named("reclaim")))

    def _named(self, part: str) -> str:
        return f"{self.event.settings.ramp.event_name}:{part}"

    async def _pump(self) -> None:
        while True:
            self._pulse.beat()
            await self._take_from(self._slots)
            try:
                found = await self._next()
            except BaseException:
                self._slots.release()
                raise
            if found is None:
                self._slots.release()
                return

    async def _take_from(self, slots: Slots) -> None:
        with self._pulse.resting(lambda: slots.taken >= slots.size):
            await slots.acquire()

    async def _next(self) -> Submission | None:
        """Claim and start the next submission, waiting for one; None when hunger_policy `exit` ends the event."""
        outage = Outage()
        while True:
            self._pulse.beat()
            self._on_activity()
            self.event.store.changed.clear()
            try:
                if await self._may_claim():
                    started = await self._start_within_the_share()
                    if started is not None:
                        outage.is_over()
                        return started
                    if await self._is_done():
                        return None
                elif await self._is_done():
                    self._status = 1 if self._hold.is_on else 0
                    return None
                outage.is_over()
            except StoreError as error:
                with self._pulse.resting(lambda: True):
                    await asyncio.sleep(outage.seen(error))
                continue
            await self._notes.settling(self.event.store.settling)
            if not self._runs and not self._backoffs:
                await self._notes.capacity()  # whoever lacked it was cancelled, or has gone
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_next_look_s()):
                    await self.event.store.changed.wait()

    async def _start_within_the_share(self) -> Submission | None:
        """Claim and start the next submission once there is a slot among all events' too; None: there is none now.

        Such a slot is not kept while there is nothing to run: an idle event must not take a busy one's.
        """
        if self._shared.taken < self._shared.size:
            await self._shared.acquire()
        elif not (await self.event.store.counts())[SubmissionState.NEW]:
            return None
        else:
            await self._take_from(self._shared)
            if not await self._may_claim_after_all():
                return None
        started = None
        try:
            started = await self._claim_and_start()
        finally:
            if started is None:
                self._shared.release()
        return started

    async def _may_claim_after_all(self) -> bool:
        """Say whether things are as they were before a wait for a slot; give the slot back if not."""
        allowed = False
        try:
            allowed = await self._may_claim()
        finally:
            if not allowed:
                self._shared.release()
        return allowed

    async def _may_claim(self) -> bool:
        return not self._drained and await self._hold.look()

    async def _claim_and_start(self) -> Submission | None:
        with self._pulse.resting(self._claiming.locked):  # a cancel may wait for the store
            await self._claiming.acquire()
        try:
            # What was put back is not taken before its attempt has wholly ended: only then is its backoff known, too.
            claimed = await self._claims.next(self.event, busy=[run.submission.id for run in self._runs.values()])
            return self._spawn(*claimed).submission if claimed is not None else None
        finally:
            self._claiming.release()

    def _spawn(self, submission: Submission, attempt: Attempt) -> Run:
        orders = Orders()
        name = self._named(f"submission/{submission.name}")
        task = asyncio.create_task(self._run(submission, attempt, orders), name=name)
        run = self._runs[submission.name] = Run(submission, orders, task)
        self._tasks.add(task)
        self._held.add(attempt.id)
        task.add_done_callback(partial(self._ended, submission, attempt.id))
        self._on_activity()
        return run

    def _ended(self, submission: Submission, attempt_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._held.discard(attempt_id)
        self._runs.pop(submission.name, None)
        self._slots.release()
        self._shared.release()
        self.event.store.changed.set()
        self._on_activity()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("lifecycle.failed", submission=submission.name, submission_id=submission.id, exc_info=error)

    async def _run(self, submission: Submission, attempt: Attempt, orders: Orders) -> None:
        with structlog.contextvars.bound_contextvars(**bound_fields(self.event, submission, attempt)):
            try:
                conclusion = await attempt_submission(
                    self.event, submission, attempt, orders, announcements=self._announcements
                )
            except Parked:
                return
        if not conclusion.final and conclusion.delay_s > 0:
            self._backoffs.set(submission.id, conclusion.delay_s)
        if conclusion.hold is not None:
            await self._hold.set(conclusion.hold)
        if conclusion.outcome is Outcome.NO_CAPACITY:
            await self._notes.no_capacity(clock.wall() + (self._backoffs.next_s() or 0.0))
        else:
            await self._notes.capacity()
        # Last, with no await after it: whoever cancels until then was told that it is being stopped.
        is_cancelled = not conclusion.final and orders.order is Order.CANCEL
        if is_cancelled:  # the order came when the attempt was decided, and the submission had gone back to `new`
            ending = partial(cancel_unrun, self.event, submission, announcements=self._announcements)
            await persist(ending, "an outcome")
            self._backoffs.drop(submission.id)
        self.finished += conclusion.final or is_cancelled

    async def _is_done(self) -> bool:
        """Say whether nothing is new, settling, queued, in backoff, running or being written (hunger_policy exit)."""
        if self.event.settings.dispatcher.hunger_policy is not HungerPolicy.EXIT:
            return False
        if self._runs or self._claims.are_open or self.event.store.settling:
            return False
        if await self.event.journal.pending_requests():
            return False
        return (await self.event.store.counts())[SubmissionState.NEW] == 0

    def _until_next_look_s(self) -> float | None:
        """Return when to look again although nothing happened, in seconds from now; None for never."""
        if self._drained:
            return None
        if self._hold.is_on:
            return CHECK_INTERVAL_S
        next_s = self._backoffs.next_s()
        return None if next_s is None else max(0.01, next_s)

    async def _listen(self) -> None:
        """Answer what the operator asks for, now and whenever the wake file is touched."""
        async with FileWatch(self.event.settings.dispatcher.state_dir / WAKE_FILE) as wake:
            while True:
                await until_it_works(self._answer_requests)
                await wake.touched()

    async def _answer_requests(self) -> None:
        drained = await self.event.journal.get("drained") is not None
        if drained is not self._drained:
            self._drained = drained
            log.info("event.drained" if drained else "event.resumed")
        async with self._claiming:
            for submission_id in await self._requests.answer():
                self._backoffs.drop(submission_id)
        self.event.store.changed.set()

    async def _drain(self) -> None:
        """Let what runs end; once it is to stop, for shutdown_grace only, and then interrupt it."""
        await all_over(self._tasks, unless=self._stopping)
        if not self._tasks:
            return
        await asyncio.wait(self._tasks, timeout=self.event.settings.dispatcher.shutdown_grace)
        for run in self._runs.values():
            run.orders.give(Order.INTERRUPT)
        self.event.worker.hurry()
        if self._tasks:
            # What cannot be written by then (a full disk, say) is in the journal or is put back at the next start.
            await asyncio.wait(self._tasks, timeout=_INTERRUPTION_S)
