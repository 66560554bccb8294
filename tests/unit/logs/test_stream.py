"""Lines on their way to a reader who may be slow, stalled, gone or back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from rampd.logs import LogStream
from rampd.logs import stream as stream_module
from rampd.logs.stream import ESSENTIAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEBUG, INFO, WARNING = 10, 20, 30
_LINE_BYTES = 100


def _line(rank: int, seq: int, *, size: int = _LINE_BYTES) -> bytes:
    """Render a record of exactly `size` bytes."""
    head = f'{{"seq":{seq},"rank":{rank},"x":"'
    return f'{head.ljust(size - 3, "x")}"}}\n'.encode()


def _dropped(seq: int, count: int, first: int, last: int) -> bytes:
    return f'{{"seq":{seq},"count":{count},"first_seq":{first},"last_seq":{last}}}\n'.encode()


def _put(
    stream: LogStream, rank: int, on_written: Callable[[], None] | None = None, *, size: int = _LINE_BYTES
) -> None:
    stream.put(partial(_line, rank, size=size), rank, on_written)


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _records(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


class Reader:
    """The other end of a pipe that holds one page."""

    def __init__(self, fd: int, theirs: int = -1) -> None:
        self.fd = fd
        self.theirs = theirs

    def read_lines(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Return the records that come until they are enough."""
        data = b""
        while not (data.endswith(b"\n") and enough(_records(data))):
            assert select.select([self.fd], [], [], 10)[0], data
            data += os.read(self.fd, 65536)
        return _records(data)

    def leave(self) -> None:
        """Read no more."""
        os.close(self.fd)

    def close(self) -> None:
        """Close what is open."""
        for fd in (self.fd, self.theirs):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Give a reader that reads when it is told to."""
    reader = Reader(*os.pipe())
    fcntl.fcntl(reader.theirs, fcntl.F_SETPIPE_SZ, 4096)
    yield reader
    reader.close()


@pytest.fixture
def start() -> Iterator[Callable[..., LogStream]]:
    """Give a function that starts streams; they have ended after the test, whatever became of their readers."""
    streams: list[LogStream] = []

    def start(fd: int | None, *, buffer_bytes: int = 1 << 20) -> LogStream:
        stream = LogStream(fd, buffer_bytes=buffer_bytes)
        stream.on_dropped(_dropped)
        stream.start()
        streams.append(stream)
        return stream

    yield start
    for stream in streams:
        stream.close(timeout_s=5)


def _stalled(start: Callable[..., LogStream], reader: Reader, *, lines: int) -> LogStream:
    """Return a stream with room for so many lines, whose writer is stuck with record 1."""
    os.write(reader.theirs, b"\n" * 4096)
    stream = start(reader.theirs, buffer_bytes=lines * _LINE_BYTES)
    _put(stream, ESSENTIAL)
    _until(lambda: stream._busy and stream._size == 0)
    return stream


def _after_the_stall(reader: Reader) -> list[dict[str, Any]]:
    """Return what a reader that is back finds, up to the record that says what is missing."""
    os.read(reader.fd, 4096)
    return reader.read_lines(lambda records: "count" in records[-1])


def test_a_record_is_one_write_of_one_line(start: Callable[..., LogStream]) -> None:
    """Whoever else writes to the same pipe or terminal cannot come between."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        stream = start(theirs.fileno())
        for size in (50, 4097, 32768):
            _put(stream, INFO, size=size)
        packets = [ours.recv(65536) for _ in range(3)]
        stream.close()
    assert packets == [_line(INFO, seq, size=size) for seq, size in enumerate((50, 4097, 32768), start=1)]


def test_numbers_go_up_by_one_across_threads(start: Callable[..., LogStream], reader: Reader) -> None:
    """From 1, in the order of the lines, whoever logs and at whatever level."""
    stream = start(reader.theirs)

    def log(rank: int) -> None:
        for _ in range(50):
            _put(stream, rank)

    threads = [threading.Thread(target=log, args=(rank,)) for rank in (DEBUG, INFO, INFO, WARNING, ESSENTIAL)]
    for thread in threads:
        thread.start()
    records = reader.read_lines(lambda records: len(records) == 250)
    for thread in threads:
        thread.join()
    assert [record["seq"] for record in records] == list(range(1, 251))
    stream.close()  # the last line is read before its writer has counted it
    assert (stream.dropped, stream.written) == (0, 250)


def test_a_stalled_reader_never_blocks_put(start: Callable[..., LogStream], reader: Reader) -> None:
    """Far more records than there is room for are taken at once; those that do not fit are counted."""
    stream = _stalled(start, reader, lines=5)
    for _ in range(1000):
        _put(stream, INFO)
    assert stream.dropped == 995
    assert stream.written == 0
    reader.leave()


def test_the_lowest_level_goes_first(start: Callable[..., LogStream], reader: Reader) -> None:
    """A record makes room for itself at the cost of lower ones only, the oldest first."""
    stream = _stalled(start, reader, lines=4)
    for rank in (DEBUG, INFO, DEBUG, INFO):  # 2, 3, 4, 5: full
        _put(stream, rank)
    _put(stream, INFO)  # 6 instead of 2
    _put(stream, WARNING)  # 7 instead of 4
    _put(stream, WARNING)  # 8 instead of 3
    _put(stream, DEBUG)  # 9: nothing is lower
    *kept, last = _after_the_stall(reader)
    assert [(record["seq"], record["rank"]) for record in kept] == [
        (1, ESSENTIAL),
        (5, INFO),
        (6, INFO),
        (7, WARNING),
        (8, WARNING),
    ]
    assert last == {"seq": 10, "count": 4, "first_seq": 2, "last_seq": 9}


def test_essential_records_have_room_of_their_own(start: Callable[..., LogStream], reader: Reader) -> None:
    """With the buffer full of anything, submission.finished is kept, and costs nobody else its place."""
    stream = _stalled(start, reader, lines=3)
    for rank in (WARNING, WARNING, WARNING, WARNING, ESSENTIAL, ESSENTIAL, INFO):  # 2 to 8
        _put(stream, rank)
    *kept, last = _after_the_stall(reader)
    assert [record["seq"] for record in kept] == [1, 2, 3, 4, 6, 7]
    assert last == {"seq": 9, "count": 2, "first_seq": 5, "last_seq": 8}


def test_essential_records_go_last(
    start: Callable[..., LogStream], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take the others' room once their own is full; only then are they lost too."""
    monkeypatch.setattr(stream_module, "_RESERVE_BYTES", 2 * _LINE_BYTES)
    stream = _stalled(start, reader, lines=2)
    for rank in (WARNING, INFO, *[ESSENTIAL] * 6):  # 2 to 9
        _put(stream, rank)
    *kept, last = _after_the_stall(reader)
    assert [record["seq"] for record in kept] == [1, 4, 5, 6, 7]
    assert last == {"seq": 10, "count": 4, "first_seq": 2, "last_seq": 9}


def test_a_reader_can_prove_what_is_missing(start: Callable[..., LogStream], reader: Reader) -> None:
    """Each number that did not come is in the range of a log.dropped, and they are as many as it says."""
    stream = _stalled(start, reader, lines=7)
    for number in range(500):
        _put(stream, (DEBUG, INFO, WARNING)[number % 3])
    records = _after_the_stall(reader)
    _put(stream, DEBUG)
    records += reader.read_lines(bool)
    seen = [record["seq"] for record in records]
    missing = set(range(1, seen[-1] + 1)) - set(seen)
    said = [record for record in records if "count" in record]
    assert seen == sorted(seen)
    assert sum(record["count"] for record in said) == len(missing) == stream.dropped
    assert missing == {seq for record in said for seq in range(record["first_seq"], record["last_seq"] + 1)} - set(seen)


def test_a_reader_that_is_gone_ends_nothing(start: Callable[..., LogStream], reader: Reader) -> None:
    """EPIPE costs the lines, and close does not wait for anybody."""
    stream = start(reader.theirs)
    reader.leave()
    for _ in range(100):
        _put(stream, INFO)
    _until(lambda: stream.dropped >= 100)
    assert stream.written == 0
    before = time.monotonic()
    stream.close()
    assert not stream._thread.is_alive()
    assert time.monotonic() - before < 1


def test_a_reader_that_is_back_learns_of_all_that_was_lost(start: Callable[..., LogStream], tmp_path: Path) -> None:
    """Also of a log.dropped record that was lost itself, and of what that one told."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    try:
        stream = start(writing)
        os.close(reading)
        _put(stream, INFO)
        _until(lambda: stream.dropped >= 2 and not stream._busy)
        _put(stream, INFO)
        _until(lambda: stream.dropped >= 3 and not stream._busy)
        reading = os.open(path, os.O_RDONLY)
        _put(stream, INFO)
        kept, last = Reader(reading).read_lines(lambda records: "count" in records[-1])
        assert kept["seq"] == last["seq"] - 1
        assert last == {"seq": last["seq"], "count": kept["seq"] - 1, "first_seq": 1, "last_seq": kept["seq"] - 1}
        stream.close()
    finally:
        os.close(reading)
        os.close(writing)


def test_a_full_device_costs_lines_only(start: Callable[..., LogStream]) -> None:
    """ENOSPC is not the daemon's end."""
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 -- a device
        stream = start(full.fileno())
        for _ in range(10):
            _put(stream, ESSENTIAL)
        _until(lambda: stream.dropped >= 10)
        stream.close()
    assert not stream._thread.is_alive()
    assert stream.written == 0


@pytest.mark.parametrize("fd", [None, 987])
def test_without_a_descriptor_everything_is_dropped(start: Callable[..., LogStream], fd: int | None) -> None:
    """A daemon whose stdout is closed works; it has just nobody to tell."""
    stream = start(fd)
    for _ in range(10):
        _put(stream, INFO)
    _until(lambda: stream.dropped == 10)
    stream.close()
    assert not stream._thread.is_alive()
    assert (stream.written, stream.dropped) == (0, 10)


def test_a_dead_reader_is_no_reason_to_spin(start: Callable[..., LogStream], reader: Reader) -> None:
    """Saying that nobody reads is tried again, but not all the time."""
    stream = start(reader.theirs)
    reader.leave()
    _put(stream, INFO)
    _until(lambda: stream.dropped >= 2)
    dropped = stream.dropped
    time.sleep(0.2)  # a window in which a spinning writer would try thousands of times
    assert stream.dropped - dropped <= 2


def test_on_written_is_called_for_written_lines_only(start: Callable[..., LogStream], reader: Reader) -> None:
    """Neither for a line that had to go, nor for one that found no room, nor before the write."""
    stream = _stalled(start, reader, lines=2)
    called: list[int] = []
    for number, rank in enumerate((DEBUG, INFO, WARNING, DEBUG), start=2):
        _put(stream, rank, partial(called.append, number))
    assert called == []
    _after_the_stall(reader)
    assert called == [3, 4]


def test_on_written_is_not_called_for_a_line_that_failed(start: Callable[..., LogStream], reader: Reader) -> None:
    """A reader that is gone has read nothing."""
    stream = start(reader.theirs)
    reader.leave()
    called: list[int] = []
    _put(stream, ESSENTIAL, partial(called.append, 1))
    _until(lambda: stream.dropped >= 1)
    stream.close()
    assert called == []


def test_an_on_written_that_fails_does_not_end_the_stream(start: Callable[..., LogStream], reader: Reader) -> None:
    """Whoever wants to be told may be gone by then."""
    stream = start(reader.theirs)
    _put(stream, INFO, [].pop)
    _put(stream, INFO)
    assert len(reader.read_lines(lambda records: len(records) == 2)) == 2


def test_close_writes_what_is_left(start: Callable[..., LogStream], tmp_path: Path) -> None:
    """The last record of a daemon is its most important one."""
    with (tmp_path / "log").open("wb") as file:
        stream = start(file.fileno())
        for _ in range(500):
            _put(stream, INFO)
        stream.close()
    assert [record["seq"] for record in _records((tmp_path / "log").read_bytes())] == list(range(1, 501))


def test_close_gives_up_on_a_reader_that_does_not_read(start: Callable[..., LogStream], reader: Reader) -> None:
    """After its timeout, and not before."""
    stream = _stalled(start, reader, lines=5)
    before = time.monotonic()
    stream.close(timeout_s=0.2)
    assert 0.19 < time.monotonic() - before < 2
    assert stream._thread.is_alive()
    assert stream._thread.daemon
    reader.leave()


def test_put_after_close_is_harmless(start: Callable[..., LogStream], reader: Reader) -> None:
    """Somebody may have a last word in a finally."""
    stream = start(reader.theirs, buffer_bytes=10 * _LINE_BYTES)
    stream.close()
    for _ in range(20):
        _put(stream, INFO)
    assert stream.written == 0


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(start: Callable[..., LogStream], reader: Reader) -> None:
    """O_NONBLOCK is shared by all who hold a pipe or a terminal; large lines still arrive whole."""
    os.set_blocking(reader.theirs, False)
    stream = start(reader.theirs)
    for _ in range(10):
        _put(stream, INFO, size=30_000)
    records = reader.read_lines(lambda records: len(records) == 10) if _first_part(reader) else []
    assert [record["seq"] for record in records] == list(range(1, 11))


def _first_part(reader: Reader) -> bool:
    """Wait until the pipe is full: the writer has met EAGAIN or will."""
    _until(lambda: fcntl.ioctl(reader.fd, 0x541B, b"\0" * 4) == (4096).to_bytes(4, "little"))  # FIONREAD
    return True


def test_a_line_that_broke_off_does_not_spoil_the_next(
    start: Callable[..., LogStream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle of a line, and has room again: the rest stands on lines of its own."""
    write, full, all_put = os.write, threading.Event(), threading.Event()

    with (tmp_path / "log").open("wb") as file:

        def write_half(fd: int, data: memoryview) -> int:
            if fd == file.fileno():
                all_put.wait(10)
            if fd != file.fileno() or len(data) < 1000:
                return write(fd, data)
            if full.is_set():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            full.set()
            return write(fd, data[:500])

        monkeypatch.setattr(os, "write", write_half)
        stream = start(file.fileno())
        _put(stream, INFO)
        _put(stream, INFO, size=2000)
        _put(stream, INFO)
        all_put.set()
        stream.close()
    first, torn, *rest = (tmp_path / "log").read_bytes().splitlines()
    assert json.loads(first)["seq"] == 1
    assert len(torn) == 500
    assert [json.loads(line)["seq"] for line in rest] == [3, 4]
    assert json.loads(rest[-1]) == {"seq": 4, "count": 1, "first_seq": 2, "last_seq": 2}
