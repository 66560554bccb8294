"""The events of a daemon: brought into agreement with the configs that there are, again and again.

An event whose config cannot be used never stops the others, and a config that broke leaves the one before it in force.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from rampd.errors import ConfigError, RampdError
from rampd.event import load_settings
from rampd.exit_statuses import EX_FAILED
from rampd.reloading import changed_keys, needing_reopening
from rampd.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rampd.config import Settings
    from rampd.config_files import ConfigFile, ConfigFiles
    from rampd.slots import Slots

log = structlog.get_logger("rampd.daemon")


@dataclass(slots=True)
class Report:
    """What one look at the configs came to. Events by their names, configs by their paths."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """They are drained."""
    changed: dict[str, list[str]] = field(default_factory=dict)
    """By event: the keys that are in force already."""
    reopening: dict[str, list[str]] = field(default_factory=dict)
    """By event: the keys for which it is drained and opened anew."""
    rejected: list[str] = field(default_factory=list)
    """Configs that cannot be used."""
    look_again: bool = False
    """Something was written a moment ago, or has just gone: look again before anything is made of it."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.reopening)


@dataclass(slots=True)
class _Entry:
    """One config, and what is served by it."""

    path: Path
    digest: str = ""
    said: tuple[str, ...] = ()
    """The problems that were last said of this content."""
    is_broken: bool = False
    """The config itself is wrong: nothing changes before it does."""
    service: Service | None = None
    next: Settings | None = None
    """What it is opened with once it is drained."""
    event_name: str = ""
    """Of the service that ended last."""
    is_gone: bool = False
    """Not there at the last look."""
    has_ended: bool = False
    """By its hunger_policy: nothing is to be done before its config changes."""


class Roster:
    """Which events are served.

    Parameters
    ----------
    files
        Where configs are looked for.
    deployment_dir
        What relative paths in them are relative to; None for the place each file implies.
    run
        The random id of this process.
    shared
        The slots of all events together; None where they are not limited.
    on_activity, on_end
        See `Service`.
    """

    def __init__(
        self,
        files: ConfigFiles,
        *,
        deployment_dir: Path | None,
        run: str,
        shared: Slots | None,
        on_activity: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._files = files
        self._deployment_dir = deployment_dir
        self._run = run
        self._shared = shared
        self._on_activity = on_activity
        self._on_end = on_end
        self._entries: dict[Path, _Entry] = {}
        self.has_begun = False
        """Whether submissions may be taken: what is opened later begins at once."""
        self.status = 0
        """The highest exit status of what has ended."""
        self.finished = 0
        """How many submissions came to a final state in events that have ended."""

    @property
    def services(self) -> Sequence[Service]:
        """Every event that is served, in the order of the configs."""
        return [entry.service for entry in self._entries.values() if entry.service is not None]

    @property
    def rejected(self) -> Sequence[Path]:
        """The configs of which something else, or nothing, is in force."""
        return [entry.path for entry in self._entries.values() if entry.said]

    @property
    def is_over(self) -> bool:
        """Whether nothing is served, and nothing will be."""
        awaited = any(entry.service is not None or entry.next is not None for entry in self._entries.values())
        return self._files.events_dir is None and not awaited

    @property
    def is_incomplete(self) -> bool:
        """Whether an event is not served for a reason that may go away by itself: a lock, a full disk."""
        return any(
            entry.service is None and not entry.is_broken and not entry.has_ended for entry in self._entries.values()
        )

    def begin(self) -> None:
        """Let submissions be taken."""
        self.has_begun = True
        for service in self.services:
            service.begin()

    async def look(self, *, asked: bool = False) -> Report:
        """Bring what is served into agreement with the configs.

        Parameters
        ----------
        asked
            By a person, who wants everything tried again, and now.

        Raises
        ------
        RampdError
            There is one event for good, it is not served yet, and it cannot be.
        """
        report = Report()
        found = await asyncio.to_thread(self._files.look)
        for path, file in found.items():
            entry = self._entries.setdefault(path, _Entry(path))
            entry.is_gone = False
            await self._look_at(entry, file, report, asked=asked)
        for entry in [entry for path, entry in self._entries.items() if path not in found]:
            self._miss(entry, report)
        return report

    async def _look_at(self, entry: _Entry, file: ConfigFile, report: Report, *, asked: bool) -> None:
        is_new = file.digest != entry.digest or not file.digest
        is_settled = entry.service is not None or entry.is_broken or entry.has_ended
        if not asked and not is_new and is_settled:
            return
        try:
            root = self._deployment_dir or self._files.deployment_of(entry.path)
            settings = await asyncio.to_thread(load_settings, entry.path, deployment_dir=root)
        except ConfigError as error:
            if file.is_fresh and not asked and self.has_begun:
                report.look_again = True  # an editor may not have written all of it yet
                return
            entry.digest, entry.is_broken = file.digest, True
            if self._files.is_one and entry.service is None:
                raise
            self._reject(entry, error.problems, report)
            return
        entry.digest, entry.is_broken, entry.has_ended = file.digest, False, False
        with structlog.contextvars.bound_contextvars(event_name=settings.ramp.event_name):
            for warning in settings.warnings if is_new else ():
                log.warning("config.warning", path=str(entry.path), message=warning)
            if entry.service is None:
                await self._open(entry, settings, report)
            else:
                await self._change(entry, entry.service, settings, report)

    def _reject(self, entry: _Entry, problems: Sequence[str], report: Report) -> None:
        """Say once what is wrong with a config."""
        report.rejected.append(str(entry.path))
        if entry.said != tuple(problems):
            entry.said = tuple(problems)
            in_force = entry.service is not None
            log.error("config.rejected", path=str(entry.path), problems=list(problems), in_force=in_force)

    async def _open(self, entry: _Entry, settings: Settings, report: Report) -> None:
        service = Service(
            settings, run=self._run, shared=self._shared, on_activity=self._on_activity, on_end=self._on_end
        )
        try:
            await service.open()
        except Exception as error:
            if self._files.is_one and not self.has_begun:
                raise
            if not isinstance(error, RampdError):
                # One event's mistake, even where it is ours, is not the others'.
                log.exception("event.failed", event_name=service.name)
            problems = error.problems if isinstance(error, ConfigError) else [str(error) or type(error).__name__]
            self._reject(entry, problems, report)
            return
        entry.service, entry.said, entry.next = service, (), None
        report.added.append(service.name)
        if self.has_begun:
            log.info(
                "event.opened",
                event_name=service.name,
                worker_type=settings.worker.worker_type,
                path=str(entry.path),
                state_dir=str(settings.dispatcher.state_dir),
                n_workers=settings.dispatcher.n_workers,
                worker=service.facts,
            )
            service.begin()

    async def _change(self, entry: _Entry, service: Service, settings: Settings, report: Report) -> None:
        entry.said = ()
        if service.dispatcher.is_closing:
            entry.next = settings  # it is drained already, for an older change or because its config went
            return
        keys = changed_keys(service.settings, settings)
        if not keys:
            return
        if needing_reopening(keys, service.event.worker.live_keys):
            entry.next = settings
            report.reopening[service.name] = keys
            service.close()
            return
        try:
            await service.reload(settings)
        except Exception:
            # A plug-in's own mistake, which is not the other events'; opened anew it has all of its settings.
            log.exception("event.failed", event_name=service.name)
            entry.next = settings
            report.reopening[service.name] = keys
            service.close()
        else:
            report.changed[service.name] = keys

    def _miss(self, entry: _Entry, report: Report) -> None:
        """See that a config is not there; drain its event when it is not there for the second time."""
        if not entry.is_gone:
            entry.is_gone = report.look_again = True  # an editor may be about to rename a new one into place
            return
        if entry.service is None:
            del self._entries[entry.path]
        elif entry.next is not None or not entry.service.dispatcher.is_closing:  # else it was said already
            entry.next, entry.said = None, ()
            report.removed.append(entry.service.name)
            entry.service.close()

    async def collect(self, *, stopping: bool = False) -> None:
        """Take leave of what has ended, and open what was waiting for that unless the daemon is `stopping`.

        Raises
        ------
        Exception
            What ended the only event.
        """
        for entry in list(self._entries.values()):
            if entry.service is not None and entry.service.has_ended:
                reason = self._take_leave(entry, entry.service)
                if stopping:
                    continue
                log.info("event.closed", event_name=entry.event_name, reason=reason)
                if entry.next is not None:
                    with structlog.contextvars.bound_contextvars(event_name=entry.next.ramp.event_name):
                        await self._open(entry, entry.next, Report())

    def _take_leave(self, entry: _Entry, service: Service) -> str:
        """Forget a service that has ended; return why it did."""
        entry.service, entry.event_name = None, service.name
        self.finished += service.finished
        try:
            self.status = max(self.status, service.result())
        except Exception as error:
            if self._files.is_one:
                raise
            log.error("event.failed", event_name=service.name, exc_info=error)  # noqa: TRY400 -- its traceback, not ours
            self.status = EX_FAILED
            return "failed"
        if entry.next is not None:
            return "reopened"
        if entry.is_gone:
            return "config_gone"
        entry.has_ended = True
        return "hunger_policy"
