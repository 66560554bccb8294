"""A store or a journal that cannot be used: said once, tried again ever later, and said once when it is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from rampd import clock
from rampd.errors import StoreError
from rampd.judging import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger("rampd.dispatcher")

_LONGEST_S = 30.0


class Outage:
    """What one caller knows of the failures that it met in a row."""

    def __init__(self) -> None:
        self._tries = 0
        self._since = 0.0

    def seen(self, error: StoreError) -> float:
        """Log the first failure; return how long to wait before the next try, in seconds."""
        self._tries += 1
        delay_s = backoff_s(self._tries, longest_s=_LONGEST_S)
        if self._tries == 1:
            self._since = clock.boottime()
            log.error("store.unavailable", error=str(error), delay_s=delay_s)
        return delay_s

    def is_over(self) -> None:
        """Say that it works again, if it had failed."""
        if self._tries:
            log.info("store.recovered", down_s=clock.boottime() - self._since)
            self._tries = 0


async def until_it_works(step: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step that needs the store until it succeeds, with growing delays."""
    outage = Outage()
    while True:
        try:
            await step()
        except StoreError as error:
            await asyncio.sleep(outage.seen(error))
        else:
            outage.is_over()
            return
