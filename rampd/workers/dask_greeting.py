"""The first words of a connection to a Dask scheduler: whether anybody is there, and whether we hear what it says."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_ECHO_S = 0.02
_TOPIC = "rampd-greeting"


class Subscriber(Protocol):
    """What is used of `distributed.Client` here."""

    id: str

    def subscribe_topic(self, topic: str, handler: Callable[[tuple[float, Any]], object]) -> object:
        """Have what is said on a topic heard."""

    def unsubscribe_topic(self, topic: str) -> object:
        """Have it heard no more."""

    def log_event(self, topic: str, msg: Any) -> Awaitable[object]:
        """Say something on a topic."""


async def knock(address: str, *, timeout_s: float) -> None:
    """Look whether anybody listens: distributed tries for its whole timeout before it says that nobody does.

    Raises
    ------
    OSError, TimeoutError
        Nobody does.
    """
    host, _, port = address.partition("://")[2].rpartition(":")
    async with asyncio.timeout(timeout_s):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def until_heard(client: Subscriber, *, timeout_s: float) -> None:
    """Return once the scheduler has read what its client subscribed to so far.

    It is told in another stream than it is asked in: who joined between an early answer and a late subscription would
    be known to nobody. So we go on speaking until we hear ourselves.

    Raises
    ------
    TimeoutError
        We do not.
    """
    is_heard = asyncio.Event()

    def hear(event: tuple[float, object]) -> None:
        if event[1] == client.id:
            is_heard.set()

    client.subscribe_topic(_TOPIC, hear)
    async with asyncio.timeout(timeout_s):
        while not is_heard.is_set():
            await client.log_event(_TOPIC, client.id)
            with suppress(TimeoutError):
                async with asyncio.timeout(_ECHO_S):
                    await is_heard.wait()
    client.unsubscribe_topic(_TOPIC)
