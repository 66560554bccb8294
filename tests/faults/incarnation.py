"""One life of a daemon in a fault campaign: the child process, and a reader of its stream that may stall or go away."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Record = dict[str, Any]
FIRST = "first"
"""The host that serves every event; a board's has others now and then."""
AT_RANDOM = "random"
"""Where a daemon was killed that no transition's name belongs to."""
DAEMON = Path(__file__).with_name("failing_daemon.py")


@dataclass
class Incarnation:
    """A daemon that was started, and what it has said.

    Parameters
    ----------
    arguments
        The command line, without the program.
    environment
        Variables besides this process's own.
    stderr_path
        Where its stderr goes.
    host
        Whose state_dir it has.
    """

    arguments: list[str]
    environment: Mapping[str, str]
    stderr_path: Path
    host: str = FIRST
    records: list[Record] = field(default_factory=list)
    torn: int = 0
    """Lines that were not whole; only the last one of a killed daemon may be."""
    is_whole: bool = True
    """Whether the reader was there from the beginning to the end."""

    def start(self) -> None:
        """Start it, and the reader."""
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        self._wake_read, self._wake_write = os.pipe()
        self._paused = threading.Event()
        self._closed = False
        self._arrived = threading.Condition()
        with self.stderr_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(DAEMON), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=stderr,
                env={**os.environ, **self.environment},
            )
        os.close(writing)
        self._reading = reading
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while not self._closed:
            watched = [self._wake_read] if self._paused.is_set() else [self._reading, self._wake_read]
            ready, _, _ = select.select(watched, [], [])
            if self._wake_read in ready:
                os.read(self._wake_read, 100)
                continue
            data = os.read(self._reading, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            with self._arrived:
                for line in lines:
                    self._take(line)
                self._arrived.notify_all()
        self.torn += bool(rest)
        os.close(self._reading)
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def _take(self, line: bytes) -> None:
        try:
            self.records.append(json.loads(line))
        except ValueError:
            self.torn += 1

    def pause_reader(self) -> None:
        """Read no more, for now."""
        self._paused.set()
        os.write(self._wake_write, b"x")

    def resume_reader(self) -> None:
        """Read on."""
        self._paused.clear()
        os.write(self._wake_write, b"x")

    def close_reader(self) -> None:
        """Go away for good: the daemon's stdout is a pipe that nobody reads."""
        self.is_whole = False
        self._closed = True
        os.write(self._wake_write, b"x")
        self._thread.join()

    def wait_for(self, event: str, *, timeout_s: float, count: int = 1) -> bool:
        """Return whether the `count`-th record of `event` came in time."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                if sum(record["event"] == event for record in self.records) >= count:
                    return True
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._closed:
                    return False
                self._arrived.wait(left_s)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; return its status, None where it did not come in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> int:
        """See that it is gone, by force if need be, and read what is left; return its status."""
        self.signal(signal.SIGKILL)
        status = self.process.wait(60)
        if self._paused.is_set():
            self.resume_reader()
        self._thread.join(60)
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)
        return status
