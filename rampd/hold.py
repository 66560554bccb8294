"""A held event: what every submission of it needs is missing, so none is started and none is blamed."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import structlog

from rampd import clock
from rampd.conclusion import decide_unrun
from rampd.errors import RampdError, StoreError, UnknownSubmissionError, WorkerSetupError
from rampd.models import Verdict
from rampd.pulse import Pulse
from rampd.states import Outcome, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from rampd.announcements import Announcements
    from rampd.event import Event
    from rampd.orders import Run

log = structlog.get_logger("rampd.hold")

CHECK_INTERVAL_S = 5.0
"""How often a held event is looked at again."""


class Hold:
    """Whether an event is held, and since when.

    Parameters
    ----------
    event
        Its worker is asked, its journal keeps the fact for `rampctl status`.
    announcements
        Remembers whose canonical line was written.
    deciding
        Held while a waiting submission is ended, so that nobody else (the operator's cancel) ends it as well.
    runs
        What has a slot, by name; read only. It may be `new` again before its attempt has wholly ended.
    pulse
        Of the loop that looks, which thousands of waiting submissions may keep for minutes when they are ended.
    """

    def __init__(
        self,
        event: Event,
        *,
        announcements: Announcements,
        deciding: AbstractAsyncContextManager[Any] | None = None,
        runs: Mapping[str, Run] | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self.event = event
        self._announcements = announcements
        self._deciding = deciding or nullcontext()
        self._runs = runs if runs is not None else {}
        self._pulse = pulse or Pulse()
        self._cause: WorkerSetupError | None = None
        self._since_wall = 0.0
        self._since_boottime = 0.0
        self._next_look = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the event is held."""
        return self._cause is not None

    async def look(self) -> bool:
        """Ask the worker whether submissions can run; hold or release the event accordingly.

        Returns
        -------
        bool
            Whether they can.
        """
        if self.is_on and clock.boottime() < self._next_look:
            return False
        try:
            await self.event.worker.check()
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 -- a plug-in's look may fail in any way: what runs must not end for it
            cause = error if isinstance(error, WorkerSetupError) else _cannot_look(error)
            await self.set(cause)
            await self._give_up_after_timeout(cause)
            return False
        await self._release()
        return True

    async def set(self, cause: WorkerSetupError) -> None:
        """Hold the event. Says so once a cause."""
        now = clock.boottime()
        self._next_look = now + CHECK_INTERVAL_S * 0.95
        if self._cause is None:
            self._since_wall, self._since_boottime = clock.wall(), now
        if self._cause is None or str(self._cause) != str(cause):
            log.error(
                "event.held",
                event_name=self.event.settings.ramp.event_name,
                missing=cause.missing,
                existing=list(cause.existing),
                timeout_s=self.event.settings.dispatcher.hold_timeout,
            )
        self._cause = cause
        fact = {
            "missing": cause.missing,
            "existing": list(cause.existing),
            "since": self._since_wall,
            "next_try": clock.wall() + CHECK_INTERVAL_S,
        }
        with suppress(StoreError):  # the fact is for people; the hold stands without it
            await self.event.journal.put("held", fact)

    async def _release(self) -> None:
        if self._cause is None:
            return
        self._cause = None
        await self.forget()
        log.info(
            "event.released",
            event_name=self.event.settings.ramp.event_name,
            held_s=clock.boottime() - self._since_boottime,
        )

    async def forget(self) -> None:
        """Take the fact out of the journal: at a release, and at a start (the last daemon may have left one)."""
        with suppress(StoreError):
            await self.event.journal.delete("held")

    async def _give_up_after_timeout(self, cause: WorkerSetupError) -> None:
        """End every waiting submission once the event was held for hold_timeout."""
        timeout_s = self.event.settings.dispatcher.hold_timeout
        if timeout_s is None or clock.boottime() - self._since_boottime < timeout_s:
            return
        verdict = Verdict(Outcome.PLATFORM_ERROR, None, reason=f"held for {timeout_s:g} s: {cause}")
        for waiting in await self.event.store.list({SubmissionState.NEW}):
            # A beat each, and a held event has nothing to claim, however long a store that is away makes one end take.
            with self._pulse.resting(lambda: True):
                await self._end(waiting.name, verdict)

    async def _end(self, name: str, verdict: Verdict) -> None:
        async with self._deciding:
            with suppress(UnknownSubmissionError):  # its folder went meanwhile
                submission = await self.event.store.get(name)
                if submission.state is SubmissionState.NEW and name not in self._runs:
                    await decide_unrun(self.event, submission, verdict, announcements=self._announcements)


def _cannot_look(error: Exception) -> WorkerSetupError:
    said = str(error) if isinstance(error, RampdError) else f"{type(error).__name__}: {error}"
    return WorkerSetupError(f"the worker cannot look whether submissions can run: {said}")
