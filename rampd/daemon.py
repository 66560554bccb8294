"""The process: settings in, exit status out. Opens everything in one exit stack, one dispatcher an event, signals."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

import rampd
from rampd import clock
from rampd.announcements import Announcements
from rampd.conclusion import bound_fields
from rampd.dispatcher import Dispatcher
from rampd.errors import ConfigError, RampdError
from rampd.event import Event, load_settings, make_folders
from rampd.exit_statuses import EX_FAILED, EX_OK
from rampd.lifecycle import attempt_submission
from rampd.orders import Orders
from rampd.recovery import recover
from rampd.state_lock import StateLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rampd.config import Settings
    from rampd.models import Submission

log = structlog.get_logger("rampd.daemon")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class _Daemon:
    run: str
    began: float = field(default_factory=clock.boottime)
    dispatchers: list[Dispatcher] = field(default_factory=list)
    stop_signals: int = 0
    at_once: asyncio.Event = field(default_factory=asyncio.Event)

    def on_signal(self, number: signal.Signals) -> None:
        self.stop_signals += 1
        if self.stop_signals > 1:
            self.at_once.set()
            return
        log.info(
            "daemon.stopping",
            signal=number.name,
            reason="asked to stop; once more to exit now",
            running=sum(dispatcher.running for dispatcher in self.dispatchers),
            grace_s=max((d.event.settings.dispatcher.shutdown_grace for d in self.dispatchers), default=0.0),
        )
        for dispatcher in self.dispatchers:
            dispatcher.stop()


async def serve(configs: Sequence[Path], *, deployment_dir: Path | None, run: str) -> int:
    """Serve the events of `configs` until a signal, or until every event has ended by its hunger_policy.

    Parameters
    ----------
    configs
        The events' config files, at least one.
    deployment_dir
        What relative paths in them are relative to; None for the place each file implies.
    run
        The random id of this process, as the log stream has it.

    Returns
    -------
    int
        The exit status: 0; 1 where an event that is held ended by `hunger_policy: exit`.

    Raises
    ------
    ConfigError
        The only config is wrong; with several, the others are served.
    LockedError
        Another daemon serves the only event.
    RampdError
        The only event's store, journal or worker cannot be opened.
    """
    daemon = _Daemon(run)
    async with AsyncExitStack() as stack:
        for config in configs:
            try:
                daemon.dispatchers.append(await _open(config, deployment_dir, stack))
            except RampdError as error:
                if len(configs) == 1:
                    raise
                problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
                log.error("config.rejected", path=str(config), problems=problems)  # noqa: TRY400 -- the problems say it all
        if not daemon.dispatchers:
            raise ConfigError(["none of the events can be served; each was named in a config.rejected record"])
        await _say_started(daemon)
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, daemon.on_signal, number)
            stack.callback(loop.remove_signal_handler, number)
        status = await _run_to_the_end(daemon)
    log.info(
        "daemon.stopped",
        exit_status=status,
        uptime_s=clock.boottime() - daemon.began,
        finished=sum(dispatcher.finished for dispatcher in daemon.dispatchers),
    )
    return status


async def _open(config: Path, deployment_dir: Path | None, stack: AsyncExitStack) -> Dispatcher:
    """Load, lock and open one event; what was opened before an error is closed again."""
    settings = await asyncio.to_thread(load_settings, config, deployment_dir=deployment_dir)
    with structlog.contextvars.bound_contextvars(event_name=settings.ramp.event_name):
        for warning in settings.warnings:
            log.warning("config.warning", path=str(config), message=warning)
        async with AsyncExitStack() as own:
            event = await _open_event(settings, own)
            stack.push_async_exit(own.pop_all())
    return Dispatcher(event)


async def _open_event(settings: Settings, stack: AsyncExitStack) -> Event:
    make_folders(settings)
    stack.enter_context(StateLock(settings.dispatcher.state_dir))
    event = Event.build(settings)
    await event.open(stack)
    return event


async def _say_started(daemon: _Daemon) -> None:
    events = [dispatcher.event for dispatcher in daemon.dispatchers]
    first = events[0].settings
    log.info(
        "daemon.started",
        version=rampd.__version__,
        pid=os.getpid(),
        python=platform.python_version(),
        uvloop=type(asyncio.get_running_loop()).__module__.startswith("uvloop"),
        events=[event.settings.ramp.event_name for event in events],
        state_dir=str(first.dispatcher.state_dir),
        n_workers=sum(event.settings.dispatcher.n_workers for event in events),
        n_threads=first.dispatcher.n_threads,
        containment=events[0].worker.describe().get("containment"),
        worker={event.settings.ramp.event_name: dict(event.worker.describe()) for event in events},
    )
    for event in events:
        fact = {
            "pid": os.getpid(),
            "run": daemon.run,
            "version": rampd.__version__,
            "started_at": clock.wall(),
            "n_workers": event.settings.dispatcher.n_workers,
            "worker_type": event.settings.worker.worker_type,
        }
        await event.journal.put("daemon", fact)


async def _run_to_the_end(daemon: _Daemon) -> int:
    serving = [asyncio.create_task(dispatcher.run(), name="dispatcher") for dispatcher in daemon.dispatchers]
    announcing = asyncio.create_task(_say_ready(daemon), name="ready")
    leaving = asyncio.create_task(daemon.at_once.wait(), name="exit-now")
    try:
        pending: set[asyncio.Task[Any]] = set(serving)
        while pending and not leaving.done():
            _, waited = await asyncio.wait({*pending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            pending = waited - {leaving}
    finally:
        for task in (*serving, announcing, leaving):
            task.cancel()
        await asyncio.wait({*serving, announcing, leaving})
    if daemon.at_once.is_set() and any(task.cancelled() for task in serving):
        raise RampdError("a second signal: exits now; what was running is put back at the next start")
    return _status_of(daemon, serving)


def _status_of(daemon: _Daemon, serving: Sequence[asyncio.Task[int]]) -> int:
    status = EX_OK
    for dispatcher, task in zip(daemon.dispatchers, serving, strict=True):
        error = task.exception()
        if error is None:
            status = max(status, task.result())
            continue
        if len(serving) == 1:
            raise error
        log.error("event.failed", event_name=dispatcher.event.settings.ramp.event_name, exc_info=error)
        status = EX_FAILED
    return status


async def _say_ready(daemon: _Daemon) -> None:
    for dispatcher in daemon.dispatchers:
        await dispatcher.ready.wait()
    counts: dict[str, int] = {}
    for dispatcher in daemon.dispatchers:
        for state, count in (await dispatcher.event.store.counts()).items():
            counts[state] = counts.get(state, 0) + count
    log.info("daemon.ready", startup_s=clock.boottime() - daemon.began, counts=counts)


async def run_one(settings: Settings, name: str, *, on_orders: Callable[[Orders], None] | None = None) -> Submission:
    """Run one submission in the foreground, without a daemon, by the same way that a daemon takes it.

    Parameters
    ----------
    settings
        The event's.
    name
        The submission's; one that has ended already is run again.
    on_orders
        Called with the attempt's letter box, through which it can be cancelled.

    Returns
    -------
    Submission
        As the store has it afterwards; in state `new` where the attempt failed for the platform's reasons.

    Raises
    ------
    LockedError
        A daemon serves the event.
    UnknownSubmissionError
        There is none of that name.
    WorkerSetupError
        The event cannot run at all.
    """
    async with AsyncExitStack() as stack:
        event = await _open_event(settings, stack)
        await event.worker.check()
        announcements = Announcements(event.journal)
        await recover(event, announcements=announcements)
        await event.store.scan()
        claimed = await event.store.claim_named(name)
        if claimed is None:
            submission = await event.store.get(name)
            await event.journal.start_count_anew(submission.id)
            await event.store.requeue(submission.id)
            claimed = await event.store.claim_named(name)
        if claimed is None:
            raise RampdError(f"{name!r} cannot be run now")
        attempt = await event.journal.open_attempt(claimed, settings.worker.worker_type)
        orders = Orders()
        if on_orders is not None:
            on_orders(orders)
        with structlog.contextvars.bound_contextvars(**bound_fields(event, claimed, attempt)):
            await attempt_submission(event, claimed, attempt, orders, announcements=announcements)
        await announcements.settle()
        return await event.store.get(name)
