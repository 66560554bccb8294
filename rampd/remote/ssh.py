"""The SSH pool: one kept connection a host, opened once, kept alive, and opened again when it is gone.

It owns sharing, pacing, bounds and pins. It does not own policy: whether and how long a failure is tried again is the
caller's, who is told by the error's class. asyncssh itself is spoken to by `rampd.remote.ssh_connection` alone, which
is imported when a pool is opened, not before.
"""

from __future__ import annotations

import asyncio
import importlib
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

import structlog

from rampd.errors import ResultsError
from rampd.remote.hosts import (
    Completed,
    SshAuthError,
    SshConnectionError,
    SshError,
    SshHost,
    SshHostKeyError,
    SshKeyFileError,
    SshOutputError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rampd.remote.ssh_connection import Connection, Connector, RunningCommand

__all__ = [
    "Completed",
    "SshAuthError",
    "SshConnectionError",
    "SshError",
    "SshHost",
    "SshHostKeyError",
    "SshKeyFileError",
    "SshOutputError",
    "SshPool",
]

log = structlog.get_logger(__name__)

_CHUNK = 256 << 10
_MAX_ANSWER_BYTES = 64 << 10
_DISCONNECTED = "it was disconnected meanwhile"
_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 15.0


@dataclass(eq=False, slots=True)
class _Entry:
    """What the pool has of one host."""

    host: SshHost
    """Where the connection, or the one being opened, goes to."""
    channels: asyncio.Semaphore
    pinned: str | None = None
    connection: Connection | None = None
    opening: asyncio.Task[SshError | None] | None = None
    failures: int = 0
    """Openings that failed in a row."""
    not_before: float = 0.0
    """When the next opening may begin, on the loop's clock."""
    is_gone: bool = False
    """Whether the pool has let go of it: whoever still has it in hand opens nothing any more."""


class SshPool:
    """Kept connections, one a host, shared by whoever asks.

    Parameters
    ----------
    client_key
        The private key's file.
    connect_timeout_s
        For one opening: TCP, key exchange and login together, without the wait for its turn.
    keepalive_interval_s, keepalive_count_max
        A host that answers none of so many probes counts as lost: after interval x (count + 1) at the latest.
    max_handshakes
        Key exchanges at a time, in the whole pool: each takes some milliseconds of the loop. A host that accepts and
        then says nothing does not take part.
    max_channels
        Commands at a time on one connection. Half of sshd's MaxSessions, which is 10: a session that has ended is
        counted until sshd tidies up, and by then the next one may have been asked for.

    Notes
    -----
    A call that is cut short (by its timeout, by being cancelled, by too much output) takes the host's connection with
    it: its session would go on counting against MaxSessions, and what does not answer in time may be a black hole. The
    next call opens a new one.
    What a command has started at the other end goes on, whatever becomes of the connection.
    """

    def __init__(
        self,
        client_key: Path,
        *,
        connect_timeout_s: float,
        keepalive_interval_s: float = 15.0,
        keepalive_count_max: int = 3,
        max_handshakes: int = 8,
        max_channels: int = 5,
    ) -> None:
        self._key_path = client_key
        self._connect_timeout_s = connect_timeout_s
        self._keepalive = (keepalive_interval_s, keepalive_count_max)
        self._max_handshakes = max_handshakes
        self._max_channels = max_channels
        self._entries: dict[str, _Entry] = {}
        self._is_closed = False
        self._connector: Connector
        """Made by `open`."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Load and check the private key; register the closing of all connections on `stack`.

        Raises
        ------
        SshKeyFileError
            The key cannot be used, and what to do about it.
        """
        library = await asyncio.to_thread(importlib.import_module, "rampd.remote.ssh_connection")
        key = await asyncio.to_thread(library.load_private_key, self._key_path)
        handshakes = asyncio.Semaphore(self._max_handshakes)
        self._connector = library.Connector(key, self._connect_timeout_s, *self._keepalive, handshakes)
        stack.push_async_callback(self._close)

    async def _close(self) -> None:
        self._is_closed = True
        async with asyncio.TaskGroup() as group:
            for key in list(self._entries):
                group.create_task(self.disconnect(key), name=f"ssh/disconnect/{key}")

    async def disconnect(self, key: str) -> None:
        """Close a host's connection and forget the host, its pinned key too. Silent if there is none.

        Whatever still uses or awaits it gets a `SshConnectionError`.
        """
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.is_gone = True
            await self._drop(entry)

    async def _drop(self, entry: _Entry) -> None:
        opening, entry.opening = entry.opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        # Only now: the opening may have succeeded before it heard.
        connection, entry.connection = entry.connection, None
        if connection is not None:
            await connection.close()

    async def connect(self, host: SshHost) -> str:
        """See to it that there is a connection.

        Concurrent callers share one opening. After a failure the next opening waits a moment, with jitter, which grows
        up to 15 s: a caller may simply ask again.

        Returns
        -------
        str
            The host's public key line: the pinned one, or the first that it showed, which is pinned from now on.

        Raises
        ------
        SshConnectionError, SshAuthError, SshHostKeyError
            There is none.
        """
        return (await self._connection(self._entry_of(host), host)).host_key

    def _entry_of(self, host: SshHost) -> _Entry:
        if self._is_closed:
            raise SshConnectionError(host.label, "the pool is closed")
        entry = self._entries.get(host.key)
        if entry is None:
            entry = self._entries[host.key] = _Entry(host, asyncio.Semaphore(self._max_channels))
        return entry

    async def _connection(self, entry: _Entry, host: SshHost) -> Connection:
        if entry.is_gone:
            raise SshConnectionError(host.label, _DISCONNECTED)
        if _place(entry.host) != _place(host):
            entry.host = host
            await self._drop(entry)
        pinned = _normal(host.host_key)
        if pinned is not None:
            entry.pinned = pinned
        kept = entry.connection
        if kept is None or kept.is_lost:
            await self._opened(entry, host)
            kept = entry.connection
        if kept is None:
            raise SshConnectionError(host.label, _DISCONNECTED)
        if pinned is not None and kept.host_key != pinned:
            raise SshHostKeyError(host.label, f"its key is {kept.host_key}, and not the pinned one, {pinned}")
        return kept

    async def _opened(self, entry: _Entry, host: SshHost) -> None:
        if entry.opening is None:
            entry.opening = asyncio.create_task(self._open_entry(entry), name=f"ssh/connect/{host.key}")
        opening = entry.opening
        # Not cancelled with one of those who wait for it: it is bounded in time, and `disconnect` ends it.
        await asyncio.wait([opening])
        if opening.cancelled():
            raise SshConnectionError(host.label, _DISCONNECTED)
        if (error := opening.result()) is not None:
            raise error.with_traceback(None)

    async def _open_entry(self, entry: _Entry) -> SshError | None:
        """Open a connection and keep it; return why there is none."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, entry.not_before - loop.time()))
        host = entry.host
        begun = loop.time()
        try:
            entry.connection = await self._connector.open(host, pinned=entry.pinned, on_lost=partial(_say_lost, host))
        except SshError as error:
            entry.failures += 1
            entry.not_before = loop.time() + _backoff_s(entry.failures)
            return error
        finally:
            # Here and not by a waiter: there may be none left.
            if entry.opening is asyncio.current_task():
                entry.opening = None
        entry.pinned = entry.connection.host_key
        entry.failures = 0
        log.info("ssh.connected", host=host.address, instance_id=host.key, connect_s=loop.time() - begun)
        return None

    @asynccontextmanager
    async def _command(self, host: SshHost, command: str, timeout_s: float) -> AsyncIterator[RunningCommand]:
        entry = self._entry_of(host)
        try:
            async with asyncio.timeout(timeout_s) as patience, AsyncExitStack() as stack:
                await stack.enter_async_context(entry.channels)
                yield await self._start(entry, host, command, stack)
        except TimeoutError as error:
            if not patience.expired():
                raise
            if entry.connection is None:
                raise SshConnectionError(host.label, f"no connection within {timeout_s:g} s") from error
            why = f"a command did not end within {timeout_s:g} s"
            if entry.connection.is_lost:
                _say_lost(host, why)
            raise SshConnectionError(host.label, why) from error

    async def _start(self, entry: _Entry, host: SshHost, command: str, stack: AsyncExitStack) -> RunningCommand:
        for is_last in (False, True):
            connection = await self._connection(entry, host)
            try:
                return await stack.enter_async_context(connection.command(command))
            except SshConnectionError as error:
                # A kept connection that had broken and nobody had noticed yet.
                if is_last or error.may_have_run:
                    raise
        raise AssertionError("unreachable")

    async def run(
        self,
        host: SshHost,
        command: str,
        *,
        input: bytes = b"",  # noqa: A002 -- as subprocess.run has it
        timeout_s: float,
        max_output_bytes: int,
    ) -> Completed:
        """Run a command of the far user's shell, and return what it says.

        Parameters
        ----------
        host
            Where.
        command
            For the shell there; whoever builds it quotes.
        input
            Its standard input.
        timeout_s
            For everything, connecting too.
        max_output_bytes
            How much it may say.

        Raises
        ------
        SshConnectionError
            There was no connection, or it broke, or the time is over: whether the command ran is not known.
        SshOutputError
            It said more.
        SshAuthError, SshHostKeyError
            There is no connection, and trying again will not help by itself.
        """
        async with self._command(host, command, timeout_s) as running:
            if input:
                await running.write(input)
            running.write_eof()
            return await _finished(running, host, max_output_bytes)

    async def send(self, host: SshHost, command: str, file: Path, *, timeout_s: float) -> Completed:
        """Stream a file into a command's standard input; see `run`. A command that ends early ends it.

        Raises
        ------
        ResultsError
            The file cannot be read.
        """
        with await _opened_file(file, "rb") as source:
            async with self._command(host, command, timeout_s) as running:
                while data := await asyncio.to_thread(_read, source, file):
                    if not await running.write(data):
                        break
                running.write_eof()
                return await _finished(running, host, _MAX_ANSWER_BYTES)

    async def receive(self, host: SshHost, command: str, file: Path, *, max_bytes: int, timeout_s: float) -> Completed:
        """Stream a command's standard output into a file; see `run`. The file is there if its status is 0, else not.

        Raises
        ------
        SshOutputError
            It would be larger than `max_bytes`.
        ResultsError
            The file cannot be written.
        """
        is_whole = False
        try:
            with await _opened_file(file, "wb") as sink:
                async with self._command(host, command, timeout_s) as running:
                    received = 0
                    while data := await running.read():
                        received += len(data)
                        _refuse_more(host, received, max_bytes)
                        await asyncio.to_thread(_write, sink, data, file)
                    completed = await running.completed(b"")
                is_whole = completed.status == 0
                return completed
        finally:
            if not is_whole:
                file.unlink(missing_ok=True)  # noqa: ASYNC240 -- also when cancelled: no await here


def _place(host: SshHost) -> tuple[str, int, str]:
    return host.address, host.port, host.user


def _normal(host_key: str | None) -> str | None:
    """Return a public key line without its comment."""
    return None if host_key is None else " ".join(host_key.split()[:2])


def _backoff_s(failures: int) -> float:
    return min(_MAX_BACKOFF_S, _BACKOFF_S * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter


def _say_lost(host: SshHost, reason: str) -> None:
    log.warning("ssh.lost", host=host.address, instance_id=host.key, error=reason)


async def _finished(running: RunningCommand, host: SshHost, max_output_bytes: int) -> Completed:
    output = bytearray()
    while data := await running.read():
        output += data
        _refuse_more(host, len(output), max_output_bytes)
    return await running.completed(bytes(output))


def _refuse_more(host: SshHost, size: int, limit: int) -> None:
    if size > limit:
        raise SshOutputError(host.label, f"a command put out more than {limit} bytes; the rest was not read")


async def _opened_file(path: Path, mode: str) -> IO[bytes]:
    try:
        return await asyncio.to_thread(path.open, mode)
    except OSError as error:
        raise ResultsError(f"{path} cannot be opened: {error.strerror}") from error


def _read(source: IO[bytes], path: Path) -> bytes:
    try:
        return source.read(_CHUNK)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error


def _write(sink: IO[bytes], data: bytes, path: Path) -> None:
    try:
        sink.write(data)
        sink.flush()
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}") from error
