"""What is around a detached run: the disk, the metadata service, the tools that an image has or has not, ramp-test."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rampd.remote import detached_run as detached
from rampd.remote.archive import pack_submission, unpack
from rampd.remote.detached_run import DetachedRun, Ending, Problem, RunSettings, RunState
from rampd.remote.hosts import Completed
from support.far import Far, archive_of
from support.imds import NOTICE, Imds
from support.requirements import needs_root
from support.sshd import environment_profile, small_disk
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = RunSettings(timeout_s=600, max_log_bytes=1 << 20, imds_url=None)
_LONG = "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over"
_DISK_BYTES = 24 << 20


@pytest.fixture
def disk(far: Far) -> Iterator[Path]:
    """Give the kit a disk of its own, with room for a submission and little more."""
    needs_root()
    with small_disk(far.machine.kit, size_bytes=_DISK_BYTES) as disk:
        yield disk


def fill(disk: Path, *, leave_bytes: int = 0) -> None:
    """Write until nothing more goes in, then make so much room again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    os.truncate(filler, filler.stat().st_size - leave_bytes)


async def test_a_run_that_fails_on_a_full_disk_is_nobodys_failure(far: Far, disk: Path) -> None:
    """It ended with a status, and a word says that the disk was full; the same failure on a good disk is its own."""
    script = "echo trying; dd if=/dev/zero of=big bs=65536 count=1000 2>&1 || exit 1"
    await far.begin(script, SETTINGS)
    status = await far.ended()
    assert (status.exit_status, status.ending) == (1, Ending.DISK_FULL)
    assert not Ending.DISK_FULL.is_participants
    assert b"No space left" in await far.log()


async def test_a_failure_beside_a_disk_with_room_is_the_participants(far: Far, disk: Path) -> None:
    """A full disk that was not, in the words of a traceback, changes nothing."""
    await far.begin("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", SETTINGS)
    status = await far.ended()
    assert (status.exit_status, status.ending) == (1, Ending.OK)


async def test_an_upload_onto_a_full_disk_says_so(far: Far, disk: Path) -> None:
    """And leaves nothing of itself that fills it further."""
    await far.install(SETTINGS)
    (disk / "submissions").mkdir()
    fill(disk, leave_bytes=100_000)
    assert (await far.upload(archive_of("first", {"large": bytes(1_000_000)}))).problem is Problem.DISK_FULL
    assert [*(disk / "submissions").iterdir()] == []


async def test_an_end_is_written_though_the_home_is_full(far: Far) -> None:
    """Log and status of a run whose own folder is on a full disk are not lost with it: room was kept for the status."""
    needs_root()
    with small_disk(far.machine.home / ".rampd", size_bytes=_DISK_BYTES) as disk:
        await far.begin(_LONG, SETTINGS)
        fill(disk)
        (far.submission / "go").touch()
        status = await far.ended()
        assert (status.exit_status, status.ending) == (0, Ending.OK)
        await far.cleanup()


async def test_a_home_without_room_is_told_before_anything_runs(far: Far) -> None:
    """The first step needs some kilobytes, and says that they are not there."""
    needs_root()
    with small_disk(far.machine.home / ".rampd", size_bytes=_DISK_BYTES) as disk:
        fill(disk)
        status = await far.install(SETTINGS)
        assert (status.state, status.problem) == (RunState.ABSENT, Problem.DISK_FULL)


@pytest.mark.parametrize("client", ["curl", "python3"])
async def test_a_spot_notice_is_passed_on(far: Far, client: str) -> None:
    """It is looked for with a token, whether the image has curl or only Python; no notice is none."""
    if client == "python3":
        far.machine.hide("curl")
    with Imds() as imds:
        await far.begin(_LONG, RunSettings(600, 1000, imds_url=imds.url, look_every_s=1))
        await until(lambda: imds.requests[:2] == [("PUT", 200), ("GET", 404)])
        assert not (await far.state()).spot_notice
        imds.notice = NOTICE
        await until((far.folder / "spot").exists)
        assert (await far.state()).spot_notice
        assert (far.folder / "spot").read_text(encoding="utf-8") == NOTICE + "\n"
        (far.submission / "go").touch()
        assert (await far.ended()).spot_notice


async def test_a_token_that_ran_out_is_renewed(far: Far) -> None:
    """401 is no answer about the instance; the next look has a new token."""
    with Imds() as imds:
        await far.begin(_LONG, RunSettings(600, 1000, imds_url=imds.url, look_every_s=1))
        await until(lambda: ("GET", 404) in imds.requests)
        imds.expire_tokens()
        await until(lambda: ("GET", 401) in imds.requests)
        assert not (await far.state()).spot_notice
        at = imds.requests.index(("GET", 401))
        await until(lambda: imds.requests[at + 1 : at + 3] == [("PUT", 200), ("GET", 404)])
        await far.stop()


async def test_no_metadata_service_disturbs_nothing(far: Far) -> None:
    """Refused, or turned off: the run ends as it does, and its deadline holds."""
    with Imds() as imds:
        imds.token_status = 403
        await far.begin("sleep 1000", RunSettings(1, 1000, imds_url=imds.url))
        assert (await far.ended()).ending is Ending.TIMEOUT
        assert {status for _, status in imds.requests} == {403}


async def test_memory_is_measured_of_the_largest_process(far: Far) -> None:
    """64 MB that a grandchild had are seen, and those of nobody else."""
    program = "import sys; data = bytearray(64 << 20); data[::4096] = b'x' * len(data[::4096])"
    await far.begin(f'"{sys.executable}" -S -c "{program}"', SETTINGS)
    status = await far.ended()
    assert status.exit_status == 0
    assert status.max_rss_bytes is not None
    assert 64 << 20 < status.max_rss_bytes < 150 << 20


async def test_an_image_with_few_tools_does_with_less(far: Far) -> None:
    """Without Python, curl, stdbuf and setsid a run still goes to its end."""
    far.machine.hide("python3", "curl", "stdbuf", "setsid")
    with Imds() as imds:
        await far.begin("echo out; exit 6", RunSettings(600, 1000, imds_url=imds.url, look_every_s=1))
        status = await far.ended()
        assert imds.requests == []
    assert (status.exit_status, status.ending) == (6, Ending.OK)
    assert (await far.log()).endswith(b"out\n")


async def test_memory_profiling_keeps_ramp_tests_status(far: Far) -> None:
    """By itself mprof would say 0 whatever ramp-test says; its profile comes back with the results."""
    mprof = far.machine.home / "bin" / "mprof"
    mprof.symlink_to(Path(sys.executable).parent / "mprof")
    settings = RunSettings(600, 100_000, memory_profiling=True, imds_url=None)
    await far.begin("sleep 0.3; echo out; exit 7", settings)
    status = await far.ended()
    assert (status.exit_status, status.ending) == (7, Ending.OK)
    assert b"out\n" in await far.log()
    results = await collected(far)
    assert (results / "mprof.dat").read_text(encoding="utf-8").startswith("CMDLINE ")


async def test_memory_profiling_without_mprof_is_the_images_fault(far: Far) -> None:
    """It is said before anything runs."""
    await far.begin("exit 0", RunSettings(600, 1000, memory_profiling=True, imds_url=None))
    assert (await far.ended()).ending is Ending.NO_MPROF


async def collected(far: Far) -> Path:
    """Bring back what there is, and return the folder that it was unpacked to."""
    archive, results = far.scratch / "results.tar", far.scratch / "results"
    answer = await far.pool.receive(far.host, detached.collect(far.run), archive, max_bytes=10**8, timeout_s=60)
    assert answer == Completed(0, b"", b"")

    def unpack_it() -> None:
        with archive.open("rb") as file:
            unpack(file, results, max_bytes=10**8, max_files=1000)

    await asyncio.to_thread(unpack_it)
    return results


async def test_nothing_to_collect_is_an_empty_archive(far: Far) -> None:
    """A run that left no training_output is collected like any other."""
    await far.begin("exit 1", SETTINGS)
    await far.ended()
    assert [*(await collected(far)).iterdir()] == []


async def test_what_is_not_there_cannot_be_collected(far: Far) -> None:
    """Where the far side was cleaned up, a status says so, and no file is left here that looks like results."""
    archive = far.scratch / "results.tar"
    answer = await far.pool.receive(far.host, detached.collect(far.run), archive, max_bytes=100, timeout_s=60)
    assert answer.status == 3
    assert not archive.exists()


@pytest.mark.slow
async def test_a_real_ramp_test_goes_through(far: Far, iris_kit: Path, ramp_environment: Path) -> None:
    """The demo's kit and a submission of its own, with packing and unpacking as a worker does it."""
    far.machine.write_profile(environment_profile(ramp_environment))
    kit = far.machine.home / "ramp-kits" / "iris"
    shutil.copytree(next((iris_kit / "ramp-kits").iterdir()), kit, symlinks=True)
    data = next((iris_kit / "ramp-data").iterdir()) / "data"
    shutil.copytree(data, kit / "data", dirs_exist_ok=True)
    far.run = DetachedRun(far.run.run_id, "first", str(kit))
    source = kit / "submissions" / "starting_kit"
    await far.install(RunSettings(600, 1 << 20, environment={"OMP_NUM_THREADS": "1"}, imds_url=None))
    archive = far.scratch / "submission.tar"

    def pack_it() -> None:
        with archive.open("wb") as file:
            pack_submission(source, file, name="first", scratch=far.scratch / "s", max_bytes=10**7, max_files=100)

    await asyncio.to_thread(pack_it)
    assert (await far.upload(archive.read_bytes())).problem is None
    assert (await far.launch()).state is RunState.RUNNING
    async with asyncio.timeout(100):
        while (status := await far.state()).state is RunState.RUNNING:  # noqa: ASYNC110 -- that is polling
            await asyncio.sleep(0.1)
    assert (status.exit_status, status.ending) == (0, Ending.OK), await far.log()
    results = await collected(far)
    assert (results / "training_output" / "bagged_scores.csv").is_file()
