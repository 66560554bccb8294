"""The log that is kept of a run, and what is known of it afterwards."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from support.conda import KINDS, CondaRoom, warm_up_uvloop
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture(params=KINDS)
def room(request: pytest.FixtureRequest, tmp_path: Path) -> CondaRoom:
    """Give an event's folders, once for each kind of containment."""
    return CondaRoom(tmp_path, request.param)


async def test_the_log_can_be_read_while_it_runs(room: CondaRoom) -> None:
    """What a run prints is in its log at once, standard error as well, an unfinished line as well."""
    room.ramp_test('echo out; echo error >&2; printf "no end"; sleep 1000')
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        assert await room.printed(job, b"no end") == b"out\nerror\nno end"
        assert not await worker.is_submission_finished(allocation)


async def test_a_long_log_is_capped_while_the_run_goes_on(room: CondaRoom) -> None:
    """Of 20 MB the first MiB is kept, then a line that says so; the rest is counted, and does not hold the run up."""
    room.python("""
import os, sys, time
for number in range(20):
    sys.stdout.write("x" * 999_999 + "\\n")
sys.stdout.flush()
open(os.environ["HOME"] + "/done", "w").close()
time.sleep(1000)
""")
    job = room.job()
    line = b"\n[rampd] the log ends here: only the first 1048576 bytes are kept\n"
    async with room.opened(max_log_bytes="1 MiB") as worker, room.launched(worker, job) as allocation:
        await until((job.attempt_dir / "home" / "done").exists)
        assert not await worker.is_submission_finished(allocation)
        ended = await worker.stop(allocation)
        log = job.log_path.read_bytes()
    assert (ended.log_bytes, ended.log_capped) == (20_000_000, True)
    assert log == b"\n".join([b"x" * 999_999, b"x" * 48_576]) + line


@pytest.mark.parametrize(("size", "capped"), [(1000, False), (1001, True)])
async def test_a_log_of_just_the_limit_is_whole(room: CondaRoom, size: int, capped: bool) -> None:
    """The line about the limit stands where something is missing, and nowhere else."""
    room.ramp_test(f"head -c {size} /dev/zero")
    async with room.opened(max_log_bytes=1000) as worker:
        ended, log = await room.run(worker, room.job())
    assert (ended.log_bytes, ended.log_capped) == (size, capped)
    assert log.startswith(bytes(1000))
    assert (len(log) == 1000) is not capped


async def test_bytes_are_kept_as_they_are(room: CondaRoom) -> None:
    """NULs, colours and bytes that are no UTF-8 are in the log as they were printed."""
    raw = bytes(range(256)) + b"\x1b[31mred\x1b[0m\r\n\xff\xfe\xc3"
    room.python(f"import os\nos.write(1, {raw!r})\n")
    async with room.opened() as worker:
        ended, log = await room.run(worker, room.job())
    assert log == raw
    assert ended.log_bytes == len(raw)


async def test_last_words_are_kept(room: CondaRoom) -> None:
    """A megabyte that is printed just before the end is in the log when the run is over."""
    room.python("import os\nfor _ in range(16):\n    os.write(1, b'x' * 65536)\nos._exit(3)\n")
    async with room.opened() as worker:
        ended, log = await room.run(worker, room.job())
    assert (ended.status, ended.log_bytes, len(log)) == (3, 1 << 20, 1 << 20)


async def test_an_older_log_is_replaced(room: CondaRoom) -> None:
    """The log is that of the last attempt, with nothing of an earlier one."""
    room.ramp_test("echo short")
    job = room.job()
    job.log_path.parent.mkdir(parents=True)
    job.log_path.write_bytes(b"a long text of an earlier attempt\n")
    async with room.opened() as worker:
        _, log = await room.run(worker, job)
    assert log == b"short\n"


async def test_a_log_that_cannot_be_written(room: CondaRoom, log_records: list[dict[str, Any]]) -> None:
    """It costs the log and a warning, never the submission."""
    room.ramp_test("head -c 1000000 /dev/zero; exit 5")
    job = room.job()
    job.log_path.mkdir(parents=True)
    async with room.opened() as worker:
        with structlog.contextvars.bound_contextvars(submission="one"):
            async with room.launched(worker, job) as allocation:
                ended = await worker.wait(allocation)
    assert (ended.status, ended.log_bytes) == (5, 1_000_000)
    warnings = [(one["submission"], one["error"]) for one in log_records if one["event"] == "worker.lost"]
    assert warnings == [("one", "the log could not be written: Is a directory")]


@pytest.mark.parametrize("obstacle", ["link", "dangling link", "fifo", "hard link"])
async def test_what_lies_in_the_place_of_a_log_is_replaced(room: CondaRoom, obstacle: str) -> None:
    """Nothing but an older log is written to: no link is followed, and no fifo waited for."""
    room.ramp_test("echo said")
    job = room.job()
    elsewhere = room.root / "elsewhere"
    elsewhere.write_text("precious", encoding="utf-8")
    job.log_path.parent.mkdir(parents=True)
    match obstacle:
        case "fifo":
            os.mkfifo(job.log_path)
        case "hard link":
            job.log_path.hardlink_to(elsewhere)
        case _:
            job.log_path.symlink_to(elsewhere if obstacle == "link" else room.root / "nowhere")
    async with room.opened() as worker:
        ended, log = await room.run(worker, job)
    assert (ended.status, log) == (0, b"said\n")
    assert stat.S_ISREG(job.log_path.lstat().st_mode)
    assert elsewhere.read_text(encoding="utf-8") == "precious"
    assert not (room.root / "nowhere").exists()


@pytest.mark.parametrize(
    ("script", "status", "signal"),
    [
        ("exit 0", 0, None),
        ("exit 7", 7, None),
        ("exit 255", 255, None),
        ("kill -KILL $$", 137, 9),
        ("kill -SEGV $$", 139, 11),
        ("exit 137", 137, None),
    ],
)
async def test_how_it_ended(room: CondaRoom, script: str, status: int, signal: int | None) -> None:
    """The status is the shell's 128+n where a signal ended it, and the two are told apart."""
    room.ramp_test(script)
    async with room.opened() as worker:
        ended, _ = await room.run(worker, room.job())
    assert (ended.status, ended.signal) == (status, signal)


async def test_peak_memory_is_that_of_the_largest_process(room: CondaRoom) -> None:
    """150 MB in a child that has ended long before are seen."""
    room.python("import os\nif os.fork() == 0:\n    b'x' * 150_000_000\n    os._exit(0)\nos.wait()\n")
    async with room.opened() as worker:
        ended, _ = await room.run(worker, room.job())
    assert ended.max_rss_bytes is not None
    assert 150_000_000 < ended.max_rss_bytes < 220_000_000


async def test_a_small_run_has_a_small_peak(room: CondaRoom) -> None:
    """The memory of the daemon and of what starts runs is not charged to a submission."""
    room.ramp_test("exit 0")
    async with room.opened() as worker:
        ended, _ = await room.run(worker, room.job())
    assert ended.max_rss_bytes is not None
    assert 100_000 < ended.max_rss_bytes < 25_000_000
