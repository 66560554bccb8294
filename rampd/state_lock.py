"""One daemon an event: a lock on its state_dir that the kernel gives back whatever happens to its holder."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from rampd.errors import LockedError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "lock"
_RETRY_S = 0.02


class StateLock:
    """flock(2) on `state_dir/lock`, held for the life of a daemon. A context manager.

    Parameters
    ----------
    state_dir
        Must exist.
    patience_s
        How long to try while nobody but `rampctl` looks at the lock, which takes an instant.
    """

    def __init__(self, state_dir: Path, *, patience_s: float = 0.5) -> None:
        self._state_dir = state_dir
        self._patience_s = patience_s
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        LockedError
            Another process holds it.
        StoreError
            The file cannot be opened.
        """
        path = self._state_dir / _NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be opened: {error.strerror}; state_dir must belong to the user that rampd runs as"
            ) from error
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not _is_only_looked_at(descriptor) or time.monotonic() > deadline:
                    holder = _holder(descriptor)
                    os.close(descriptor)
                    raise LockedError(self._state_dir, f"pid {holder}" if holder else "another rampd") from None
                time.sleep(_RETRY_S)
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk: the lock holds, only its note is missing
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; silent if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(state_dir: Path) -> int | None:
    """Return the pid of the daemon that holds an event (0 where it is not known), or None."""
    try:
        descriptor = os.open(state_dir / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _is_only_looked_at(descriptor: int) -> bool:
    """Say whether no daemon holds the lock: those who look share it, and a daemon shares it with nobody."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _holder(descriptor: int) -> int:
    with suppress(OSError, ValueError):
        return int(os.pread(descriptor, 32, 0))
    return 0
