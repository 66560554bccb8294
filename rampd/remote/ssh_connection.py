"""One SSH connection: opening it, running a command on it, and what its failures mean. The only user of asyncssh.

Knows nothing of pools, retries, instances or submissions. What the other side says (banners, reasons, output) is
untrusted: it is bounded, and escaped where it gets into a sentence.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import asyncssh

from rampd.remote.hosts import (
    MAX_STDERR_BYTES,
    Completed,
    SshAuthError,
    SshConnectionError,
    SshHostKeyError,
    SshKeyFileError,
    printable,
)
from rampd.remote.key_file import has_passphrase, read_key_file
from rampd.remote.sockets import connected_socket, first_byte

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from rampd.remote.hosts import SshHost

_BUFFER_BYTES: Final = 1 << 20
_CLOSE_S: Final = 1.0
_HOST_KEY_ALGORITHMS: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""No certificates: a host is known by its own key. No SHA-1."""
_CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)
"""Cheapest first: with AES a poll takes a quarter less processor time than with asyncssh's first choice."""


def load_private_key(path: Path) -> asyncssh.SSHKey:
    """Read and check a private key. Blocking.

    Raises
    ------
    SshKeyFileError
        It is missing, cannot be read, can be read by others, is no private key, or has a passphrase.
    """
    data = read_key_file(path)
    if has_passphrase(data):
        raise SshKeyFileError(
            f"the key in {path} has a passphrase, and nobody is there to type it; use one without "
            f"(ssh-keygen -p -f {path} removes it)"
        )
    try:
        return asyncssh.import_private_key(data)
    except (ValueError, asyncssh.KeyEncryptionError):
        # Not chained: what the library says may quote the file.
        raise SshKeyFileError(f"{path} holds no private key in a form that OpenSSH knows") from None


def host_key_line(key: asyncssh.SSHKey) -> str:
    """Return a public key as OpenSSH writes it, without a comment."""
    return " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])


class _Client(asyncssh.SSHClient):
    """Looks at the host's key, at the first exchange and at every later one, and hears of the connection's end."""

    def __init__(self, pinned: asyncssh.SSHKey | None) -> None:
        self.shown: asyncssh.SSHKey | None = None
        self.has_ended = False
        self.on_end: Callable[[Exception | None], None] | None = None
        self.pinned = pinned

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.shown = key
        if self.pinned is None:
            self.pinned = key
        return key.public_data == self.pinned.public_data

    def connection_lost(self, exc: Exception | None) -> None:
        self.has_ended = True
        if self.on_end is not None:
            self.on_end(exc)


class _Command(asyncssh.SSHClientSession[bytes]):
    """The callbacks of one running command."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.status: int | None = None
        self.has_ended = False
        self.changed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype is not None:
            self.stderr += data[: MAX_STDERR_BYTES - len(self.stderr)]
            return
        self.stdout += data
        if len(self.stdout) >= _BUFFER_BYTES and self._channel is not None:
            self._channel.pause_reading()
        self.changed.set()

    def take(self) -> bytes:
        """Take what has arrived, and let more come."""
        data = bytes(self.stdout)
        self.stdout.clear()
        if len(data) >= _BUFFER_BYTES and self._channel is not None:
            self._channel.resume_reading()
        return data

    def exit_status_received(self, status: int) -> None:
        self.status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:  # noqa: ARG002
        self.status = 128 + _signal_number(signal)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.has_ended = True
        self.writable.set()
        self.changed.set()


def _signal_number(name: str) -> int:
    with suppress(KeyError):
        return int(signal.Signals[f"SIG{name}"])
    return 0


class Connection:
    """One open connection. Made by `Connector.open`; whoever has it closes it.

    Attributes
    ----------
    host_key
        The key that the host has shown, as a public key line; the pinned one, where one was pinned.
    is_lost
        Whether it has ended, whoever ended it.
    """

    def __init__(self, host: SshHost, connection: asyncssh.SSHClientConnection, host_key: str) -> None:
        self.host_key = host_key
        self.is_lost = False
        self._host = host
        self._connection = connection

    @asynccontextmanager
    async def command(self, command: str) -> AsyncIterator[RunningCommand]:
        """Start a command and give it. If it has not ended at the end, the connection is closed with it.

        A server goes on counting the session of a command that runs on, and allows ten (sshd's MaxSessions).

        Raises
        ------
        SshConnectionError
            The connection is lost, or the host opens no further session.
        """
        has_ended = False
        try:
            try:
                channel, session = await self._connection.create_session(_Command, command, encoding=None)
            except (asyncssh.Error, OSError) as error:
                # Where no session is opened, nothing was asked for, and nothing is left there.
                was_asked = getattr(error, "code", None) in (None, asyncssh.OPEN_REQUEST_SESSION_FAILED)
                has_ended = not was_asked
                why = f"no command can be started: {_reason(error)}"
                raise SshConnectionError(self._host.label, why, may_have_run=was_asked) from error
            running = RunningCommand(self._host, channel, cast("_Command", session))
            yield running
            has_ended = running.has_ended
        finally:
            if not has_ended:
                self.abort()

    def abort(self) -> None:
        """Close at once, whatever is under way, without a word to the other side."""
        self.is_lost = True
        self._connection.abort()

    async def close(self) -> None:
        """Say goodbye, and close. Bounded, also where the other side takes nothing any more."""
        self.is_lost = True
        self._connection.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._connection.wait_closed()
        finally:
            self._connection.abort()


class RunningCommand:
    """A command under way on a connection."""

    def __init__(self, host: SshHost, channel: asyncssh.SSHClientChannel[bytes], session: _Command) -> None:
        self._host = host
        self._channel = channel
        self._session = session

    @property
    def has_ended(self) -> bool:
        """Whether its channel is closed from both sides."""
        return self._session.has_ended

    async def write(self, data: bytes) -> bool:
        """Give it input, as fast as it takes it; return whether it takes any more."""
        if self._session.has_ended or self._channel.is_closing():
            return False
        try:
            self._channel.write(data)
        except OSError:
            return False
        await self._session.writable.wait()
        return not self._session.has_ended

    def write_eof(self) -> None:
        """Say that this was all of its input."""
        with suppress(OSError):
            self._channel.write_eof()

    async def read(self) -> bytes:
        """Return output as it comes; empty once there is no more."""
        while not self._session.stdout and not self._session.has_ended:
            self._session.changed.clear()
            await self._session.changed.wait()
        return self._session.take()

    async def completed(self, stdout: bytes) -> Completed:
        """Wait for the end and return how it ended.

        Raises
        ------
        SshConnectionError
            The connection broke first: whether the command ran, nobody knows.
        """
        while await self.read():
            pass
        if self._session.status is None:
            raise SshConnectionError(self._host.label, "the connection broke while a command was running")
        return Completed(self._session.status, stdout, bytes(self._session.stderr))


@dataclass(frozen=True, slots=True)
class Connector:
    """Opens connections, all in the same way: public key only; no agent, config file or known_hosts is read."""

    client_key: asyncssh.SSHKey
    timeout_s: float
    """For one opening, but for the wait for `handshakes`."""
    keepalive_interval_s: float
    keepalive_count_max: int
    """A host that answers none of so many probes counts as lost: after interval x (count + 1) at the latest."""
    handshakes: asyncio.Semaphore
    """Held from the other side's first byte to the login: a host that does not answer keeps no other waiting."""

    async def open(self, host: SshHost, *, pinned: str | None, on_lost: Callable[[str], None]) -> Connection:
        """Connect, verify the host's key, and log in.

        Parameters
        ----------
        host
            Where to.
        pinned
            The only host key to accept, as a public key line; None accepts what is shown.
        on_lost
            Called once with the reason if the connection ends and it was not ended from here.

        Raises
        ------
        SshConnectionError, SshHostKeyError, SshAuthError
            It did not work.
        """
        try:
            client = _Client(None if pinned is None else asyncssh.import_public_key(pinned))
        except ValueError as error:
            raise SshHostKeyError(host.label, f"the pinned host key cannot be read: {error}") from error
        try:
            async with asyncio.timeout(self.timeout_s) as patience:
                opened = await self._handshake(host, client, patience)
        except asyncssh.HostKeyNotVerifiable as error:
            raise SshHostKeyError(host.label, _unexpected(client.shown)) from error
        except asyncssh.PermissionDenied as error:
            raise SshAuthError(
                host.label,
                "permission denied: is this the user of the image (ami_user_name), and does the key in key_path "
                "belong to the key pair that the instance was launched with (key_name)?",
            ) from error
        except (asyncssh.Error, OSError, ValueError) as error:
            why = f"no connection within {self.timeout_s:g} s" if patience.expired() else _reason(error)
            raise SshConnectionError(host.label, f"no connection: {why}") from error
        if client.has_ended or client.shown is None:
            raise SshConnectionError(host.label, "no connection: the other side closed it after the login")
        connection = Connection(host, opened, host_key_line(client.shown))

        def ended(error: Exception | None) -> None:
            if not connection.is_lost:
                connection.is_lost = True
                on_lost(_reason(error))

        client.on_end = ended
        return connection

    async def _handshake(
        self, host: SshHost, client: _Client, patience: asyncio.Timeout
    ) -> asyncssh.SSHClientConnection:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        connected = await connected_socket(host.address, host.port)
        try:
            await first_byte(connected)
            waiting_since = loop.time()
            patience.reschedule(None)
            async with self.handshakes:
                patience.reschedule(deadline + loop.time() - waiting_since)
                return await asyncssh.connect(
                    host=host.address,
                    port=host.port,
                    sock=connected,
                    config=None,
                    known_hosts=([], [], []),  # never None, which would accept anything and ask nobody
                    server_host_key_algs=_host_key_algorithms(client.pinned),
                    encryption_algs=_CIPHERS,
                    compression_algs=None,
                    client_factory=lambda: client,
                    username=host.user,
                    client_keys=[self.client_key],
                    preferred_auth=("publickey",),
                    password_auth=False,
                    kbdint_auth=False,
                    host_based_auth=False,
                    gss_host=None,
                    agent_path=None,
                    agent_forwarding=False,
                    x509_trusted_certs=None,
                    x509_trusted_cert_paths=(),
                    login_timeout=0,
                    keepalive_interval=self.keepalive_interval_s,
                    keepalive_count_max=self.keepalive_count_max,
                )
        except BaseException:
            connected.close()
            raise


def _host_key_algorithms(expected: asyncssh.SSHKey | None) -> tuple[str, ...]:
    """Return the algorithms to ask for, those of the pinned key first: a host may have several keys."""
    if expected is None:
        return _HOST_KEY_ALGORITHMS
    own = {algorithm.decode("ascii") for algorithm in expected.sig_algorithms}
    return tuple(sorted(_HOST_KEY_ALGORITHMS, key=lambda algorithm: algorithm not in own))


def _unexpected(shown: asyncssh.SSHKey | None) -> str:
    which = "" if shown is None else f" ({shown.get_fingerprint()})"
    return (
        f"the host shows another key than the pinned one{which}: either something stands between, or this is another "
        "machine; nothing was sent to it. If you know why, end the submission's instance and run it again"
    )


def _reason(error: BaseException | None) -> str:
    match error:
        case None:
            return "the other side closed it"
        case OSError(errno=int(number)):
            return os.strerror(number)  # asyncio's own words tell the address, not the reason
        case _:
            return printable(str(error)) or type(error).__name__
