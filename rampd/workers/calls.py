"""Calls into code that may do anything: one after another in a thread of their own, which nobody ever waits for.

Not asyncio's executor: a thread of that kind that never comes back would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from rampd import clock

if TYPE_CHECKING:
    from collections.abc import Callable

THREAD_PREFIX: Final = "rampd-plug-in-"
"""How the threads' names begin, so that a process that ends can tell them."""


@dataclass(frozen=True, slots=True)
class Return:
    """How a call ended. An exception is handed over as data: StopIteration and CancelledError mean nothing here."""

    value: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Call:
    """One call, under way or over."""

    method: str
    begun: float = field(default_factory=clock.boottime)
    future: asyncio.Future[Return] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Order:
    call: Call
    loop: asyncio.AbstractEventLoop
    function: Callable[[], object]
    context: contextvars.Context


class Caller:
    """A daemon thread that makes one call at a time. Used from the loop's thread.

    Parameters
    ----------
    name
        Of what is called, for whoever looks at the process's threads.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.call: Call | None = None
        """The latest call."""
        self._orders: SimpleQueue[_Order | Callable[[], object]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=THREAD_PREFIX + name, daemon=True)

    @property
    def is_busy(self) -> bool:
        """Whether the latest call is still under way, or was abandoned before it came back."""
        return self.call is not None and (not self.call.future.done() or self.call.future.cancelled())

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def thread_id(self) -> int | None:
        """The kernel's id of the thread; None where it does not run."""
        return self._thread.native_id if self.is_alive else None

    def begin(self, method: str, function: Callable[[], object]) -> Call:
        """Have a function called; `Call.future` has its end. The one before must have come back."""
        if self.is_busy:
            raise RuntimeError(f"{method} was called while another call is under way")
        self.call = Call(method)
        self._orders.put(_Order(self.call, asyncio.get_running_loop(), function, contextvars.copy_context()))
        if not self.is_alive:
            self._thread.start()
        return self.call

    def abandon(self) -> None:
        """Never mind how the present call ends."""
        if self.call is not None:
            self.call.future.cancel()

    def close(self, last: Callable[[], object]) -> None:
        """End the thread when the present call has come back, if it ever does; `last` is the last thing it calls."""
        if self.is_alive:
            self._orders.put(last)

    def _work(self) -> None:
        while True:
            order = self._orders.get()
            if not isinstance(order, _Order):
                order()
                return
            try:
                ended = Return(order.context.run(order.function))
            except BaseException as error:  # noqa: BLE001 -- also SystemExit: nothing that a plug-in does ends a thread
                ended = Return(error=error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                order.loop.call_soon_threadsafe(_settle, order.call.future, ended)
            del order, ended


def _settle(future: asyncio.Future[Return], ended: Return) -> None:
    if not future.done():
        future.set_result(ended)
