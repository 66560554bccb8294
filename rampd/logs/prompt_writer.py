"""Writing to a pipe or a socket at once or not at all, whoever else has it open."""

from __future__ import annotations

import os
import select
import socket
import stat
from contextlib import suppress


class PromptWriter:
    """Writes what fits now, and never waits.

    The descriptor itself stays as it is: its mode is shared with everybody who has it from the same parent. A pipe is
    opened once more, so that O_NONBLOCK is this writer's alone (proc(5), /proc/pid/fd); a Unix socket, as the journal's
    is, is told for each write (send(2), MSG_DONTWAIT). Everything else may keep a writer waiting, and is left alone.

    Parameters
    ----------
    fd
        Where to; it is not closed. None: nowhere.
    """

    def __init__(self, fd: int | None) -> None:
        self._pipe: int | None = None
        self._socket: socket.socket | None = None
        with suppress(OSError):
            if fd is None:
                return
            mode = os.fstat(fd).st_mode
            if stat.S_ISFIFO(mode):
                self._pipe = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            elif stat.S_ISSOCK(mode):
                found = socket.socket(fileno=os.dup(fd))
                if (found.family, found.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                    self._socket = found
                else:
                    found.close()

    def write(self, data: bytes) -> int:
        """Return how many bytes were written: all, or none; of a socket that is nearly full perhaps some."""
        if len(data) > select.PIPE_BUF:  # of more than this some might be written (pipe(7))
            return 0
        with suppress(OSError):  # no room, or nobody reads: whoever can wait finds out
            if self._pipe is not None:
                return os.write(self._pipe, data)
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return 0

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._pipe is not None:
            os.close(self._pipe)
        if self._socket is not None:
            self._socket.close()
        self._pipe = self._socket = None
