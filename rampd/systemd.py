"""Talking to systemd: sd_notify(3) datagrams, and a watchdog whose pings prove that the daemon moves.

Nothing here knows what a dispatcher is. Without `$NOTIFY_SOCKET` everything is silently nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_LONGEST_STATUS = 400
"""Characters; a status is one line in `systemctl status`."""


@dataclass(slots=True)
class Notifier:
    """The service manager's socket.

    Parameters
    ----------
    address
        A path, or a name in the abstract namespace that begins with ``@``; None where nobody listens.
    watchdog_s
        Within how many seconds systemd wants to hear from the watchdog; None for never.
    """

    address: str | None = None
    watchdog_s: float | None = None
    _socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Read what systemd passed on, and take it away from whatever this process starts (sd_notify(3)).

        A watchdog that is meant for another process (`$WATCHDOG_PID`) is none of ours.
        """
        address, usec, pid = (environment.pop(name, "") for name in _VARIABLES)
        watchdog_s: float | None = None
        if usec.isdecimal() and int(usec) > 0 and (not pid or pid == str(os.getpid())):
            watchdog_s = int(usec) / 1e6
        return cls(address if address[:1] in {"/", "@"} else None, watchdog_s)

    @property
    def is_heard(self) -> bool:
        """Whether there is anybody to tell."""
        return self.address is not None

    def ready(self, status: str) -> None:
        """Say that the daemon serves; after `reloading`, that this is over."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """Say that configs are read again. `ready` ends it."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}", _status("reading the configs again"))

    def stopping(self, status: str) -> None:
        """Say that the daemon is on its way out."""
        self._send("STOPPING=1", _status(status))

    def status(self, status: str) -> None:
        """Say in one line what goes on."""
        self._send(_status(status))

    def extend(self, more_s: float) -> None:
        """Ask for so many seconds more, from now on, to start or to stop in (`EXTEND_TIMEOUT_USEC`)."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(more_s * 1e6)}")

    def ping(self) -> None:
        """Tell the watchdog that all is well."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self.address is None:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # A manager that is full or gone must not stop the daemon: it says all this again, or nobody cares.
        with suppress(OSError):
            self._socket.sendto("\n".join(assignments).encode("utf-8", "backslashreplace"), address)

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(text: str) -> str:
    line = "".join(character if character.isprintable() else " " for character in text)
    return f"STATUS={line[:_LONGEST_STATUS]}"


async def watch_over(notifier: Notifier, proof: Callable[[], Awaitable[None]]) -> None:
    """Ping the watchdog for ever, a third of its interval apart, each time only after `proof` has returned.

    Parameters
    ----------
    notifier
        Returns at once where its watchdog is off.
    proof
        Returns once everything has shown that it moves. It may take its time: the pings wait for it. A loop that is
        blocked does not come here at all.
    """
    if notifier.watchdog_s is None:
        return
    while True:
        await proof()
        notifier.ping()
        await asyncio.sleep(notifier.watchdog_s / 3)
