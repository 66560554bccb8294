"""What a submission finds when it runs, and what is missing when it cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rampd.errors import WorkerError, WorkerSetupError
from support.conda import KINDS, PATIENCE_S, CondaRoom, warm_up_uvloop
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

_ENVIRONMENT = """
import json
words = open("/proc/self/environ", "rb").read().decode().split("\\0")
print(json.dumps(dict(word.split("=", 1) for word in words if word)))
"""
_FACTS = """
import json, os, resource
print(json.dumps({
    "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    "leads_session": os.getsid(0) == os.getpid() == os.getpgid(0),
    "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line),
    "stdin": os.readlink("/proc/self/fd/0"),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "cwd": os.getcwd(),
    "umask": os.umask(0),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
}))
"""
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
)
_LOCALE = ("LANG", "LC_ALL", "LC_CTYPE", "LC_NUMERIC", "LC_TIME", "TZ")


@pytest.fixture(scope="module", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture(params=KINDS)
def room(request: pytest.FixtureRequest, tmp_path: Path) -> CondaRoom:
    """Give an event's folders, once for each kind of containment."""
    return CondaRoom(tmp_path, request.param)


async def _environment(room: CondaRoom, *, n_threads: int | None = None, **settings: Any) -> dict[str, str]:
    room.python(_ENVIRONMENT)
    async with room.opened(**settings) as worker:
        found: dict[str, str] = json.loads(await room.output(worker, room.job(n_threads=n_threads)))
    return found


async def _facts(room: CondaRoom) -> dict[str, Any]:
    room.python(_FACTS)
    async with room.opened() as worker:
        found: dict[str, Any] = json.loads(await room.output(worker, room.job()))
    return found


async def test_the_environment_has_this_and_nothing_else(room: CondaRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's environment is made from nothing: what the daemon's has beyond its locale is not in it."""
    for name in _LOCALE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    for name in ("AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "SSH_AUTH_SOCK", "RAMPD_SECRET", "LANGUAGE"):
        monkeypatch.setenv(name, "the daemon's")
    folder = room.job().attempt_dir
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    assert await _environment(room, env={"OWN": "text", "NUMBER": 3}) == {
        "PATH": f"{room.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": str(room.prefix),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "USER": user,
        "LOGNAME": user,
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C",
        "TZ": "Asia/Tokyo",
        "PYTHONNOUSERSITE": "1",
        "OWN": "text",
        "NUMBER": "3",
        "RAMPD_ATTEMPT": str(folder),
    }


async def test_without_a_locale_texts_are_utf8(room: CondaRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon without a locale, as systemd starts one, still lets submissions print what they like."""
    for name in [name for name in os.environ if name == "LANG" or name.startswith("LC_")]:
        monkeypatch.delenv(name)
    assert (await _environment(room))["LANG"] == "C.UTF-8"


async def test_a_conda_environment_is_named_as_conda_does(room: CondaRoom) -> None:
    """A prefix with conda-meta is CONDA_PREFIX, and no virtual environment."""
    (room.prefix / "conda-meta").mkdir(parents=True)
    found = await _environment(room)
    assert found["CONDA_PREFIX"] == found["CONDA_DEFAULT_ENV"] == str(room.prefix)
    assert "VIRTUAL_ENV" not in found


async def test_threads_are_limited_in_every_library(room: CondaRoom) -> None:
    """n_threads reaches all seven libraries that have a limit of their own."""
    found = await _environment(room, n_threads=3)
    assert {name: found.get(name) for name in _THREADS} == dict.fromkeys(_THREADS, "3")


async def test_without_n_threads_nothing_is_limited(room: CondaRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own limits are not the submissions'."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not set(_THREADS) & (await _environment(room)).keys()


async def test_a_null_passes_the_daemons_value_on(room: CondaRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that worker.env asks null for has the daemon's value; one the daemon has not is left out."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = await _environment(room, env={"HTTPS_PROXY": None, "NO_PROXY": None})
    assert found["HTTPS_PROXY"] == "http://proxy:3128"
    assert "NO_PROXY" not in found


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "NOTIFY_SOCKET",
        "CREDENTIALS_DIRECTORY",
        "LD_LIBRARY_PATH",
        "LD_BIND_NOW",
    ],
)
async def test_what_is_withheld_cannot_be_asked_for(
    room: CondaRoom, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The daemon's credentials and loader settings stay its own, even where worker.env asks null for them."""
    monkeypatch.setenv(name, "the daemon's")
    assert name not in await _environment(room, env={name: None})


async def test_a_withheld_name_can_be_given_a_value(room: CondaRoom) -> None:
    """What an organizer writes into worker.env is no secret of the daemon's."""
    assert (await _environment(room, env={"AWS_DEFAULT_REGION": "eu-west-1"}))["AWS_DEFAULT_REGION"] == "eu-west-1"


async def test_the_mark_cannot_be_changed(room: CondaRoom) -> None:
    """worker.env has no say in the mark by which processes are found again."""
    found = await _environment(room, env={"RAMPD_ATTEMPT": "somebody else's"})
    assert found["RAMPD_ATTEMPT"] == str(room.job().attempt_dir)


async def test_home_and_tmpdir_are_the_attempts_own(room: CondaRoom) -> None:
    """HOME and TMPDIR exist, are empty, can be written to, and are gone with the attempt."""
    room.ramp_test('ls -A "$HOME" "$TMPDIR"; touch "$HOME/a" "$TMPDIR/b" && stat -c %a "$HOME" "$TMPDIR"')
    job = room.job()
    async with room.opened() as worker:
        folder = job.attempt_dir
        assert await room.output(worker, job) == f"{folder}/home:\n\n{folder}/tmp:\n700\n700\n"
    assert not job.attempt_dir.exists()


async def test_it_runs_at_lower_priority(room: CondaRoom) -> None:
    """Submissions give way to the daemon and to whatever else the machine does."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert (await _facts(room))["niceness"] == min(ours + 10, 19)


async def test_it_leads_a_session_of_its_own(room: CondaRoom) -> None:
    """A signal to the terminal's or the daemon's group does not reach it, nor its own the daemon."""
    assert (await _facts(room))["leads_session"]


async def test_it_gains_no_privileges(room: CondaRoom) -> None:
    """No set-user-id program makes anybody else of it."""
    assert (await _facts(room))["status"]["NoNewPrivs"] == "1"


async def test_its_signals_are_as_new(room: CondaRoom) -> None:
    """Nothing is blocked, and nothing ignored, not even what Python ignores."""
    room.ramp_test("exec grep -E 'SigBlk|SigIgn' /proc/self/status")
    async with room.opened() as worker:
        found = (await room.output(worker, room.job())).splitlines()
    assert found == ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]


async def test_it_has_nothing_to_read_and_nothing_of_ours_open(room: CondaRoom) -> None:
    """Standard input is /dev/null, and there are no descriptors but the three (and the one of the listing)."""
    facts = await _facts(room)
    assert facts["stdin"] == "/dev/null"
    assert facts["descriptors"] == [0, 1, 2, 3]


async def test_it_starts_in_its_folder_without_core_dumps(room: CondaRoom) -> None:
    """It stands in the attempt's folder, makes files others may read, and leaves no core."""
    facts = await _facts(room)
    assert facts["cwd"] == str(room.job().attempt_dir)
    assert facts["umask"] == 0o022
    assert facts["core"] == [0, 0]


async def test_ramp_test_gets_its_arguments(room: CondaRoom) -> None:
    """The command line is ramp-test's own, with the private copy's folder in it."""
    room.ramp_test('printf "%s\\n" "$@"')
    job = room.job("a-b.c")
    async with room.opened() as worker:
        words = (await room.output(worker, job)).splitlines()
    pairs = dict(zip(words[0:8:2], words[1:8:2], strict=True))
    assert pairs == {
        "--submission": "a-b.c",
        "--ramp-kit-dir": str(room.root / "kit"),
        "--ramp-data-dir": str(room.root / "data"),
        "--ramp-submission-dir": str(job.attempt_dir / "submissions"),
    }
    assert words[8:] == ["--save-output", "--ignore-warning"]


async def test_the_original_is_not_touched(room: CondaRoom) -> None:
    """What a run does to its submission it does to a private copy."""
    room.ramp_test('cd "$8/$2" && rm estimator.py && echo mine > other.py && mkdir training_output')
    job = room.job()
    async with room.opened() as worker:
        await room.output(worker, job)
    assert [path.name for path in job.submission_dir.iterdir()] == ["estimator.py"]
    assert (job.submission_dir / "estimator.py").read_text(encoding="utf-8") == "# one\n"


async def test_a_training_output_sent_along_is_not_copied(room: CondaRoom) -> None:
    """Results that a participant sent along are not there, and are not collected."""
    room.ramp_test('ls "$8/$2"')
    job = room.job()
    (job.submission_dir / "training_output" / "fold_0").mkdir(parents=True)
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await worker.wait(allocation)
        assert job.log_path.read_bytes() == b"estimator.py\n"
        assert (await worker.collect_results(job, allocation)).training_output is None


async def test_two_attempts_at_once_share_nothing(room: CondaRoom) -> None:
    """Two attempts of one submission that run at the same time have a copy, a home and a mark each."""
    room.ramp_test('echo "$HOME $TMPDIR $RAMPD_ATTEMPT $8" | tee "$HOME/said"; sleep 1000')
    jobs = [room.job(attempt=1), room.job(attempt=2)]
    saids = [job.attempt_dir / "home" / "said" for job in jobs]
    async with room.opened() as worker, room.launched(worker, jobs[0]), room.launched(worker, jobs[1]):
        await until(lambda: all(said.exists() and said.read_text(encoding="utf-8") for said in saids))
        first, second = (set(said.read_text(encoding="utf-8").split()) for said in saids)
    assert len(first) == len(second) == 4
    assert not first & second


async def test_results_are_where_ramp_test_left_them(room: CondaRoom) -> None:
    """training_output is the one in the private copy; a link in its place, or on the way there, is none."""
    room.ramp_test(
        """
        mkdir "$8/$2/training_output"
        case "$2" in
          link) rmdir "$8/$2/training_output"; ln -s /etc "$8/$2/training_output" ;;
          way) mv "$8/$2" "$8/elsewhere"; ln -s elsewhere "$8/$2" ;;
          root) mv "$8" "$8/../elsewhere"; ln -s elsewhere "$8" ;;
        esac
        """
    )
    async with room.opened() as worker:
        for name, expected in (("folder", True), ("link", False), ("way", False), ("root", False)):
            job = room.job(name)
            async with room.launched(worker, job) as allocation:
                await worker.wait(allocation)
                results = await worker.collect_results(job, allocation)
                assert results.log_path == job.log_path
                output = job.attempt_dir / "submissions" / name / "training_output"
                assert results.training_output == (output if expected else None)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda path: path.unlink(), r"environment has no bin/ramp-test; install ramp-workflow"),
        (lambda path: path.chmod(0o644), r"environment has no bin/ramp-test; install ramp-workflow"),
    ],
    ids=["missing", "not executable"],
)
async def test_an_environment_without_ramp_test(room: CondaRoom, break_it: Any, sentence: str) -> None:
    """An environment whose ramp-test is missing, or is no program, is named, by check and by setup alike."""
    break_it(room.ramp_test("exit 0"))
    job = room.job()
    async with room.opened() as worker:
        with pytest.raises(WorkerSetupError, match=sentence):
            await worker.check()
        with pytest.raises(WorkerSetupError, match=sentence):
            await worker.setup(job)
    assert not job.attempt_dir.exists()


async def test_a_ramp_test_whose_interpreter_is_gone(room: CondaRoom) -> None:
    """A shebang that leads nowhere, as in an environment that was moved, is a fault of the event, and is named."""
    path = room.ramp_test("", interpreter="/nowhere/bin/python")
    async with room.opened() as worker:
        allocation = await worker.setup(room.job())
        with pytest.raises(WorkerSetupError) as caught:
            await worker.launch_submission(room.job(), allocation)
        assert str(path) in str(caught.value)
        assert "No such file or directory" in str(caught.value)
        await worker.teardown(allocation)
    assert not room.job().attempt_dir.exists()


async def test_an_environment_that_is_not_there(room: CondaRoom) -> None:
    """A path that leads nowhere is named."""
    async with room.opened() as worker:
        with pytest.raises(WorkerSetupError, match=f"there is no folder {room.prefix}"):
            await worker.check()


@pytest.mark.parametrize(("missing", "key"), [("kit", "ramp.kit_dir"), ("data", "ramp.data_dir")])
async def test_missing_kit_or_data(room: CondaRoom, missing: str, key: str) -> None:
    """A kit or data that are not there are named with their key, and with the folders that stand beside them."""
    room.ramp_test("exit 0")
    room.job()
    (room.root / missing).rename(room.root / f"{missing}s")
    async with room.opened() as worker:
        with pytest.raises(WorkerSetupError, match=key) as caught:
            await worker.check()
    assert str(room.root / missing) in caught.value.missing
    assert f"{missing}s" in caught.value.existing


async def test_all_is_well(room: CondaRoom) -> None:
    """Where everything is there, check has nothing to say."""
    room.ramp_test("exit 0")
    room.job()
    async with room.opened() as worker:
        await worker.check()


async def test_a_submission_that_cannot_be_copied(room: CondaRoom) -> None:
    """One that grew beyond the limits since it was taken is refused, and leaves no folder."""
    room.ramp_test("exit 0")
    job = room.job()
    (job.submission_dir / "data.bin").write_bytes(b"x" * 2000)
    async with room.opened(max_output_bytes=1000) as worker:
        with pytest.raises(WorkerError, match="too large"):
            await worker.setup(job)
    assert not job.attempt_dir.exists()


async def test_runs_at_the_same_time(room: CondaRoom) -> None:
    """Twenty runs at once each have their own log and status."""
    room.ramp_test("echo $2; exit ${2#n}")
    async with room.opened() as worker, asyncio.TaskGroup() as group:
        jobs = [room.job(f"n{number}") for number in range(20)]
        tasks = [group.create_task(room.run(worker, job)) for job in jobs]
    assert [task.result()[0].status for task in tasks] == list(range(20))
    assert [task.result()[1] for task in tasks] == [f"n{number}\n".encode() for number in range(20)]


async def test_a_setup_that_is_cancelled_leaves_nothing(room: CondaRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is under way has ended, and is gone, when a cancelled setup returns."""
    room.ramp_test("exit 0")
    job = room.job()
    begun, go_on = threading.Event(), threading.Event()

    def copy_slowly(source: Path, destination: Path, **_: Any) -> None:
        begun.set()
        go_on.wait(PATIENCE_S)
        destination.mkdir()

    monkeypatch.setattr("rampd.workers.conda.copy_submission", copy_slowly)
    async with room.opened() as worker:
        setting_up = asyncio.ensure_future(worker.setup(job))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        setting_up.cancel()
        await asyncio.sleep(0)
        assert not setting_up.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await setting_up
        assert not job.attempt_dir.exists()


@pytest.mark.parametrize("key", ["worker.conda_env", "ramp.kit_dir", "ramp.data_dir"])
async def test_a_folder_that_cannot_be_looked_at(room: CondaRoom, key: str) -> None:
    """A path that the kernel refuses to look at holds the event with its reason, like one that is not there."""
    room.ramp_test("exit 0")
    room.job()
    worker = room.worker()
    refused = room.root / ("x" * 300)
    match key:
        case "worker.conda_env":
            worker.config = worker.config.model_copy(update={"conda_env": str(refused)})
        case "ramp.kit_dir":
            worker.context = dataclasses.replace(worker.context, kit_dir=refused)
        case _:
            worker.context = dataclasses.replace(worker.context, data_dir=refused)
    with pytest.raises(WorkerSetupError, match=f"{key}: {refused}.* cannot be looked at: File name too long"):
        await worker.check()
