"""Each step of a detached run with its connection taken away, and asked for again, as a worker does."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from rampd.errors import ResultsError
from rampd.remote import detached_run as detached
from rampd.remote.detached_run import Ending, RunSettings, RunState
from rampd.remote.hosts import SshConnectionError
from support.far import Far, archive_of
from support.requirements import needs_root
from support.sshd import small_disk
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path
    from typing import Any

SETTINGS = RunSettings(timeout_s=600, max_log_bytes=1 << 20, imds_url=None)
_LONG = 'echo x >>"$HOME/runs"; while [ ! -e go ]; do sleep 0.05; done; echo over'
_LARGE_BYTES = 60_000_000


async def cut(far: Far, step: Coroutine[Any, Any, object], seen: Path) -> None:
    """Break the connection of a step once something of it can be seen, and hold it to saying so."""
    task = asyncio.create_task(step)
    await until(seen.exists)
    far.machine.cut_connections()
    with pytest.raises(SshConnectionError):
        await task


async def test_a_cut_upload_puts_nothing_in_place_and_can_be_repeated(far: Far) -> None:
    """The half that arrived is not taken for a submission, and is gone after the next one."""
    await far.install(SETTINGS)
    large = archive_of("first", {"weights": os.urandom(1000) * (_LARGE_BYTES // 1000), "script": _LONG.encode()})
    partly = far.machine.kit / "submissions" / f".rampd-{far.run.run_id}" / "first"
    await cut(far, far.upload(large), partly / "weights")
    await until(lambda: not far.machine.processes())
    assert not far.submission.exists()
    assert (await far.upload(large)).problem is None
    assert sorted(path.name for path in far.submission.iterdir()) == ["script", "weights"]
    assert [path.name for path in far.submission.parent.iterdir()] == ["first"]
    assert (await far.launch()).state is RunState.RUNNING
    await far.stop()


async def test_a_cut_launch_has_launched_once(far: Far) -> None:
    """With the login profile still at work when the connection breaks, asking again starts nothing more."""
    profile = far.machine.home / ".profile"
    waiting = 'echo >"$HOME/at-work"; while [ ! -e "$HOME/ready" ]; do sleep 0.05; done\n'
    profile.write_text(profile.read_text(encoding="utf-8") + waiting, encoding="utf-8")
    await far.install(SETTINGS)
    await far.upload(archive_of("first", {"script": _LONG.encode()}))
    await cut(far, far.launch(), far.machine.home / "at-work")
    assert (await far.state()).state is RunState.STARTING
    (far.machine.home / "ready").touch()
    assert (await far.launch()).state is RunState.RUNNING
    (far.submission / "go").touch()
    assert (await far.ended()).exit_status == 0
    assert (far.machine.home / "runs").read_text(encoding="utf-8") == "x\n"


async def test_a_cut_stop_goes_on_without_us(far: Far) -> None:
    """What it began ends the run; asked again, it says how."""
    await far.begin('trap "" TERM; echo >"$HOME/up"; while :; do sleep 0.05; done', SETTINGS)
    await until((far.machine.home / "up").exists)
    await cut(far, far.stop(), far.folder / "ending")
    status = await far.stop()
    assert (status.state, status.ending, status.exit_status) == (RunState.EXITED, Ending.STOPPED, 137)
    await until(lambda: not far.machine.processes())


async def test_a_cut_collection_leaves_no_file_and_can_be_repeated(far: Far) -> None:
    """Half an archive is never taken for the results, and the results stay where they are until all is here."""
    script = f"mkdir training_output; head -c {_LARGE_BYTES} /dev/zero >training_output/y_pred"
    await far.begin(script, SETTINGS)
    await far.ended()
    archive = far.scratch / "results.tar"

    async def collect() -> int:
        command = detached.collect(far.run)
        return (await far.pool.receive(far.host, command, archive, max_bytes=2 * _LARGE_BYTES, timeout_s=60)).status

    await cut(far, collect(), archive)
    assert not archive.exists()
    assert await collect() == 0
    assert archive.stat().st_size > _LARGE_BYTES


async def test_results_that_find_no_room_here_are_not_the_hosts_fault(far: Far) -> None:
    """A full disk of our own is a ResultsError, and leaves no file; with room they are there."""
    needs_root()
    await far.begin("mkdir training_output; head -c 4000000 /dev/zero >training_output/y_pred", SETTINGS)
    await far.ended()
    command = detached.collect(far.run)
    with small_disk(far.scratch / "ours", size_bytes=1 << 20) as disk:
        with pytest.raises(ResultsError, match="No space left"):
            await far.pool.receive(far.host, command, disk / "results", max_bytes=10**8, timeout_s=60)
        assert [*disk.iterdir()] == []
    done = await far.pool.receive(far.host, command, far.scratch / "results", max_bytes=10**8, timeout_s=60)
    assert done.status == 0


async def test_a_poll_into_a_black_hole_loses_nothing_of_the_log(far: Far) -> None:
    """What was printed meanwhile is there for the next one, from the same offset."""
    await far.begin(_LONG, SETTINGS)
    _, before = await far.poll()
    far.machine.freeze()
    (far.submission / "go").touch()
    await until((far.folder / "ended").exists)
    with pytest.raises(SshConnectionError):
        await far.pool.run(far.host, detached.poll(far.run, len(before), 100), timeout_s=0.3, max_output_bytes=9999)
    far.machine.thaw()
    status, more = await far.poll(len(before))
    assert (status.state, status.exit_status) == (RunState.EXITED, 0)
    assert before + more == (far.folder / "log").read_bytes()


async def test_every_step_may_be_repeated(far: Far) -> None:
    """A daemon that was killed after a step, before it could note that, does it once more."""
    submission = archive_of("first", {"script": _LONG.encode()})
    for _ in range(2):
        await far.install(SETTINGS)
    for _ in range(2):
        await far.upload(submission)
    for _ in range(2):
        await far.install(SETTINGS)
        await far.upload(submission)
        assert (await far.launch()).state is RunState.RUNNING
    (far.submission / "go").touch()
    first, second = await far.ended(), await far.stop()
    assert first == second
    assert (far.machine.home / "runs").read_text(encoding="utf-8") == "x\n"
    for _ in range(2):
        assert (await far.cleanup()).state is RunState.ABSENT
