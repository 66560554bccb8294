"""The real `rampd` as a child process, its log stream as a list of records to wait on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import psutil

from rampd.logs import problems_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Record = dict[str, Any]


class RampdProcess:
    """A daemon under test. Use it as a context manager: whatever happens, nothing of it is left.

    Parameters
    ----------
    config
        The event's config file; None where `arguments` say what is served.
    arguments
        Further words of the command line.
    environment
        The whole environment of the child; None for this process's own.
    command
        What to run instead of ``python -m rampd``.
    """

    def __init__(
        self,
        config: Path | None,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "rampd"),
    ) -> None:
        self._argv = [*command, *(["--config", str(config)] if config else []), *arguments]
        self._environment = environment
        self._arrived = threading.Condition()
        self.records: list[Record] = []
        self.raw: list[bytes] = []
        self.stderr = b""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(self._environment) if self._environment is not None else None,
        )
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_stderr)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        return self.process.pid

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        for line in stream:
            with self._arrived:
                self.raw.append(line)
                if line.endswith(b"\n"):
                    self.records.append(json.loads(line))
                self._arrived.notify_all()
        stream.close()

    def _read_stderr(self) -> None:
        stream = self.process.stderr
        assert stream is not None
        self.stderr = stream.read()
        stream.close()

    def find(self, event: str, **fields: object) -> list[Record]:
        """Return the records of `event` so far whose fields have these values."""
        with self._arrived:
            return [record for record in self.records if _matches(record, event, fields)]

    def wait_for(self, event: str, *, timeout_s: float = 30.0, count: int = 1, **fields: object) -> Record:
        """Return the `count`-th record of `event` with these fields, waiting for it.

        Raises
        ------
        AssertionError
            It did not come in time, or the daemon ended without it; what came instead is in the message.
        """
        found: list[Record] = []

        def is_there() -> bool:
            found[:] = [record for record in self.records if _matches(record, event, fields)]
            return len(found) >= count or not self._readers[0].is_alive()

        with self._arrived:
            self._wait(is_there, timeout_s)
        assert len(found) >= count, self._what_came(f"{count} x {event} {fields}")
        return found[count - 1]

    def _wait(self, predicate: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not predicate() and (left := deadline - time.monotonic()) > 0:
            # In slices: the end of the stream notifies nobody.
            self._arrived.wait(min(left, 0.5))

    def _what_came(self, wanted: str) -> str:
        tail = "\n".join(json.dumps(record) for record in self.records[-20:])
        return f"no {wanted}; status {self.process.poll()}; the last records:\n{tail}\nstderr:\n{self.stderr.decode()}"

    def finished(self, *names: str, timeout_s: float = 60.0) -> dict[str, Record]:
        """Return the canonical line of each named submission, waiting for them."""
        deadline = time.monotonic() + timeout_s
        return {
            name: self.wait_for("submission.finished", submission=name, timeout_s=max(0.1, deadline - time.monotonic()))
            for name in names
        }

    def stop(self, *, timeout_s: float = 60.0, number: int = signal.SIGTERM) -> int:
        """End it as systemd would; return its exit status. Every record must fit the catalogue."""
        self.process.send_signal(number)
        return self.wait(timeout_s=timeout_s)

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """Wait for its own end; return its exit status. Every record must fit the catalogue.

        Raises
        ------
        AssertionError
            It did not end in time, or a record is not as it should be.
        """
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._what_came(f"end within {timeout_s:g} s")) from None
        for reader in self._readers:
            reader.join(timeout_s)
        self.check_records()
        return status

    def check_records(self) -> None:
        """Hold every record against the catalogue, and the numbering against its promise."""
        problems = {json.dumps(record): found for record in self.records if (found := problems_of(record))}
        assert not problems, problems
        of_an_event = ("submission.", "event.", "worker.", "request.")
        nameless = [one for one in self.records if one["event"].startswith(of_an_event) and "event_name" not in one]
        assert not nameless, nameless
        assert [record["seq"] for record in self.records] == list(range(1, len(self.records) + 1))

    def kill(self) -> None:
        """End it as the kernel would, and wait until its streams are closed."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        for reader in self._readers:
            reader.join(30)

    def tree(self) -> list[psutil.Process]:
        """Return the daemon's living descendants."""
        try:
            return [child for child in psutil.Process(self.pid).children(recursive=True) if is_alive(child)]
        except psutil.NoSuchProcess:
            return []


def _matches(record: Record, event: str, fields: Mapping[str, object]) -> bool:
    return record["event"] == event and all(record.get(key) == value for key, value in fields.items())


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process is there and no zombie: PID 1 may be slow to reap."""
    try:
        return process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def processes_marked(text: str) -> list[int]:
    """Return the pids of living processes, not our own, in whose environment or command line `text` stands."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid() or not is_alive(process):
            continue
        try:
            words = [*process.cmdline(), *(f"{key}={value}" for key, value in process.environ().items())]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(text in word for word in words):
            found.append(process.pid)
    return found


def wait_until(predicate: Callable[[], bool], *, timeout_s: float = 30.0, what: str = "it") -> None:
    """Look again and again until `predicate` holds.

    Raises
    ------
    AssertionError
        It did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.02)
