"""An event below a folder of the test's own: a real store and journal, and a worker that runs nothing.

Open it, break it off, and open it again: what is outside the process (folders, databases, the fake's runs) stays.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
import yaml

from rampd.announcements import Announcements
from rampd.conclusion import bound_fields
from rampd.config import Settings, WorkerConfig, load_config
from rampd.dispatcher import Dispatcher
from rampd.errors import StoreError
from rampd.event import Event, build_journal, build_store
from rampd.lifecycle import Conclusion, Parked, attempt_submission
from rampd.models import Exit, Job, Results
from rampd.orders import Orders
from rampd.recovery import recover
from rampd.states import Outcome, Step, SubmissionState
from rampd.testing.workers import FakeAllocation, FakeRun, FakeWorker
from rampd.workers.base import WorkerContext
from support.training_output import build_training_output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import pytest

    from rampd.models import Attempt, Submission

PATIENCE_S = 30.0
Record = dict[str, Any]


class Crash(BaseException):
    """The daemon's sudden end: nothing that the daemon does catches it."""


class SlowWorker(FakeWorker):
    """Stands still in the step that `stands_in` names, until `go_on` is set; counts what runs at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stands_in = ""
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.most_at_once = 0

    async def _stand(self, step: str) -> None:
        if self.stands_in == step:
            self.reached.set()
            await self.go_on.wait()

    async def setup(self, job: Job) -> FakeAllocation:
        """Stand, then copy."""
        await self._stand("setup")
        return await super().setup(job)

    async def launch_submission(self, job: Job, allocation: FakeAllocation) -> FakeAllocation:
        """Stand, then launch."""
        await self._stand("launch_submission")
        launched = await super().launch_submission(job, allocation)
        self.most_at_once = max(self.most_at_once, sum(not run.done() for run in self.outside.values()))
        return launched

    async def wait(self, allocation: FakeAllocation) -> Exit:
        """Stand, then wait."""
        await self._stand("wait")
        return await super().wait(allocation)

    async def collect_results(self, job: Job, allocation: FakeAllocation) -> Results:
        """Stand, then collect."""
        await self._stand("collect_results")
        return await super().collect_results(job, allocation)

    async def teardown(self, allocation: FakeAllocation) -> None:
        """Stand, then forget the run."""
        await self._stand("teardown")
        await super().teardown(allocation)


@dataclass(slots=True)
class EventRoom:
    """One event's folders below `root`, and the world outside in which its fake runs live."""

    root: Path
    dispatcher: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, FakeRun] = field(default_factory=dict)
    outside: dict[str, asyncio.Future[Exit]] = field(default_factory=dict)
    resumable: bool = False

    def settings(self) -> Settings:
        """Write the config and read it."""
        path = self.root / "events" / "iris" / "config.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        sections = {
            "ramp": {"problem_name": "iris", "event_name": "iris"},
            "dispatcher": {"n_workers": 2, "settle_time": 0, "hunger_policy": "exit", **self.dispatcher},
            "worker": {"worker_type": "fake", "timeout": 60, **self.worker},
        }
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return load_config(path, worker_models=lambda _: WorkerConfig)

    @property
    def predictions(self) -> Path:
        """Where predictions are kept."""
        return self.root / "events" / "iris" / "predictions"

    @property
    def attempts(self) -> Path:
        """Where the attempts' folders are while they run."""
        return self.root / "events" / "iris" / "state" / "attempts"

    def submit(self, name: str, run: FakeRun | None = None) -> None:
        """Have a submission arrive by one rename; without a `run` it does well."""
        self.runs[name] = run or good_run()
        staging = self.root / f"staging-{name}"
        staging.mkdir()
        (staging / "estimator.py").write_text(f"# {name}\n", encoding="utf-8")
        submissions = self.root / "events" / "iris" / "submissions"
        submissions.mkdir(parents=True, exist_ok=True)
        staging.rename(submissions / name)

    def finish(self) -> None:
        """Have every run end now, with status 0."""
        for run in self.outside.values():
            if not run.done():
                run.set_result(Exit(0))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Event]:
        """Give the open event; its store has looked once."""
        settings = self.settings()
        state_dir = settings.dispatcher.state_dir
        context = WorkerContext("iris", self.root, settings.ramp.kit_dir, settings.ramp.data_dir, state_dir, 0.01)
        worker = SlowWorker(settings.worker, context, runs=self.runs, outside=self.outside, resumable=self.resumable)
        event = Event(settings, build_store(settings), build_journal(settings), worker)
        async with AsyncExitStack() as stack:
            await event.open(stack)
            await event.store.scan()
            yield event


def good_run(duration_s: float = 0.0, **options: Any) -> FakeRun:
    """Return a run that leaves a complete training_output."""
    return FakeRun(duration_s=duration_s, write_output=build_training_output, **options)


def bad_run(*, log: bytes = b"", status: int = 1, **options: Any) -> FakeRun:
    """Return a run that fails by itself, at once."""
    return FakeRun(duration_s=0.0, exit=Exit(status), log=log, **options)


def hung_run(**options: Any) -> FakeRun:
    """Return a run that does not end by itself while a test lasts."""
    return good_run(1000.0, **options)


def fake(event: Event) -> SlowWorker:
    """Return the event's worker as what it is."""
    assert isinstance(event.worker, SlowWorker)
    return event.worker


async def begin(event: Event) -> tuple[Submission, Attempt]:
    """Claim the next submission and open an attempt, as the dispatcher does."""
    submission = await event.store.claim()
    assert submission is not None
    return submission, await event.journal.open_attempt(submission, event.settings.worker.worker_type)


async def carry_on(event: Event, submission: Submission, attempt: Attempt, orders: Orders | None = None) -> Conclusion:
    """Take an attempt to its end, and journal which lines were written, as the dispatcher does."""
    announcements = Announcements(event.journal)
    with structlog.contextvars.bound_contextvars(**bound_fields(event, submission, attempt)):
        conclusion = await attempt_submission(
            event, submission, attempt, orders or Orders(), announcements=announcements
        )
    await announcements.settle()
    return conclusion


async def attempt_once(event: Event, orders: Orders | None = None) -> Conclusion:
    """Claim the next submission and take one attempt of it to its end."""
    submission, attempt = await begin(event)
    return await carry_on(event, submission, attempt, orders)


async def recovered(event: Event) -> list[tuple[Submission, Attempt]]:
    """Recover, and journal which lines were written."""
    announcements = Announcements(event.journal)
    going_on = await recover(event, announcements=announcements)
    await announcements.settle()
    return going_on


async def run_out(event: Event) -> None:
    """Recover, and attempt whatever waits until everything has its end: a daemon without its loop."""
    for submission, attempt in await recovered(event):
        with suppress(Parked):
            await carry_on(event, submission, attempt)
    while (await event.store.counts())[SubmissionState.NEW]:
        await attempt_once(event)


async def run_to_the_one_end(event: Event, name: str) -> None:
    """Have a submission that an earlier daemon left run out: scored once, by one attempt, its runs one at a time."""
    await asyncio.wait_for(run_out(event), PATIENCE_S)
    submission = await event.store.get(name)
    assert submission.state is SubmissionState.SCORED
    assert [state for state, _ in await event.store.history(submission.id)].count(SubmissionState.SCORED) == 1
    attempts = await event.journal.attempts()
    assert {attempt.step for attempt in attempts} == {Step.CLOSED}
    assert [attempt.outcome for attempt in attempts if attempt.final] == [Outcome.OK]
    assert fake(event).most_at_once <= 1


async def closed(event: Event, name: str = "one") -> list[tuple[Outcome | None, bool]]:
    """Return outcome and finality of each attempt, all of which must be closed, with nothing of them left."""
    attempts = await event.journal.attempts((await event.store.get(name)).id)
    assert [attempt.step for attempt in attempts] == [Step.CLOSED] * len(attempts)
    assert fake(event).outside == {}
    assert list((event.settings.dispatcher.state_dir / "attempts").iterdir()) == []
    return [(attempt.outcome, attempt.final) for attempt in attempts]


async def fact_of(event: Event, key: str) -> Any:
    """Return a fact for people, waiting for it.

    Raises
    ------
    AssertionError
        It did not come.
    """
    for _ in range(1000):
        if (fact := await event.journal.get(key)) is not None:
            return fact
        await asyncio.sleep(0.005)
    raise AssertionError(f"nothing was told of {key}")


@asynccontextmanager
async def served(event: Event) -> AsyncIterator[Dispatcher]:
    """Have a dispatcher run beside the block; stop it at the end, and wait for its own end."""
    dispatcher = Dispatcher(event)
    task = asyncio.ensure_future(dispatcher.run())
    ready = asyncio.ensure_future(dispatcher.ready.wait())
    try:
        await asyncio.wait({task, ready}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        yield dispatcher
        dispatcher.stop()
        await asyncio.wait_for(task, PATIENCE_S)
    finally:
        for one in (task, ready):
            one.cancel()
        await asyncio.wait({task, ready})


async def serve_out(event: Event) -> int:
    """Have a dispatcher serve an event with hunger_policy exit to its end; return its status."""
    return await asyncio.wait_for(Dispatcher(event).run(), PATIENCE_S)


def fail_times(
    monkeypatch: pytest.MonkeyPatch,
    event: Event,
    method: str,
    times: int = 1,
    *,
    error: type[BaseException] = StoreError,
    after: bool = False,
) -> list[int]:
    """Have the first calls of an asynchronous method fail, before or after its work is done.

    Parameters
    ----------
    monkeypatch
        Puts the method back.
    event
        The event.
    method
        `journal.decide`, say.
    times
        How many calls fail.
    error
        What they raise.
    after
        Whether the work was done when they do.

    Returns
    -------
    list of int
        Grows by one item a failure.
    """
    failures: list[int] = []
    part_name, _, name = method.partition(".")
    part = getattr(event, part_name)
    work: Callable[..., Awaitable[Any]] = getattr(part, name)

    async def failing(*arguments: Any, **options: Any) -> Any:
        if len(failures) < times:
            if after:
                await work(*arguments, **options)
            failures.append(1)
            raise error("the disk is full")
        return await work(*arguments, **options)

    monkeypatch.setattr(part, name, failing)
    return failures


def hurry(monkeypatch: pytest.MonkeyPatch, *, backoff_s: float = 0.02, check_s: float = 0.05) -> None:
    """Shorten what a test would only wait for: backoffs, the time between writes that failed, and looks at a hold."""
    for module in ("judging", "outage"):
        monkeypatch.setattr(f"rampd.{module}.backoff_s", lambda *_, **__: backoff_s)
    for module in ("hold", "dispatcher"):
        monkeypatch.setattr(f"rampd.{module}.CHECK_INTERVAL_S", check_s)
    monkeypatch.setattr("rampd.conclusion.wait_random_exponential", lambda **_: lambda _: 0.01)


def find(records: list[Record], event: str, **fields: object) -> list[Record]:
    """Return the records of `event` whose fields have these values."""
    return [
        record
        for record in records
        if record["event"] == event and all(record.get(key) == value for key, value in fields.items())
    ]


async def states_of(event: Event) -> dict[str, str]:
    """Return each submission's state."""
    return {submission.name: submission.state.value for submission in await event.store.list()}


async def history_of(event: Event, name: str = "one") -> list[str]:
    """Return every state that a submission had."""
    submission = await event.store.get(name)
    return [state.value for state, _ in await event.store.history(submission.id)]
