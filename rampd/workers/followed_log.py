"""A log that somebody else writes in an attempt's folder, followed into the event's own. Blocking."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from rampd.workers.supervisor import open_log

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 18
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class FollowedLog:
    """Copies a file that grows, no more than `max_bytes` of it.

    Parameters
    ----------
    folder
        The attempt's. Submissions can write there: no link below it is followed, and only a regular file is read.
    parts
        The file's place below `folder`.
    target
        The event's log; begun anew.
    max_bytes
        How much is kept.
    """

    def __init__(self, folder: Path, parts: tuple[str, ...], target: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._parts = parts
        self._target = target
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._copied = 0
        self._inode = 0
        self.size = 0
        """How large the source was when last looked at."""

    @property
    def is_capped(self) -> bool:
        """Whether there was more than is kept."""
        return self.size > self._max_bytes

    def begin(self) -> None:
        """Make the target's folder, and empty the target; whatever else lies in its place is put away."""
        with suppress(OSError):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            os.close(open_log(str(self._target)))

    def follow(self, *, anew: bool = False) -> None:
        """Copy what was added.

        Parameters
        ----------
        anew
            Compare all of it, and write again from where it differs: for the end, since a file may have been rewritten.
        """
        with self._lock:
            source = self._open()
            if source is None:
                return
            try:
                info = os.fstat(source)
                if not stat.S_ISREG(info.st_mode):
                    return
                self.size = info.st_size
                is_another = info.st_ino != self._inode or info.st_size < self._copied
                self._inode = info.st_ino
                self._copy(source, 0 if anew or is_another else self._copied)
            except OSError:
                return  # a full disk costs the log, never the submission
            finally:
                os.close(source)

    def _open(self) -> int | None:
        """Open the source, one folder after the other; None where it is not there, or is no plain file."""
        opened: list[int] = []
        try:
            for index, name in enumerate((str(self._folder), *self._parts)):
                kind = os.O_NONBLOCK if index == len(self._parts) else os.O_DIRECTORY
                flags = os.O_RDONLY | _SAFELY | kind
                opened.append(os.open(name, flags, dir_fd=opened[-1] if opened else None))
            return opened.pop()
        except OSError:
            return None
        finally:
            for descriptor in opened:
                with suppress(OSError):
                    os.close(descriptor)

    def _copy(self, source: int, offset: int) -> None:
        end = min(self.size, self._max_bytes)
        with os.fdopen(os.open(self._target, os.O_RDWR | _SAFELY), "r+b") as target:
            while offset < end:
                chunk = os.pread(source, min(_CHUNK, end - offset), offset)
                if not chunk:
                    break
                target.seek(offset)
                # What stands there already is left alone: somebody may be reading along.
                if target.read(len(chunk)) != chunk:
                    target.seek(offset)
                    target.write(chunk)
                offset += len(chunk)
            target.truncate(offset)
        self._copied = offset
