"""A synchronous plug-in under the real lifecycle: what each of its ends means, and what it can not do any harm to."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rampd import WorkerSetupError, WorkerUnavailableError
from rampd.dispatcher import Dispatcher
from rampd.orders import Order, Orders
from rampd.states import Outcome, SubmissionState
from rampd.workers import threaded
from support.conda import warm_up_uvloop
from support.event import attempt_once, find, hurry
from support.plug_in_event import PlugInRoom
from support.plug_ins import ScriptedWorker
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Record = dict[str, Any]

NEW, SCORED = SubmissionState.NEW, SubmissionState.SCORED
TRAINING_ERROR, CHECKING_ERROR = SubmissionState.TRAINING_ERROR, SubmissionState.CHECKING_ERROR
METHODS = ("__init__", "setup", "launch_submission", "_is_submission_finished", "collect_results", "teardown")
FOR_EVER = ScriptedWorker.sleep_for_ever


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Open what uvloop keeps open, before the first test."""
    warm_up_uvloop()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without scripts, and end every call that sleeps."""
    hurry(monkeypatch)
    monkeypatch.setattr(ScriptedWorker, "scripts", {})
    monkeypatch.setattr(ScriptedWorker, "made", [])
    monkeypatch.setattr(ScriptedWorker, "release", release := threading.Event())
    yield
    release.set()


@pytest.fixture
def room(tmp_path: Path) -> PlugInRoom:
    """Return an event of the scripted plug-in, one attempt a submission."""
    return PlugInRoom(tmp_path)


def _set(status: str) -> Callable[[ScriptedWorker], None]:
    def set_it(worker: ScriptedWorker) -> None:
        worker.status = status

    return set_it


def _failing(code: Any, message: Any, log: bytes = b"") -> Callable[[ScriptedWorker], Any]:
    def collect(worker: ScriptedWorker) -> Any:
        worker.leave(log, output=False)
        return code, message

    return collect


async def _ends(room: PlugInRoom, outcome: Outcome, state: SubmissionState, **script: Any) -> tuple[str, str]:
    """Attempt a submission of that script once; return what the operator and what the participant reads."""
    room.submit("one", **script)
    async with room.opened() as event:
        assert (await attempt_once(event)).outcome is outcome
        submission = await event.store.get("one")
        assert submission.state is state
        (attempt,) = await event.journal.attempts(submission.id)
        assert attempt.verdict is not None
        assert list(room.attempts.iterdir()) == []
        return attempt.verdict.reason, submission.error_msg


async def test_a_good_run_is_scored(room: PlugInRoom, log_records: list[Record]) -> None:
    """It goes through its methods in order, each in one thread that is not the loop's, and its scores are read."""
    room.submit("one", collect_results=lambda worker: (worker.leave(b"said\n"), (0, ""))[1])
    async with room.opened() as event:
        await attempt_once(event)
        assert (await event.store.get("one")).state is SCORED
    (worker,) = ScriptedWorker.made
    assert [method for method, _ in worker.calls] == [
        "__init__",
        "setup",
        "launch_submission",
        "_is_submission_interrupted",
        "_is_submission_finished",
        "collect_results",
        "teardown",
    ]
    assert len({thread for _, thread in worker.calls}) == 1
    assert worker.calls[0][1] != threading.current_thread().name
    assert room.log("one") == b"said\n"
    assert (room.root / "events" / "iris" / "predictions" / "one" / "bagged_scores.csv").exists()
    assert find(log_records, "submission.finished")[0]["exit_status"] == 0


async def test_its_folders_are_the_attempts_own(room: PlugInRoom) -> None:
    """It finds a private copy and two empty folders, and the event's own beside them."""
    seen: dict[str, Any] = {}

    def look(worker: ScriptedWorker) -> None:
        seen.update(worker.config)
        for name, there in (("submissions", ["one"]), ("predictions", []), ("logs", [])):
            assert [path.name for path in Path(worker.config[f"{name}_dir"]).iterdir()] == there

    room.worker |= {"region": "north", "nested": {"key": [1]}, "hooks": "kept"}
    await _ends(room, Outcome.OK, SCORED, setup=look)
    folder = room.root / "events" / "iris"
    for name in ("submissions", "predictions", "logs"):
        assert seen[f"{name}_dir"].startswith(f"{room.attempts}/")
        assert seen[f"event_{name}_dir"] == str(folder / name)
    assert (seen["region"], seen["nested"], seen["hooks"]) == ("north", {"key": [1]}, "kept")
    assert seen["kit_dir"] == str(room.root / "ramp-kits" / "iris")
    assert seen["data_dir"] == str(room.root / "ramp-data" / "iris")
    assert seen["timeout"] == 60
    assert seen["worker_type"] == "support.plug_ins:ScriptedWorker"


@pytest.mark.parametrize("method", METHODS[:-1])
@pytest.mark.parametrize("error", [RuntimeError("no quota"), SystemExit(3), StopIteration(), asyncio.CancelledError()])
async def test_what_it_raises_is_never_the_participants(
    room: PlugInRoom, method: str, error: BaseException, log_records: list[Record]
) -> None:
    """An exception in any method is the platform's failure: named to the operator, hidden from the participant."""
    reason, shown = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, **{method: error})
    assert f"{method}() of support.plug_ins:ScriptedWorker raised {type(error).__name__}" in reason
    assert "plug_ins.py:" in reason
    assert shown == "The platform failed, not the submission; the organizers can retry it."
    (record,) = find(log_records, "worker.plug_in_failed")
    assert record["method"] == method


async def test_a_teardown_that_raises_changes_no_outcome(room: PlugInRoom, log_records: list[Record]) -> None:
    """What was scored stays scored; the failure is logged."""
    await _ends(room, Outcome.OK, SCORED, teardown=RuntimeError("gone"))
    assert find(log_records, "worker.plug_in_failed", method="teardown")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(WorkerUnavailableError("full"), Outcome.NO_CAPACITY), (WorkerSetupError("no image"), Outcome.INTERRUPTED)],
)
async def test_it_may_speak_the_houses_words(room: PlugInRoom, error: Exception, outcome: Outcome) -> None:
    """One of rampd's own errors means what it means of any worker."""
    await _ends(room, outcome, NEW, setup=error)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (None, "returned None"),
        ((0,), "returned a tuple of 1"),
        ((0, "", ""), "returned a tuple of 3"),
        ("no", "returned 'no'"),
        (("0", ""), "returned the return code '0'"),
        ((None, ""), "returned the return code None"),
        ((True, ""), "returned the return code True"),
        ((10**30, ""), "returned the return code 1000"),
        ((1, object()), "returned the error message an object of type object"),
        (object(), "returned an object of type object"),
    ],
)
async def test_nonsense_is_the_plug_ins_fault(room: PlugInRoom, returned: object, sentence: str) -> None:
    """What is no (return code, message) charges nobody, and the sentence says what it was."""
    reason, _ = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, collect_results=lambda _: returned)
    assert sentence in reason


async def test_a_zero_without_predictions_is_the_plug_ins_fault(room: PlugInRoom) -> None:
    """It said that all is well and brought nothing."""
    reason, _ = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, collect_results=_failing(0, ""))
    assert "returned 0 and left no folder 'one' in config['predictions_dir']" in reason


_TRACEBACK = 'Traceback (most recent call last):\n  File "estimator.py", line 1, in fit\nValueError: no'


@pytest.mark.parametrize(
    ("code", "outcome", "state", "status"),
    [
        (1, Outcome.PARTICIPANT_ERROR, TRAINING_ERROR, 1),
        (3, Outcome.PARTICIPANT_ERROR, TRAINING_ERROR, 3),
        (-9, Outcome.PARTICIPANT_ERROR, TRAINING_ERROR, 137),
        (124, Outcome.TIMEOUT, TRAINING_ERROR, 124),
        (2, Outcome.PLATFORM_ERROR, CHECKING_ERROR, 2),
    ],
)
async def test_return_codes(  # noqa: PLR0917 -- a table's row
    room: PlugInRoom,
    code: int,
    outcome: Outcome,
    state: SubmissionState,
    status: int,
    log_records: list[Record],
) -> None:
    """Each return code has its meaning, and no more of the message is shown than a traceback."""
    room.worker["max_attempts"] = 3  # and yet a 2 is final
    log = f"\x1b[31m{_TRACEBACK}\n\ttest 0.99\n"
    _, shown = await _ends(room, outcome, state, collect_results=_failing(code, log))
    assert shown.startswith(_TRACEBACK)
    assert "0.99" not in shown
    assert shown.endswith("Worker killed due to timeout after 60s.") is (code == 124)
    (record,) = find(log_records, "submission.finished")
    assert (record["exit_status"], record["outcome"]) == (status, outcome)


async def test_a_message_without_a_traceback_shows_no_scores(room: PlugInRoom) -> None:
    """A plug-in that hands the whole log over as its message does not tell what no participant may see."""
    collect = _failing(1, "it began\nCV fold 0\n\tscore  acc\n\ttest  0.99\n")
    _, shown = await _ends(room, Outcome.PARTICIPANT_ERROR, TRAINING_ERROR, collect_results=collect)
    assert shown == "it began"


async def test_the_log_gives_the_traceback_where_the_message_is_empty(room: PlugInRoom) -> None:
    """What the participant reads does not hang on the plug-in's way to find it."""
    collect = _failing(1, "", log=_TRACEBACK.encode())
    _, shown = await _ends(room, Outcome.PARTICIPANT_ERROR, TRAINING_ERROR, collect_results=collect)
    assert shown == _TRACEBACK


async def test_an_undocumented_status(room: PlugInRoom) -> None:
    """Setting one raises where it is set, with the ones that there are."""
    reason, _ = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, _is_submission_finished=_set("done"))
    assert "'done' is no status of a worker; there are initialized, setup, error, running" in reason


async def test_a_status_that_was_forced(room: PlugInRoom) -> None:
    """One that got past the property is refused as well, with the ones that there are."""

    def force(worker: ScriptedWorker) -> bool:
        worker._status = "done"
        return False

    reason, _ = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, _is_submission_finished=force)
    assert "has the status 'done' after _is_submission_finished(), which is none of initialized, setup" in reason


@pytest.mark.parametrize("method", ["setup", "launch_submission"])
@pytest.mark.parametrize("status", ["error", "killed"])
async def test_a_status_that_says_that_it_cannot_go_on(room: PlugInRoom, method: str, status: str) -> None:
    """An attempt that could not be begun is the platform's failure."""
    reason, _ = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, **{method: _set(status)})
    assert f"has the status '{status}' after {method}(), which says that it cannot go on" in reason


async def test_a_launch_without_super(room: PlugInRoom) -> None:
    """Who forgot the last line of the method is told which."""

    def forget(worker: ScriptedWorker) -> None:
        worker._status = "initialized"

    reason, _ = await _ends(room, Outcome.PLATFORM_ERROR, CHECKING_ERROR, setup=forget, launch_submission=forget)
    assert "it has to end with super().launch_submission()" in reason


@pytest.mark.parametrize(
    "script",
    [
        {"_is_submission_interrupted": True},
        {"_is_submission_finished": subprocess.CalledProcessError(255, "ssh")},
        {"_is_submission_finished": _set("retry")},
        {"setup": _set("retry")},
    ],
)
async def test_an_interrupted_run_is_tried_again(room: PlugInRoom, script: dict[str, Any]) -> None:
    """It counts as a lost host, and nothing is collected."""
    room.worker["max_attempts"] = 2
    await _ends(room, Outcome.LOST_HOST, NEW, **script)
    assert "collect_results" not in [method for method, _ in ScriptedWorker.made[0].calls]
    assert ScriptedWorker.made[0]._status == "killed"


async def test_the_log_is_followed_while_it_runs(room: PlugInRoom) -> None:
    """What the plug-in has of the output stands in the event's log before the run ends, and not twice after it."""

    def look(worker: ScriptedWorker) -> bool:
        if len(worker.calls) < 20:
            worker.leave(b"line\n" * len(worker.calls), output=False)
            return False
        return room.log("one").startswith(b"line\n")

    def collect(worker: ScriptedWorker) -> tuple[int, str]:
        worker.leave(b"all of it\n")
        return 0, ""

    await _ends(room, Outcome.OK, SCORED, _is_submission_finished=look, collect_results=collect)
    assert room.log("one") == b"all of it\n"


async def test_a_log_is_bounded_and_no_link_is_followed(room: PlugInRoom, log_records: list[Record]) -> None:
    """A submission that runs beside the plug-in can neither fill the disk nor have other files shown."""
    room.worker["max_log_bytes"] = 1000
    secret = room.root / "secret"
    secret.write_text("secret", encoding="utf-8")

    def link(worker: ScriptedWorker) -> bool:
        worker.leave(output=False)
        path = Path(worker.config["logs_dir"]) / "two" / "log"
        path.unlink()
        path.symlink_to(secret)
        return True

    def collect(worker: ScriptedWorker) -> tuple[int, str]:
        assert room.log("one") == b""
        worker.leave(b"x" * 5000)
        return 0, ""

    room.submit("two", _is_submission_finished=link, collect_results=lambda _: (1, ""))
    async with room.opened() as event:
        await attempt_once(event)
    assert room.log("two") == b""
    await _ends(room, Outcome.OK, SCORED, collect_results=collect)
    assert room.log("one") == b"x" * 1000
    assert find(log_records, "submission.finished", submission="one")[0]["log_bytes"] == 5000


async def test_its_own_timeout(room: PlugInRoom, log_records: list[Record]) -> None:
    """At the deadline `check_timeout` is called, and the results are asked for, so that a traceback is not lost."""
    room.worker["timeout"] = 2.0
    collect = _failing(124, "", log=_TRACEBACK.encode())
    script = {"_is_submission_finished": False, "collect_results": collect}
    _, shown = await _ends(room, Outcome.TIMEOUT, TRAINING_ERROR, **script)
    assert shown == f"{_TRACEBACK}\nWorker killed due to timeout after 2s."
    (worker,) = ScriptedWorker.made
    calls = [method for method, _ in worker.calls]
    assert calls[-3:] == ["check_timeout", "collect_results", "teardown"]
    assert find(log_records, "submission.finished")[0]["exit_status"] == 124


@pytest.mark.parametrize("method", METHODS)
async def test_what_never_comes_back_is_abandoned(
    room: PlugInRoom, method: str, log_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that sleeps for ever ends at the timeout, is named, charges nobody, and its folder waits for it."""
    room.worker["timeout"] = 0.5
    room.submit("one", **{method: FOR_EVER})
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        outcome = Outcome.OK if method == "teardown" else Outcome.PLATFORM_ERROR
        assert conclusion.outcome is outcome
        (record,) = find(log_records, "worker.abandoned")
        assert record["method"] == method
        assert record["waited_s"] < 5
        (folder,) = room.attempts.iterdir()
        # Reclaiming leaves it as long as the thread is in it; the thread removes it, and tears down what it made.
        assert await event.worker.reclaim(set()) == []
        assert folder.exists()
        ScriptedWorker.release.set()
        await until(lambda: not folder.exists(), what="the folder's removal")
    calls = [called for called, _ in ScriptedWorker.made[0].calls]
    assert calls.count("teardown") == (0 if method == "__init__" else 1)


async def test_too_many_that_never_came_back_hold_the_event(room: PlugInRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are not piled up without end, and the event goes on once they are back."""
    monkeypatch.setattr(threaded, "_MOST_STUCK", 1)
    room.worker["timeout"] = 0.1
    room.submit("one", setup=FOR_EVER)
    async with room.opened() as event:
        await attempt_once(event)
        with pytest.raises(WorkerSetupError, match=r"1 calls of .*:ScriptedWorker never came back"):
            await event.worker.check()
        ScriptedWorker.release.set()
        await until(lambda: not list(room.attempts.iterdir()))
        async with asyncio.timeout(10):
            while True:
                try:
                    await event.worker.check()
                    break
                except WorkerSetupError:
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", METHODS)
async def test_others_go_on_beside_one_that_never_comes_back(room: PlugInRoom, method: str) -> None:
    """Nine submissions pass by one that hangs, two at a time and never three, and the loop is never blocked."""
    room.worker["timeout"] = 30
    room.submit("hangs", **{method: FOR_EVER})
    most, inside, lock = 0, 0, threading.Lock()
    together = threading.Event()

    def work(_: ScriptedWorker) -> None:
        nonlocal most, inside
        with lock:
            inside += 1
            most = max(most, inside)
            if inside == 2:
                together.set()
        together.wait(10)
        time.sleep(0.01)
        with lock:
            inside -= 1

    def collect(worker: ScriptedWorker) -> tuple[int, str]:
        worker.leave()
        work(worker)
        return 0, ""

    for number in range(9):
        room.submit(f"s{number}", setup=work, collect_results=collect)
    room.dispatcher |= {"hunger_policy": "sleep", "n_workers": 3, "shutdown_grace": 0}
    async with room.opened() as event:
        dispatcher = Dispatcher(event)
        serving = asyncio.ensure_future(dispatcher.run())

        await until(lambda: dispatcher.finished == 9, what="the others' end")
        begun = time.monotonic()
        dispatcher.stop()
        assert await serving == 0
        assert time.monotonic() - begun < 2.0
        assert most == 2
        state = (await event.store.get("hangs")).state
        assert state is (SCORED if method == "teardown" else NEW)


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("method", ["setup", "launch_submission", "_is_submission_finished"])
async def test_an_order_during_a_call(room: PlugInRoom, method: str, order: Order) -> None:
    """Cancelled or interrupted while the plug-in works, it is let finish its call, and torn down."""
    entered, go_on = threading.Event(), threading.Event()

    def work(_: ScriptedWorker) -> bool:
        entered.set()
        return not go_on.wait(30)

    room.submit("one", **{method: work})
    async with room.opened() as event:
        orders = Orders()
        attempting = asyncio.ensure_future(attempt_once(event, orders))
        await until(entered.is_set)
        orders.give(order)
        await asyncio.sleep(0)
        go_on.set()
        conclusion = await attempting
        assert conclusion.outcome is (Outcome.CANCELLED if order is Order.CANCEL else Outcome.INTERRUPTED)
        assert list(room.attempts.iterdir()) == []
    (worker,) = ScriptedWorker.made
    assert [method for method, _ in worker.calls][-1] == "teardown"
    assert worker.status == "killed"


async def test_a_teardown_may_ask_for_more_time(
    room: PlugInRoom, log_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where giving back takes longer than a moment, a class says so, and the daemon's stop waits for it."""
    monkeypatch.setattr(ScriptedWorker, "teardown_grace_s", 10.0)
    entered, go_on = threading.Event(), threading.Event()

    def give_back(_: ScriptedWorker) -> None:
        entered.set()
        go_on.wait(30)

    room.submit("one", _is_submission_finished=False, teardown=give_back)
    room.dispatcher |= {"hunger_policy": "sleep", "shutdown_grace": 0}
    async with room.opened() as event:
        dispatcher = Dispatcher(event)
        serving = asyncio.ensure_future(dispatcher.run())
        await until(lambda: find(log_records, "submission.started"))
        dispatcher.stop()
        await until(entered.is_set)
        done, _ = await asyncio.wait({serving}, timeout=1.5)  # longer than a moment
        assert not done
        go_on.set()
        assert await serving == 0
    assert not find(log_records, "worker.abandoned")
    assert list(room.attempts.iterdir()) == []


async def test_what_it_starts_here_ends_with_it(room: PlugInRoom) -> None:
    """At a timeout the processes that it started end, those that left their session too, if it does not end them."""
    room.worker["timeout"] = 2.0
    started: list[subprocess.Popen[bytes]] = []

    def start(worker: ScriptedWorker) -> None:
        here = worker.config["submissions_dir"]
        started.append(subprocess.Popen(["sh", "-c", "setsid sleep 1000 & exec sleep 1000", here]))

    def collect(_: ScriptedWorker) -> tuple[int, str]:
        started[0].wait()
        return 124, ""

    script = {"launch_submission": start, "_is_submission_finished": False, "collect_results": collect}
    await _ends(room, Outcome.TIMEOUT, TRAINING_ERROR, **script)
    assert started[0].returncode == -15
