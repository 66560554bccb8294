"""Far hosts and what may go wrong with them: the words that the SSH pool and its users share. Pure data.

Nothing here imports an SSH library: these names are wanted where no connection is ever opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rampd.errors import WorkerError, WorkerSetupError
from rampd.states import Outcome

MAX_STDERR_BYTES: Final = 4096
"""What is kept of a command's stderr: its beginning, for a sentence to the operator."""


class SshError(WorkerError):
    """Something between here and a far host did not work.

    Attributes
    ----------
    host
        How sentences name it, see `SshHost.label`.
    """

    def __init__(self, host: str, sentence: str) -> None:
        super().__init__(f"{host}: {sentence}")
        self.host = host


class SshConnectionError(SshError):
    """There is no connection: refused, lost, timed out. Try again.

    Attributes
    ----------
    may_have_run
        Whether the command may have been started.
    """

    outcome = Outcome.LOST_HOST

    def __init__(self, host: str, sentence: str, *, may_have_run: bool = True) -> None:
        super().__init__(host, sentence)
        self.may_have_run = may_have_run


class SshHostKeyError(SshError):
    """The host does not have the key that was pinned. Never tried again silently: a person must look."""


class SshAuthError(SshError):
    """The host lets nobody in with this user and key. While an image boots, it may not have the key yet."""


class SshOutputError(SshError):
    """A command put out more than was asked for; it was cut off."""


class SshKeyFileError(WorkerSetupError):
    """The private key cannot be used. Says what is the matter with the file, and never what is in it."""


@dataclass(frozen=True, slots=True)
class SshHost:
    """Where to connect to, and whom to expect there."""

    key: str
    """What the host is known by, for pinning and for people: an instance id. Addresses are used again by others."""
    address: str
    port: int
    user: str
    host_key: str | None
    """Its public key as OpenSSH writes it (``ssh-ed25519 AAAA…``); None: whatever it shows at first is pinned."""

    @property
    def label(self) -> str:
        """Return how sentences name it."""
        return f"{self.key} ({self.user}@{self.address}:{self.port})"


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended, as its own exit status says."""

    status: int
    """128+n where signal n ended it."""
    stdout: bytes
    """Empty where it was received into a file."""
    stderr: bytes
    """Its beginning, `MAX_STDERR_BYTES` at most."""


def printable(text: str, limit: int = 200) -> str:
    """Return what the other side said, fit for a sentence: bounded, and without control characters."""
    return text[:limit].encode("unicode_escape").decode("ascii")
