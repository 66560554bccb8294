"""One event as a daemon serves it: opened, dispatched and closed, all of it in one task."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import rampd
from rampd import clock
from rampd.dispatcher import Dispatcher
from rampd.errors import StoreError
from rampd.opening import open_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rampd.config import Settings
    from rampd.event import Event
    from rampd.slots import Slots
    from rampd.states import SubmissionState


class Service:
    """One event in a daemon.

    Parameters
    ----------
    settings
        What it is opened with.
    run
        The random id of this process, as the log stream has it.
    shared
        The slots of all events together; None where they are not limited.
    on_activity
        Called when something of it may have changed that people want to know.
    on_end
        Called when it has ended.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run: str,
        shared: Slots | None,
        on_activity: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.settings = settings
        self._run = run
        self._shared = shared
        self._on_activity = on_activity
        self._on_end = on_end
        self._opened = asyncio.Event()
        self._begun = asyncio.Event()
        self.facts: Mapping[str, object] = {}
        """What its worker says of itself, once it is open."""
        self._dispatcher: Dispatcher | None = None
        self._task: asyncio.Task[int] | None = None

    @property
    def name(self) -> str:
        """The event's name."""
        return self.settings.ramp.event_name

    @property
    def dispatcher(self) -> Dispatcher:
        """Its dispatcher, once it is open."""
        if self._dispatcher is None:
            raise RuntimeError(f"{self.name} is not open")
        return self._dispatcher

    @property
    def event(self) -> Event:
        """Its rooms, once it is open."""
        return self.dispatcher.event

    @property
    def running(self) -> int:
        """How many of its submissions have a slot."""
        return self._dispatcher.running if self._dispatcher else 0

    @property
    def finished(self) -> int:
        """How many of its submissions came to a final state."""
        return self._dispatcher.finished if self._dispatcher else 0

    @property
    def has_ended(self) -> bool:
        """Whether it is closed again."""
        return self._task is not None and self._task.done()

    async def open(self) -> None:
        """Open the event; what was opened before an error is closed again.

        Raises
        ------
        RampdError
            It cannot be opened.
        """
        self._task = asyncio.create_task(self._serve(), name=f"{self.name}:service")
        opened = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait({self._task, opened}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
            if not self._opened.is_set():
                self._task.cancel()
        if not self._opened.is_set():
            await self._task
        self._task.add_done_callback(lambda _: self._on_end())

    def begin(self) -> None:
        """Let submissions be taken."""
        self._begun.set()

    def stop(self) -> None:
        """Have it end within its shutdown_grace."""
        self.dispatcher.stop()
        self._begun.set()

    def close(self) -> None:
        """Have it end once what runs has ended."""
        self.dispatcher.close()
        self._begun.set()

    def cancel(self) -> None:
        """Have it end at once; what runs is put back at the next start."""
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Return once it is closed, however it ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def result(self) -> int:
        """Return its exit status.

        Raises
        ------
        Exception
            What ended it.
        asyncio.CancelledError
            It was cancelled.
        """
        assert self._task is not None  # noqa: S101 -- it has ended
        return self._task.result()

    async def ready(self) -> None:
        """Return once it takes submissions, or has ended."""
        waiting = asyncio.ensure_future(self.dispatcher.ready.wait())
        try:
            assert self._task is not None  # noqa: S101 -- it is open
            await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def reload(self, settings: Settings) -> None:
        """Put settings in force that need nothing opened anew."""
        self.dispatcher.reload(settings)
        self.settings = settings
        with suppress(StoreError):  # for people; the settings are in force without it
            await self._introduce()

    async def pulse(self) -> None:
        """Return once it has shown that it moves; see `Dispatcher.pulse`."""
        if self._dispatcher is None or self._task is None:
            return
        feeling = asyncio.ensure_future(self._dispatcher.pulse())
        try:
            # Whatever ended it is said elsewhere; it must not keep the others' pings.
            await asyncio.wait({self._task, feeling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            feeling.cancel()

    async def counts(self) -> Mapping[SubmissionState, int]:
        """Return how many submissions are in each state.

        Raises
        ------
        StoreError
            The store cannot be read now, or is closed.
        """
        return await self.event.store.counts()

    async def _serve(self) -> int:
        async with AsyncExitStack() as stack:
            event = await open_event(self.settings, stack)
            self.facts = dict(event.worker.describe())
            self._dispatcher = Dispatcher(event, shared=self._shared, on_activity=self._on_activity)
            self._opened.set()
            await self._begun.wait()
            await self._introduce()
            return await self._dispatcher.run()

    async def _introduce(self) -> None:
        """Leave in the journal who serves the event, for `rampctl status`."""
        fact = {
            "pid": os.getpid(),
            "run": self._run,
            "version": rampd.__version__,
            "started_at": clock.wall(),
            "n_workers": self.settings.dispatcher.n_workers,
            "worker_type": self.settings.worker.worker_type,
        }
        await self.event.journal.put("daemon", fact)
