"""Writing lines so that a reader who stalls or goes costs lines, never submissions.

The caller's thread numbers a record and writes it where that takes no waiting: to wake another thread costs more. Else
the record goes into a bounded buffer, and the writer's thread blocks in write(2) until the buffer is empty. When it
is full the records of the lowest rank go first; each keeps its number, and a `log.dropped` record says which are
missing.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rampd.logs.prompt_writer import PromptWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    Render = Callable[[int], bytes]
    """Makes the line of a record once its number is known."""

BUFFER_BYTES: Final = 4 << 20
ESSENTIAL: Final = 100
"""The rank of records that go last: `submission.finished`."""
_RESERVE_BYTES: Final = 2 << 20
"""What is left for essential records once the buffer is full of them too."""


@dataclass(slots=True)
class _Line:
    seq: int
    rank: int
    data: bytes
    on_written: Callable[[], None] | None
    gap: tuple[int, int, int] | None = None
    """What a log.dropped record tells: the count, the first and the last number lost."""


class LogStream:
    """Lines on their way to a file descriptor.

    Parameters
    ----------
    fd
        Where lines go; the stream owns it and never closes it under a writer. None: every record is dropped.
    buffer_bytes
        How much may wait for a slow reader.
    """

    def __init__(self, fd: int | None, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._fd = fd
        self._prompt = PromptWriter(fd)
        self._buffer_bytes = buffer_bytes
        # Told apart by rank, so that the lowest can go first; each in the order of its numbers.
        self._queues: dict[int, deque[_Line]] = {}
        self._size = 0
        self._seq = 0
        self._closing = False
        self._busy = False
        self._gap: tuple[int, int, int] | None = None
        self._torn = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="log stream", daemon=True)
        self._render_dropped: Callable[[int, int, int, int], bytes] | None = None
        self.dropped = 0
        """How many records were lost so far."""
        self.written = 0
        """How many were written so far."""

    def start(self) -> None:
        """Start the writer's thread."""
        self._thread.start()

    def on_dropped(self, render: Callable[[int, int, int, int], bytes]) -> None:
        """Say how a `log.dropped` line is made: of its own number, the count, and the first and last number lost."""
        self._render_dropped = render

    def put(self, render: Render, rank: int, on_written: Callable[[], None] | None = None) -> None:
        """Give a record its number and hand it to the writer. Never blocks on the reader, never raises for its sake.

        Parameters
        ----------
        render
            Makes the line, newline included, of the record's number.
        rank
            The higher, the later it is dropped.
        on_written
            Called, in this thread or the writer's, once the whole line was written; never if it was dropped.
        """
        with self._changed:
            self._seq += 1
            line = _Line(self._seq, rank, render(self._seq), on_written)
            if not self._write_at_once(line.data):
                self._keep(line)
                return
            self.written += 1
        _tell(line)

    def _write_at_once(self, data: bytes) -> bool:
        if self._busy or self._size or self._gap is not None or self._torn or self._closing:
            return False
        written = self._prompt.write(data)
        self._torn = 0 < written < len(data)
        return written == len(data)

    def _keep(self, line: _Line) -> None:
        if not self._make_room(line):
            self._lose(line.seq)
            return
        self._queues.setdefault(line.rank, deque()).append(line)
        self._size += len(line.data)
        if not self._busy:
            self._changed.notify()

    def _make_room(self, line: _Line) -> bool:
        limit = self._buffer_bytes + (_RESERVE_BYTES if line.rank >= ESSENTIAL else 0)
        for rank in sorted(self._queues):
            queue = self._queues[rank]
            while queue and rank < line.rank and self._size + len(line.data) > limit:
                victim = queue.popleft()
                self._size -= len(victim.data)
                self._lose(victim.seq)
        return self._size + len(line.data) <= limit

    def _lose(self, seq: int, gap: tuple[int, int, int] | None = None) -> None:
        """Remember that a record is lost, and with a log.dropped what it would have told."""
        self.dropped += 1
        for count, first, last in ((1, seq, seq), gap or (0, seq, seq)):
            known, lowest, highest = self._gap or (0, first, last)
            self._gap = (known + count, min(lowest, first), max(highest, last))

    def _next(self) -> _Line | None:
        """Return the line with the lowest number, waiting for one; None at the end."""
        with self._changed:
            self._busy = False
            while True:
                heads = [queue[0] for queue in self._queues.values() if queue]
                if heads:
                    line = min(heads, key=lambda head: head.seq)
                    self._queues[line.rank].popleft()
                    self._size -= len(line.data)
                    self._busy = True
                    return line
                if self._gap is not None and self._render_dropped is not None and self._fd is not None:
                    self._busy = True
                    return self._gap_line()
                self._changed.notify_all()
                if self._closing:
                    return None
                self._changed.wait()

    def _gap_line(self) -> _Line:
        """Return the record of what is missing. It is put last: by then the reader has all that is left of it."""
        count, first, last = self._gap or (0, 0, 0)
        told, self._gap = self._gap, None
        self._seq += 1
        assert self._render_dropped is not None  # noqa: S101 -- the caller looked
        return _Line(self._seq, ESSENTIAL, self._render_dropped(self._seq, count, first, last), None, told)

    def _write_all(self) -> None:
        lost_gap: tuple[int, int, int] | None = None
        while (line := self._next()) is not None:
            if self._write(line.data):
                self.written += 1
                lost_gap = None
                _tell(line)
                continue
            with self._changed:
                self._lose(line.seq, line.gap)
                if lost_gap is not None and not any(self._queues.values()):
                    # The reader is gone and there is nothing else to say: do not spin on saying so.
                    if self._closing:
                        return
                    self._busy = False
                    self._changed.wait(1.0)
                lost_gap = self._gap

    def _write(self, data: bytes) -> bool:
        if self._fd is None:
            return False
        # What broke off in the middle stays a line of its own, and does not spoil this one.
        view = memoryview(b"\n" + data if self._torn else data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
                self._torn = bool(view)
            except BlockingIOError:
                # Somebody who shares our terminal or pipe made it non-blocking.
                select.select([], [self._fd], [], 1.0)
                if self._closing:
                    return False
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.EBADF:
                    self._fd = None
                return False
        return True

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Write what is left, give up on a reader that does not read after `timeout_s`, and stop."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._prompt.close()


def _tell(line: _Line) -> None:
    if line.on_written is not None:
        # Whoever wants to know may be gone; the stream goes on.
        with suppress(Exception):
            line.on_written()


def take_stdout() -> int | None:
    """Keep file descriptor 1 for the stream, and let 1 point to stderr, so that a stray print cannot break it.

    Returns
    -------
    int or None
        The stream's descriptor, not inherited by children; None where stdout was closed.
    """
    kept: int | None = None
    with suppress(OSError):
        # Above the standard three, whatever of them is closed.
        import fcntl  # noqa: PLC0415 -- only here

        kept = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        os.dup2(2, 1)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            if null != descriptor:
                os.dup2(null, descriptor)
            else:
                os.set_inheritable(descriptor, True)
        if null > 2:  # noqa: PLR2004 -- stderr
            os.close(null)
    return kept
