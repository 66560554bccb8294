"""An event on a board, broken off after every step and taken up again, with a worker that runs nothing."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rampd.board_config import GivenBoard, load_board
from rampd.conclusion import STAGING_PREFIX
from rampd.errors import StoreError
from rampd.states import Outcome, SubmissionState
from rampd.stores import board_folders
from support.board import EVENT, Board
from support.event import (
    Crash,
    EventRoom,
    attempt_once,
    fail_times,
    fake,
    find,
    good_run,
    hurry,
    run_out,
    run_to_the_one_end,
    served,
)
from support.store_room import until
from support.training_output import build_training_output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from rampd.config import Settings
    from rampd.testing.workers import FakeRun

    Record = dict[str, Any]

STEPS = [
    "store.claim",
    "journal.open_attempt",
    "worker.setup",
    "journal.record_allocation",
    "worker.launch_submission",
    "journal.record_launch",
    "store.set_training",
    "worker.wait",
    "worker.collect_results",
    "journal.decide",
    "store.confirm",
    "store.set_tested",
    "store.set_scored",
    "worker.teardown",
    "journal.close",
]
BEFORE_IT_RUNS = STEPS[:4]
WHILE_IT_RUNS = STEPS[4:9]


@dataclass(slots=True, kw_only=True)
class BoardRoom(EventRoom):
    """An event's folders whose store is a board."""

    board: Board

    def settings(self) -> Settings:
        """Read the config, and the board's."""
        settings = EventRoom.settings(self)
        ramp = replace(
            settings.ramp,
            event_name=EVENT,
            submissions_dir=self.board.deployment.submissions,
            predictions_dir=self.board.deployment.predictions,
        )
        return replace(settings, ramp=ramp, board=load_board(GivenBoard(self.board.config, self.root / "none")))

    def arrive(self, run: FakeRun, title: str = "one") -> str:
        """Insert a submission; return its name."""
        (number,) = self.board.insert(title)
        name = f"submission_{number:09d}"
        self.runs[name] = run
        return name


@pytest.fixture
def room(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoardRoom:
    """Give an event on a board where nothing that fails is waited for."""
    hurry(monkeypatch)
    return BoardRoom(tmp_path, board=board)


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("last", STEPS)
async def test_a_crash_after_any_step_leads_to_one_end(
    room: BoardRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record], last: str, resumable: bool
) -> None:
    """Killed after any step, a submission is scored once by the next daemon, and its runs never overlap."""
    room.resumable = resumable
    name = room.arrive(good_run(0.01))
    async with room.opened() as event:
        fail_times(monkeypatch, event, last, error=Crash, after=True)
        with pytest.raises(Crash):
            await attempt_once(event)
        launches = len(fake(event).launches)
    async with room.opened() as event:
        await run_to_the_one_end(event, name)
        launches += len(fake(event).launches)
    assert launches == (2 if last in WHILE_IT_RUNS and not resumable else 1)
    assert room.outside == {}
    assert [path.name for path in room.board.deployment.predictions.iterdir()] == [name]
    assert len(find(log_records, "submission.finished", outcome="ok")) == 1
    assert room.board.query("SELECT DISTINCT train_time FROM submission_on_cv_folds WHERE state = 'scored'") == [
        (0.01,)
    ]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", [step for step in STEPS if step.startswith("store.") and step != "store.claim"])
async def test_a_database_that_is_away_at_any_write_costs_no_attempt(
    room: BoardRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record], write: str, after: bool
) -> None:
    """A write that fails, whether it was made or not, is made again until it stands: the one attempt is enough."""
    name = room.arrive(good_run(0.01))
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, write, 4, error=StoreError, after=after)
        assert (await attempt_once(event)).outcome is Outcome.OK
        assert len(failures) == 4
        assert (await event.store.get(name)).state is SubmissionState.SCORED
        states = [state for state, _ in await event.store.history(int(name[-9:]))]
        assert states == ["new", "sent_to_training", "training", "tested", "scored"]
        assert [(one.outcome, one.final) for one in await event.journal.attempts()] == [(Outcome.OK, True)]
    assert len(find(log_records, "submission.finished", outcome="ok")) == 1


async def test_a_start_leaves_the_predictions_of_another_daemon_alone(room: BoardRoom) -> None:
    """Those that wait to be swapped in are another host's, which serves the same event from the same folders."""
    theirs = room.board.deployment.predictions / f"{STAGING_PREFIX}0123456789abcdef"
    build_training_output(theirs)
    name = room.arrive(good_run(0.01))
    async with room.opened() as event:
        await asyncio.wait_for(run_out(event), 10)
        assert (await event.store.get(name)).state is SubmissionState.SCORED
    assert sorted(path.name for path in theirs.parent.iterdir()) == [theirs.name, name]


@pytest.mark.parametrize("last", ["worker.collect_results", "journal.decide"])
async def test_a_start_removes_its_own_predictions_that_count_no_more(
    room: BoardRoom, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Those of an attempt that was killed before its outcome was decided are gone after the next one."""
    name = room.arrive(good_run(0.01))
    async with room.opened() as event:
        fail_times(monkeypatch, event, last, error=Crash, after=last == "worker.collect_results")
        with pytest.raises(Crash):
            await attempt_once(event)
        staged = list(room.board.deployment.predictions.iterdir())
        assert len(staged) == (1 if last == "journal.decide" else 0)
    async with room.opened() as event:
        await asyncio.wait_for(run_out(event), 10)
    assert [path.name for path in room.board.deployment.predictions.iterdir()] == [name]


@pytest.fixture
def folders_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Give what has submissions' folders answer while it is set: a network's file system, which may hang."""
    answer, is_dir = threading.Event(), Path.is_dir
    answer.set()

    def hang_or_look(path: Path) -> bool:
        return (not path.name.startswith("submission_") or answer.wait(30)) and is_dir(path)

    monkeypatch.setattr(Path, "is_dir", hang_or_look)
    monkeypatch.setattr(board_folders, "PATIENCE_S", 1.0)
    yield answer
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "board folders":
            thread.join(30)


async def test_folders_that_do_not_answer_are_an_outage(
    room: BoardRoom, log_records: list[Record], folders_answer: threading.Event
) -> None:
    """The pump moves, what runs ends, what waits stays new, and is claimed when they answer again; said once."""
    room.dispatcher["hunger_policy"] = "sleep"
    running = room.arrive(good_run(1000.0))
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: fake(event).launches)
        folders_answer.clear()
        waiting = room.arrive(good_run(), "two")
        await event.store.scan()
        await until(lambda: find(log_records, "store.unavailable"))
        room.finish()
        await until(lambda: find(log_records, "submission.finished", submission=running), what="the other's end")
        for _ in range(5):
            await asyncio.wait_for(dispatcher.pulse(), 10)
        assert (await event.store.get(waiting)).state is SubmissionState.NEW
        folders_answer.set()
        await until(lambda: find(log_records, "submission.finished", submission=waiting), what="its end")
        states = [state for state, _ in await event.store.history(int(waiting[-9:]))]
    assert states == ["new", "sent_to_training", "new", "sent_to_training", "training", "tested", "scored"]
    (unavailable,) = find(log_records, "store.unavailable")
    assert "does not answer" in unavailable["error"]
    assert len(find(log_records, "store.recovered")) == 1
