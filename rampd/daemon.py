"""The process: configs in, exit status out. Signals, reloads, and what the service manager is told.

Which events are served is the roster's business, and how each is served its service's.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

import rampd
from rampd import clock
from rampd.config_files import CONFIG_NAME, ConfigFiles
from rampd.errors import ConfigError, RampdError, StoreError
from rampd.roster import Roster
from rampd.slots import Slots
from rampd.states import SubmissionState
from rampd.systemd import Notifier, watch_over
from rampd.watch import ConfigsWatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rampd.roster import Report
    from rampd.service import Service

log = structlog.get_logger("rampd.daemon")

_RESCAN_S: Final = 10.0
"""How often the configs are looked at although nothing was heard of."""
_GATHER_S: Final = 0.2
"""What editors and scripts do to a folder comes in bursts: one look serves them."""
_LOOK_AGAIN_S: Final = 0.5
_STATUS_S: Final = 1.0
"""How often, at most, systemd is told what goes on."""
_STATUS_AGAIN_S: Final = 5.0
"""How often it is told while something runs: of what arrives while every slot is taken nobody hears."""
_EXTEND_EVERY_S: Final = 5.0
_EXTEND_BY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a daemon serves, and how much at once."""

    configs: Sequence[Path]
    events_dir: Path | None = None
    deployment_dir: Path | None = None
    max_workers: int | None = None
    """How many submissions run at once over all events; None: as many as the events allow together."""


@dataclass(slots=True)
class _Orders:
    """What signals and the watch asked for, until it is done."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    stop_signals: int = 0
    reload: bool = False
    look: bool = False


class Daemon:
    """One process that serves events.

    Parameters
    ----------
    what
        The configs, and limits over all events.
    run
        The random id of this process, as the log stream has it.
    notifier
        The service manager's socket.
    """

    def __init__(self, what: Limits, *, run: str, notifier: Notifier) -> None:
        self._what = what
        self._run = run
        self._notifier = notifier
        self._began = clock.boottime()
        self._orders = _Orders()
        self._activity = asyncio.Event()
        self._is_ready = False
        self._roster = Roster(
            ConfigFiles(what.configs, what.events_dir),
            deployment_dir=what.deployment_dir,
            run=run,
            shared=Slots(what.max_workers) if what.max_workers is not None else None,
            on_activity=self._activity.set,
            on_end=self._orders.woken.set,
        )

    async def serve(self) -> int:
        """Serve until a signal, or until every event has ended by its hunger_policy; see `serve`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            status = await self._serve_to_the_end()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
                # It is on its way out: one more signal must not cost the last lines, nor the exit status.
                signal.signal(number, signal.SIG_IGN)
            self._notifier.close()
        log.info(
            "daemon.stopped",
            exit_status=status,
            uptime_s=clock.boottime() - self._began,
            finished=self._roster.finished,
        )
        return status

    def _on_stop(self, number: signal.Signals) -> None:
        orders, services = self._orders, self._roster.services
        orders.stop_signals += 1
        if orders.stop_signals > 1:
            orders.at_once.set()
            return
        running = sum(service.running for service in services)
        grace_s = max((service.settings.dispatcher.shutdown_grace for service in services), default=0.0)
        log.info(
            "daemon.stopping",
            signal=number.name,
            reason="asked to stop; once more to exit now",
            running=running,
            grace_s=grace_s,
        )
        self._notifier.stopping(f"stopping: {running} running, at most {grace_s:g} s")
        for service in services:
            service.stop()
        orders.woken.set()

    def _on_hangup(self) -> None:
        self._orders.reload = True
        self._orders.woken.set()

    def _want_look(self) -> None:
        self._orders.look = True
        self._orders.woken.set()

    async def _serve_to_the_end(self) -> int:
        """Run the parts beside one another until the supervisor has ended, something broke, or a second signal came."""
        supervising = asyncio.create_task(self._supervise(), name="supervisor")
        leaving = asyncio.create_task(self._orders.at_once.wait(), name="exit-now")
        helpers = [
            asyncio.create_task(part, name=name)
            for name, part in {
                "status": self._tell_status(),
                "patience": self._ask_for_patience(),
                "watchdog": watch_over(self._notifier, self._prove),
                "configs": self._watch_configs(),
            }.items()
        ]
        try:
            pending = {supervising, *helpers}
            while supervising in pending and not leaving.done():
                done, waited = await asyncio.wait({*pending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                pending = waited - {leaving}
                for task in done & set(helpers):
                    task.result()  # a helper that broke is a fault of ours: the daemon must not go on half blind
        finally:
            for task in (supervising, leaving, *helpers):
                task.cancel()
            services = self._roster.services
            for service in services:
                service.cancel()
            await asyncio.wait({supervising, leaving, *helpers})
            for service in services:
                await service.ended()
        if supervising.cancelled():
            raise RampdError("a second signal: exits now; what was running is put back at the next start")
        return supervising.result()

    async def _supervise(self) -> int:
        """Open what is to be served, and keep it so.

        Raises
        ------
        RampdError
            The only event cannot be served.
        """
        roster, orders = self._roster, self._orders
        await roster.look()
        if roster.is_over:
            raise ConfigError(["none of the events can be served; each was named in a config.rejected record"])
        self._say_started()
        if orders.stop_signals:
            for service in roster.services:  # those that were opened after the signal
                service.stop()
        roster.begin()
        readiness = asyncio.create_task(self._say_ready(), name="ready")
        try:
            while not self._is_over():
                await self._until_woken()
                await roster.collect(stopping=bool(orders.stop_signals))
                if not orders.stop_signals and (orders.reload or orders.look):
                    await self._look()
        finally:
            readiness.cancel()
            await asyncio.wait({readiness})
        if not readiness.cancelled():
            readiness.result()
        return roster.status

    def _is_over(self) -> bool:
        return self._roster.is_over or (bool(self._orders.stop_signals) and not self._roster.services)

    async def _until_woken(self) -> None:
        rescan_s = _RESCAN_S if self._what.events_dir is not None or self._roster.is_incomplete else None
        try:
            async with asyncio.timeout(rescan_s):
                await self._orders.woken.wait()
        except TimeoutError:
            self._orders.look = True
        self._orders.woken.clear()

    async def _look(self) -> None:
        """Look at the configs, and say what came of it; by a signal also where nothing did."""
        orders = self._orders
        asked, orders.reload, orders.look = orders.reload, False, False
        is_told = asked and self._is_ready
        if is_told:
            self._notifier.reloading()
        report = await self._roster.look(asked=asked)
        if orders.stop_signals:
            for service in self._roster.services:  # one that was opened after the signal
                service.stop()
            return
        if report.look_again:
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._want_look)
        if asked or report:
            self._say_reloaded(report, "SIGHUP" if asked else "events_dir")
        if is_told:
            self._notifier.ready(await self._status())
        self._activity.set()

    def _say_started(self) -> None:
        services = self._roster.services
        settings = [service.settings for service in services]
        facts = {service.name: service.facts for service in services}
        log.info(
            "daemon.started",
            version=rampd.__version__,
            pid=os.getpid(),
            python=platform.python_version(),
            uvloop=type(asyncio.get_running_loop()).__module__.startswith("uvloop"),
            events=[service.name for service in services],
            state_dir=str(settings[0].dispatcher.state_dir) if settings else None,
            n_workers=sum(one.dispatcher.n_workers for one in settings),
            max_workers=self._what.max_workers,
            n_threads=settings[0].dispatcher.n_threads if settings else None,
            containment=facts[services[0].name].get("containment") if services else None,
            worker=facts,
        )

    def _say_reloaded(self, report: Report, reason: str) -> None:
        log.info(
            "daemon.reloaded",
            reason=reason,
            events=[service.name for service in self._roster.services],
            added=report.added,
            removed=report.removed,
            changed=report.changed,
            reopening=report.reopening,
            rejected=report.rejected,
        )

    async def _say_ready(self) -> None:
        """Say that submissions are taken, once everything that was open at the start has come so far."""
        services = self._roster.services
        for service in services:
            await service.ready()
        counts: dict[str, int] = {}
        for service in services:
            for state, count in (await _counts_of(service)).items():
                counts[state] = counts.get(state, 0) + count
        log.info("daemon.ready", startup_s=clock.boottime() - self._began, counts=counts)
        self._is_ready = True
        if not self._orders.stop_signals:
            self._notifier.ready(await self._status())

    async def _watch_configs(self) -> None:
        folder = self._what.events_dir
        if folder is None:
            return
        async with ConfigsWatch(folder, CONFIG_NAME) as configs:
            while True:
                await configs.changed()
                await asyncio.sleep(_GATHER_S)
                self._want_look()

    async def _prove(self) -> None:
        """Return once every event has shown that it moves."""
        for service in self._roster.services:
            await service.pulse()

    async def _ask_for_patience(self) -> None:
        """Have systemd wait longer while the daemon starts or stops, for as long as its loop moves."""
        while self._notifier.is_heard:
            if not self._is_ready or self._orders.stop_signals:
                self._notifier.extend(_EXTEND_BY_S)
            await asyncio.sleep(_EXTEND_EVERY_S)

    async def _tell_status(self) -> None:
        """Keep systemd's one line about us up to date."""
        while self._notifier.is_heard:
            is_busy = any(service.running for service in self._roster.services)
            with suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_AGAIN_S if is_busy else None):
                    await self._activity.wait()
            self._activity.clear()
            if self._is_ready:
                self._notifier.status(await self._status())
            await asyncio.sleep(_STATUS_S)

    async def _status(self) -> str:
        roster = self._roster
        services = roster.services
        running = sum(service.running for service in services)
        waiting = done = 0
        for service in services:
            counts = await _counts_of(service)
            waiting += counts.get(SubmissionState.NEW, 0)
            done += sum(count for state, count in counts.items() if state.is_final)
        text = f"{running} running, {waiting} waiting, {done} done"
        if self._orders.stop_signals:
            text = f"stopping: {text}"
        if roster.rejected:
            names = ", ".join(str(path) for path in roster.rejected)
            text += f"; config rejected (the last good one is in force, if there was one): {names}"
        return text


async def _counts_of(service: Service) -> Mapping[SubmissionState, int]:
    """Return how many submissions are in each state; nothing where the store cannot say so now."""
    try:
        return await service.counts()
    except (StoreError, ValueError):  # ValueError: aiosqlite's, of an event that was closed meanwhile
        return {}


async def serve(what: Limits, *, run: str, notifier: Notifier | None = None) -> int:
    """Serve events until a signal, or until every one has ended by its hunger_policy.

    Parameters
    ----------
    what
        The events' configs. With an `events_dir` the daemon waits for more when all have ended.
    run
        The random id of this process, as the log stream has it.
    notifier
        The service manager's socket; None: nobody listens.

    Returns
    -------
    int
        The exit status: 0; 1 where an event that is held ended by `hunger_policy: exit`, or one of several failed.

    Raises
    ------
    ConfigError
        The only config is wrong, or all are; with several, the others are served.
    LockedError
        Another daemon serves the only event.
    RampdError
        The only event's store, journal or worker cannot be opened; or a second signal came.
    """
    if what.events_dir is not None and not what.events_dir.is_dir():
        raise ConfigError([f"--events-dir {what.events_dir}: there is no such folder"])
    return await Daemon(what, run=run, notifier=notifier or Notifier()).serve()
