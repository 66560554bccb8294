"""A unix datagram socket in place of systemd: what a daemon tells its service manager, in order."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class ServiceManager:
    """Receives sd_notify(3) messages. A context manager.

    Parameters
    ----------
    path
        Where the socket is made; short enough for a unix socket's address.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self.times: list[float] = []
        """When each came, on time.monotonic()'s clock."""
        self._arrived = threading.Condition()

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._send(b"END")
        self._thread.join()
        self._socket.close()

    def _send(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(data, str(self.path))

    def _receive(self) -> None:
        while (data := self._socket.recv(65536)) != b"END":
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            with self._arrived:
                self.messages.append(message)
                self.times.append(time.monotonic())
                self._arrived.notify_all()

    def wait_for(self, wanted: Callable[[dict[str, str]], bool], *, timeout_s: float = 30.0, after: int = 0) -> int:
        """Return the number of the first message that is `wanted`, from number `after` on, waiting for it.

        Raises
        ------
        AssertionError
            It did not come in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                for number, message in enumerate(self.messages[after:], start=after):
                    if wanted(message):
                        return number
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"it did not come; what came: {self.messages[after:]}"
                self._arrived.wait(left_s)

    def settle(self) -> None:
        """Return once everything is counted that was sent before: datagrams keep their order."""
        mark = f"SETTLED={time.monotonic_ns()}"
        self._send(mark.encode())
        self.wait_for(lambda message: message.get("SETTLED") == mark.partition("=")[2])

    def count(self, key: str) -> int:
        """Return how many messages so far had a key."""
        with self._arrived:
            return sum(key in message for message in self.messages)
