"""Keeping file descriptor 1 for the stream: tried in processes of their own."""

from __future__ import annotations

import subprocess
import sys

_TAKE = "import os, subprocess, sys; from rampd.logs import take_stdout; fd = take_stdout()"
_STRAY = "print('print'); os.write(1, b'write'); sys.stdout.flush(); subprocess.run(['echo', 'child'], check=True)"


def _run(program: str, *, redirect: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run a program in a shell that closes some of its descriptors."""
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, program]
    return subprocess.run(command, capture_output=True, check=False, timeout=30)


def test_only_the_stream_comes_out_of_stdout() -> None:
    """A plug-in's print, a write to descriptor 1 and a child's output go to stderr."""
    ended = _run(f"{_TAKE}; {_STRAY}; os.write(fd, b'line\\n')")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == b"line\n"
    assert sorted(ended.stderr.replace(b"write", b"write\n").split()) == [b"child", b"print", b"write"]


def test_the_kept_descriptor_is_the_daemons_alone() -> None:
    """No child inherits it, so a reader sees the end when the daemon ends."""
    ended = _run(f"{_TAKE}; sys.exit(0 if fd > 9 and not os.get_inheritable(fd) and os.get_inheritable(1) else 1)")
    assert ended.returncode == 0, ended.stderr


def test_a_closed_stdout_is_no_stream() -> None:
    """There is nothing to keep, and what is printed still goes to stderr."""
    ended = _run(f"{_TAKE}; assert fd is None; os.write(1, b'write')", redirect=">&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"write")


def test_with_stdout_and_stderr_closed_prints_go_nowhere() -> None:
    """Descriptors 1 and 2 are taken, so that no socket or database gets their numbers."""
    ended = _run(
        f"{_TAKE}; assert fd is None; {_STRAY}; os.write(2, b'write')".replace("sys.stdout.flush()", "0"),
        redirect=">&- 2>&-",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_with_everything_closed_nothing_fails() -> None:
    """Not even descriptor 0 is there."""
    ended = _run(f"{_TAKE}; assert fd is None; os.write(1, b'write'); os.write(2, b'write')", redirect="<&- >&- 2>&-")
    assert ended.returncode == 0


def test_with_stderr_closed_the_stream_is_kept() -> None:
    """What is printed must not come out of stdout for want of a better place."""
    ended = _run(f"{_TAKE}; os.write(1, b'write'); os.write(fd, b'line')", redirect="2>&-")
    assert (ended.returncode, ended.stdout) == (0, b"line")


def test_a_stalled_reader_does_not_keep_the_process() -> None:
    """With a full pipe that nobody reads, the stream gives up and the process ends by itself."""
    program = (
        f"{_TAKE}; from rampd.logs import LogStream; stream = LogStream(fd); stream.start(); "
        "[stream.put(lambda seq: b'x' * 30000, 20) for _ in range(20)]; stream.close(timeout_s=0.1)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.wait(timeout=30) == 0
        assert process.stdout is not None
        assert 0 < len(process.stdout.read()) < 600_000
