"""What a running attempt may be told from outside, and how a step obeys."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from rampd.models import Submission

T = TypeVar("T")


class Order(StrEnum):
    """What a running attempt may be told from outside."""

    CANCEL = "cancel"  # the organizers' word: a final outcome
    INTERRUPT = "interrupt"  # the daemon stops: back to new, or parked where the worker is resumable


class OrderedError(Exception):
    """Ends the step that was under way when an order came."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.order = order


class Orders:
    """One attempt's letter box. A CANCEL wins over any INTERRUPT, before or after it."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self.order: Order | None = None
        self.has_ended = False
        """Whether the run has ended by itself: what came of it counts, and an order comes too late for it."""

    def give(self, order: Order) -> None:
        """Tell the attempt; the step that is under way ends, or the next one does not begin."""
        if self.order is not Order.CANCEL:
            self.order = order
        self._arrived.set()

    async def obeyed(self, step: Coroutine[Any, Any, T]) -> T:
        """Run one step, and cancel it when an order comes first.

        A step that ends with a result although it was cancelled has its result returned: what it made is known
        then, and the order is obeyed by the step after it.

        Raises
        ------
        OrderedError
            An order came.
        """
        if self.order is not None:
            step.close()
            raise OrderedError(self.order)
        task = asyncio.ensure_future(step)
        arrival = asyncio.ensure_future(self._arrived.wait())
        try:
            await asyncio.wait({task, arrival}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrival.cancel()
            if not task.done():
                task.cancel()
                # A cancelled step cleans up after itself; only then may anything follow.
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # where we are cancelled ourselves, nobody else asks for it
        if task.cancelled() and self.order is not None:
            raise OrderedError(self.order)
        return task.result()


@dataclass(frozen=True, slots=True)
class Run:
    """A submission that has a slot."""

    submission: Submission
    orders: Orders
    task: asyncio.Task[None]


async def all_over(tasks: Collection[asyncio.Task[None]], *, unless: asyncio.Event) -> None:
    """Wait until there are no tasks left in a collection that changes meanwhile, or until an event is set."""
    told = asyncio.ensure_future(unless.wait())
    try:
        while tasks and not told.done():
            await asyncio.wait({*tasks, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
