"""A detached run from its launch to its end, on a real machine, in the two shells that are `sh` somewhere."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from rampd.remote import detached_run as detached
from rampd.remote.detached_run import DetachedRun, Ending, Problem, RunSettings, RunState
from support.far import Far, archive_of
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("shell")

SETTINGS = RunSettings(timeout_s=600, max_log_bytes=1 << 20, imds_url=None)
_LONG = "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over"


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


async def test_a_run_goes_from_nothing_to_an_exit_status(far: Far) -> None:
    """Each step says where the run stands, and the log and the status are ramp-test's own."""
    assert (await far.state()).state is RunState.ABSENT
    assert (await far.install(SETTINGS)).state is RunState.ABSENT
    assert (await far.upload(archive_of("first", {"script": b"echo out; echo err >&2; exit 3"}))).problem is None
    assert (await far.launch()).state in {RunState.RUNNING, RunState.EXITED}
    status = await far.ended()
    assert (status.exit_status, status.ending, status.log_capped_bytes) == (3, Ending.OK, 0)
    assert status.max_rss_bytes is not None
    assert status.max_rss_bytes > 100_000
    assert await far.log() == b"ramp-test --submission first --save-output --ignore-warning\nout\nerr\n"
    assert far.machine.processes() == []


async def test_launched_five_times_at_once_it_runs_once(far: Far) -> None:
    """Whoever asks again, also much later, is told how it stands."""
    await far.install(SETTINGS)
    await far.upload(archive_of("first", {"script": b'echo x >>"$HOME/runs"; ' + _LONG.encode()}))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(far.launch()) for _ in range(5)]
    assert {task.result().state for task in tasks} == {RunState.RUNNING}
    (far.submission / "go").touch()
    await far.ended()
    assert (await far.launch()).state is RunState.EXITED
    assert (far.machine.home / "runs").read_text(encoding="utf-8") == "x\n"


async def test_a_run_outlives_every_connection(far: Far) -> None:
    """Its log can be read on from any offset, whatever became of the connection it was started through."""
    assert (await far.begin(_LONG, SETTINGS)).state is RunState.RUNNING
    await until(lambda: b"begun" in (far.folder / "log").read_bytes())
    far.machine.stop_listening()
    (far.submission / "go").touch()
    await until((far.folder / "ended").exists)
    far.machine.start()
    status, text = await far.poll(offset=60)
    assert (status.state, status.exit_status) == (RunState.EXITED, 0)
    assert text == b"begun\nover\n"


async def test_the_log_grows_live_and_in_bytes(far: Far) -> None:
    """What was printed, whatever it is, is there before the run ends, without waiting for a buffer to fill."""
    await far.begin(r"printf '\377\000\033[31m.'; while [ ! -e go ]; do sleep 0.05; done", SETTINGS)
    await until(lambda: (far.folder / "log").read_bytes().endswith(b"\xff\0\x1b[31m."))
    status, text = await far.poll(offset=60)
    assert (status.state, text) == (RunState.RUNNING, b"\xff\0\x1b[31m.")
    assert (await far.poll(offset=61, limit=2))[1] == b"\0\x1b"
    assert (await far.poll(offset=68))[1] == b""
    (far.submission / "go").touch()
    await far.ended()


async def test_a_log_without_end_is_cut_and_counted(far: Far) -> None:
    """What is beyond the limit is read and thrown away, so that the run goes on; a sentence says so."""
    settings = RunSettings(timeout_s=600, max_log_bytes=1000, imds_url=None)
    await far.begin("head -c 3000000 /dev/zero; exit 5", settings)
    status = await far.ended()
    assert (status.exit_status, status.ending) == (5, Ending.OK)
    assert status.log_capped_bytes == 60 + 3_000_000 - 1000
    log = await far.log()
    assert log[:60].startswith(b"ramp-test ")
    assert log[1000:] == b"\n[rampd] the log ends here: only the first 1000 bytes are kept\n"


async def test_the_deadline_is_kept_over_there(far: Far) -> None:
    """With nobody connected, the whole tree ends: what ignores TERM, and what left for a session of its own."""
    script = """
    setsid sleep 1000 &
    setsid sh -c 'trap "" TERM; echo deaf; while :; do sleep 1; done' &
    echo begun; wait; sleep 1000
    """
    await far.begin(script, RunSettings(timeout_s=1, max_log_bytes=1000, imds_url=None))
    far.machine.stop_listening()
    await until((far.folder / "ended").exists)
    far.machine.start()
    status = await far.state()
    assert (status.exit_status, status.ending) == (124, Ending.TIMEOUT)
    assert far.machine.processes() == []


async def test_what_a_run_leaves_behind_ends_with_it(far: Far) -> None:
    """Nothing can change what is to be collected; and who holds the log open does not hold the end up."""
    await far.begin("setsid sleep 1000 & sleep 1000 & echo left; exit 0", SETTINGS)
    assert (await far.ended()).exit_status == 0
    assert far.machine.processes() == []


async def test_what_hides_from_its_mark_does_not_hold_the_end_up(far: Far) -> None:
    """A process that shed its environment and left the session may hold the log open; it ends with the instance."""
    await far.begin('env -i setsid sleep 1000 & echo "$!" >pid; exit 0', SETTINGS)
    assert (await far.ended()).exit_status == 0
    hidden = psutil.Process(int((far.submission / "pid").read_text(encoding="utf-8")))
    hidden.kill()


async def test_stop_ends_it_and_may_be_asked_again(far: Far) -> None:
    """It says how it ended, now and later; TERM comes before KILL."""
    await far.begin('trap "echo asked; exit 9" TERM; echo begun; while :; do sleep 0.05; done', SETTINGS)
    await until(lambda: b"begun" in (far.folder / "log").read_bytes())
    status = await far.stop()
    assert (status.state, status.ending, status.exit_status) == (RunState.EXITED, Ending.STOPPED, 9)
    assert await far.stop() == status
    assert (await far.log()).endswith(b"asked\n")
    assert far.machine.processes() == []


async def test_stop_leaves_an_end_as_it_was(far: Far) -> None:
    """A run that had ended already keeps its status and its word."""
    await far.begin("exit 4", SETTINGS)
    ended = await far.ended()
    assert await far.stop() == ended


async def test_what_was_stopped_before_its_launch_never_starts(far: Far) -> None:
    """A launch that comes too late, from a connection that was thought lost, starts nothing."""
    await far.install(SETTINGS)
    await far.upload(archive_of("first", {"script": b'echo x >"$HOME/ran"'}))
    assert (await far.stop()).state is RunState.LOST
    assert (await far.launch()).state is RunState.LOST
    assert not (far.machine.home / "ran").exists()


async def test_a_wrapper_that_was_killed_is_lost_and_can_be_cleaned_up_after(far: Far) -> None:
    """Nobody knows how the run ends then; what still runs is found by its mark."""
    await far.begin(_LONG, RunSettings(timeout_s=600, max_log_bytes=1000, imds_url=None, look_every_s=1))
    wrapper = psutil.Process(int((far.folder / "pid").read_text(encoding="utf-8").split()[0]))
    wrapper.kill()
    await until(lambda: not wrapper.is_running() or wrapper.status() == psutil.STATUS_ZOMBIE)
    assert (await far.state()).state is RunState.LOST
    assert far.machine.processes() != []
    assert (await far.stop()).state is RunState.LOST
    await until(lambda: far.machine.processes() == [])


@pytest.mark.parametrize("change", ["boot", "start"])
async def test_a_pid_of_another_life_is_not_the_wrapper(far: Far, change: str) -> None:
    """After a reboot, or once the number is used again, the run is lost, whoever has its pid now."""
    await far.begin(_LONG, SETTINGS)
    pid, start, boot = (far.folder / "pid").read_text(encoding="utf-8").split()
    other = (pid, start, "0000") if change == "boot" else (pid, "1", boot)
    (far.folder / "pid").write_text(" ".join(other) + "\n", encoding="utf-8")
    assert (await far.state()).state is RunState.LOST
    (far.folder / "pid").write_text(f"{pid} {start} {boot}\n", encoding="utf-8")
    assert (await far.state()).state is RunState.RUNNING
    await far.stop()


@pytest.mark.parametrize(
    ("profile", "ending"),
    [
        ("exit 3\n", Ending.PROFILE),
        ("PATH=/usr/bin:/bin\n", Ending.NO_RAMP_TEST),
        ("mv kit elsewhere\n", Ending.NO_KIT),
    ],
)
async def test_an_image_that_is_not_ready_is_nobodys_failure(far: Far, profile: str, ending: Ending) -> None:
    """What is missing has a word of its own, and none of them is the participant's."""
    (far.machine.home / ".profile").write_text(profile, encoding="utf-8")
    await far.begin("exit 0", SETTINGS)
    status = await far.ended()
    assert status.ending is ending
    assert not ending.is_participants


async def test_a_profile_without_an_end_is_nobodys_timeout(far: Far) -> None:
    """The deadline ends it as it would end ramp-test, which was never begun: that is no participant's doing."""
    (far.machine.home / ".profile").write_text("sleep 600\n", encoding="utf-8")
    await far.begin("exit 0", replace(SETTINGS, timeout_s=1))
    status = await far.ended()
    assert status.ending is Ending.PROFILE


async def test_variables_of_any_name_are_ramp_tests(far: Far) -> None:
    """None of them is the script's that starts it."""
    environment = dict.fromkeys(("dir", "id", "kit", "name", "mark", "status", "memory_profiling"), "theirs")
    await far.begin('echo "$dir $id $kit $name $mark $status"', replace(SETTINGS, environment=environment))
    status = await far.ended()
    assert (status.exit_status, status.ending) == (0, Ending.OK)
    log = "ramp-test --submission first --save-output --ignore-warning\n" + " ".join(["theirs"] * 6) + "\n"
    assert await far.log() == log.encode()


async def test_a_profile_may_say_and_set_what_it_likes(far: Far) -> None:
    """Its words are not in the log, its variables are not the wrapper's, and unset ones do not end it."""
    profile = far.machine.home / ".profile"
    noise = 'echo hello; echo "$UNSET" >&2; id=0 name=x dir=/ kit=/ job=1; watch() { exit 1; }; export MORE=1; cd /\n'
    profile.write_text(profile.read_text(encoding="utf-8") + noise, encoding="utf-8")
    (far.machine.home / ".bashrc").write_text("echo welcome\n", encoding="utf-8")
    await far.begin('echo "MORE=$MORE"', SETTINGS)
    assert (await far.ended()).exit_status == 0
    assert (await far.log()).endswith(b"--ignore-warning\nMORE=1\n")


async def test_a_user_with_only_a_bash_profile_has_it_read(far: Far) -> None:
    """As on Amazon Linux, where there is no ~/.profile."""
    (far.machine.home / ".profile").rename(far.machine.home / ".bash_profile")
    await far.begin("exit 0", SETTINGS)
    assert (await far.ended()).ending is Ending.OK


async def test_names_and_values_are_never_acted_on(far: Far) -> None:
    """What a far shell would expand, split or run arrives as it is."""
    name = "a b$(touch bad);'\"`*\\&"
    far.run = DetachedRun(far.run.run_id, name, str(far.machine.kit))
    value = '\'; touch $HOME/bad; echo "$HOME" \\\n *`'
    settings = RunSettings(600, 10_000, environment={"HOSTILE": value, "OMP_NUM_THREADS": "2"}, imds_url=None)
    await far.begin('printf "%s|%s" "$HOSTILE" "$OMP_NUM_THREADS"', settings)
    assert (await far.ended()).exit_status == 0
    assert await far.log() == f"ramp-test --submission {name} --save-output --ignore-warning\n{value}|2".encode()
    assert [*far.machine.home.rglob("bad*")] == []
    await far.cleanup()
    assert names_in(far.machine.kit / "submissions") == []


async def test_a_kit_below_the_home_may_be_written_with_a_tilde(far: Far) -> None:
    """The far user's home is meant."""
    far.run = DetachedRun(far.run.run_id, "first", "~/kit")
    await far.begin("pwd", SETTINGS)
    assert (await far.ended()).ending is Ending.OK
    assert (await far.log()).endswith(f"{far.submission}\n".encode())


async def test_an_upload_replaces_what_an_earlier_one_left(far: Far) -> None:
    """Files of a first one are not there any more; once it is launched nothing is replaced."""
    await far.install(SETTINGS)
    await far.upload(archive_of("first", {"old": b"1", "script": b"exit 1"}))
    await far.upload(archive_of("first", {"script": _LONG.encode()}))
    assert names_in(far.submission) == ["script"]
    await far.launch()
    status = await far.upload(archive_of("first", {"late": b"1"}))
    assert (status.state, status.problem) == (RunState.RUNNING, None)
    assert not (far.submission / "late").exists()
    await far.stop()


async def test_an_upload_that_is_cut_short_replaces_nothing(far: Far) -> None:
    """Half an archive has a word of its own, and what was there stays."""
    await far.install(SETTINGS)
    await far.upload(archive_of("first", {"script": b"exit 0"}))
    whole = archive_of("first", {"script": os.urandom(30_000)})
    assert (await far.upload(whole[:20_000])).problem is Problem.BAD_ARCHIVE
    assert (far.submission / "script").read_bytes() == b"exit 0"
    assert names_in(far.machine.kit / "submissions") == ["first"]


async def test_a_kit_that_is_not_there_has_a_word_of_its_own(far: Far) -> None:
    """It is the image, or remote_ramp_kit_folder."""
    far.run = DetachedRun(far.run.run_id, "first", str(far.machine.home / "nowhere"))
    await far.install(SETTINGS)
    assert (await far.upload(archive_of("first", {"script": b""}))).problem is Problem.NO_KIT


async def test_cleaning_up_leaves_nothing_and_may_be_asked_again(far: Far) -> None:
    """Neither processes nor files, at whichever step."""
    await far.begin(_LONG, SETTINGS)
    assert (await far.cleanup()).state is RunState.ABSENT
    assert (await far.cleanup()).state is RunState.ABSENT
    assert names_in(far.machine.home / ".rampd") == []
    assert names_in(far.machine.kit / "submissions") == []
    await until(lambda: far.machine.processes() == [])


async def test_two_runs_on_one_machine_do_not_meet(far: Far) -> None:
    """Ending one leaves the other alone, though they are of one user."""
    other = Far(far.pool, far.host, far.machine, DetachedRun("6e" * 16, "second", far.run.kit_folder), far.scratch)
    await far.begin(_LONG, SETTINGS)
    await other.begin(_LONG, SETTINGS)
    await far.stop()
    assert (await other.state()).state is RunState.RUNNING
    await other.stop()


async def test_a_far_side_of_before_can_be_renewed_while_the_run_goes_on(far: Far) -> None:
    """A newer daemon may bring its own script; the wrapper that runs is not disturbed."""
    await far.begin(_LONG, SETTINGS)
    assert (await far.install(SETTINGS)).state is RunState.RUNNING
    (far.submission / "go").touch()
    assert (await far.ended()).exit_status == 0


async def test_polls_of_any_size_add_up(far: Far) -> None:
    """The bytes that a poll brings are those at its offset, never more than it asked for."""
    await far.begin("head -c 2500 /dev/urandom", SETTINGS)
    await far.ended()
    whole = (far.folder / "log").read_bytes()
    assert await far.log() == whole
    assert (await far.poll(offset=7, limit=11))[1] == whole[7:18]
    _, nothing = await far.ask(detached.poll(far.run, 10**9, 10))
    assert nothing == b""
