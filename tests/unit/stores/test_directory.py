"""The embedded store: folders become rows, rows outlive the daemon, and the log says each thing once."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.errors import StoreError, UnknownSubmissionError
from rampd.models import StepScore
from rampd.states import SubmissionState
from rampd.stores import arrivals
from rampd.stores.directory import TRANSITIONS_KEPT
from support.store_room import running, until

if TYPE_CHECKING:
    from rampd.models import Scores, Submission
    from rampd.stores.directory import DirectoryStore
    from support.store_room import StoreRoom

    Record = dict[str, Any]

_LONG_S = 3600.0


def said(records: list[Record], event: str) -> list[Record]:
    """Return the records of one event."""
    return [record for record in records if record["event"] == event]


async def run_to_its_end(store: DirectoryStore, name: str, scores: Scores | None = None) -> Submission:
    """Bring the one that is next to `scored`."""
    claimed = await store.claim()
    assert claimed is not None
    assert claimed.name == name
    await store.set_training(claimed.id)
    await store.set_tested(claimed.id)
    await store.set_scored(claimed.id, scores or {})
    return claimed


async def names(store: DirectoryStore) -> list[str]:
    """Return what is registered."""
    return [one.name for one in await store.list()]


async def test_an_arrival_is_registered_and_said(room: StoreRoom, log_records: list[Record]) -> None:
    """A folder becomes a new submission; the log says that it was found and where it waits."""
    async with room.opened() as store:
        for name in ("first", "second"):
            room.make(name)
            await store.scan()
        assert await names(store) == ["first", "second"]
        assert [record["submission"] for record in said(log_records, "submission.detected")] == ["first", "second"]
        assert [record["position"] for record in said(log_records, "submission.queued")] == [1, 2]
        assert store.submission_dir(await store.get("first")) == room.submissions / "first"


async def test_positions_count_those_that_wait(room: StoreRoom, log_records: list[Record]) -> None:
    """A submission behind one that runs is the next one."""
    async with room.opened() as store:
        room.make("running")
        await store.scan()
        assert await store.claim() is not None
        room.make("next")
        await store.scan()
        assert [record["position"] for record in said(log_records, "submission.queued")] == [1, 1]


async def test_a_watch_takes_a_rename_at_once(room: StoreRoom) -> None:
    """What is moved in wakes the dispatcher; what is made in place is counted as settling."""
    async with room.opened(settle_time_s=_LONG_S) as store, running(store.watch(), store.scanned):
        room.make("made")
        await until(lambda: store.settling == 1, what="the look")
        assert not store.changed.is_set()
        room.move_in("moved")
        await until(store.changed.is_set, what="the arrival")
        assert await names(store) == ["moved"]


BAD_NAMES: dict[str, tuple[str, str]] = {
    "with space": ("bad_name", "with space"),
    "-rf": ("bad_name", "-rf"),
    "new\nline": ("bad_name", "new\\nline"),
    "$(touch pwned)": ("bad_name", "$(touch pwned)"),
    "x" * 255: ("bad_name", "x" * 120 + "…"),
    "é" * 127: ("bad_name", "é" * 120 + "…"),
    "not\udcffutf8": ("bad_name", "not\\xffutf8"),
    "\x1b[31mred": ("bad_name", "\\x1b[31mred"),
}


@pytest.mark.parametrize("name", list(BAD_NAMES), ids=ascii)
@pytest.mark.parametrize("way", ["moved in", "made in place", "found"])
async def test_a_bad_name_is_rejected_once(room: StoreRoom, log_records: list[Record], name: str, way: str) -> None:
    """However it comes, it is said once in a form that is safe to show, and never registered."""
    if way == "found":
        room.make(name)
    async with room.opened(rescan_interval_s=0.02) as store, running(store.watch(), store.scanned):
        if way == "made in place":
            room.make(name)
        elif way == "moved in":
            (room.make("good")).rename(room.root / "aside")
            (room.root / "aside").rename(room.submissions / name)
        await until(lambda: said(log_records, "submission.rejected"), what="the rejection")
        store.scanned.clear()
        await until(store.scanned.is_set, what="another look")
        (record,) = said(log_records, "submission.rejected")
        reason, shown = BAD_NAMES[name]
        assert (record["reason"], record["name"]) == (reason, shown)
        assert not [one for one in await names(store) if one != "good"]


async def test_dots_inside_a_name_are_fine(room: StoreRoom, log_records: list[Record]) -> None:
    """Only a name that begins with dots is no submission: a hidden one, passed over in silence."""
    for name in ("a..", "a..b", "..dots"):
        room.make(name)
    async with room.opened() as store:
        await store.scan()
        assert sorted(await names(store)) == ["a..", "a..b"]
        assert said(log_records, "submission.rejected") == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("file", "not_a_folder"),
        ("dangling", "dangling_link"),
        ("link", "link"),
        ("fifo inside", "special_file"),
        ("escape inside", "escaping_link"),
        ("sandbox", "sandbox"),
    ],
)
async def test_what_is_no_submission_is_rejected_once(
    room: StoreRoom, log_records: list[Record], kind: str, reason: str
) -> None:
    """Its reason is a word of the catalogue; it is said once, in this life of the daemon and the next."""
    path = room.submissions / "thing"
    match kind:
        case "file":
            path.touch()
        case "dangling":
            path.symlink_to("nowhere")
        case "link":
            path.symlink_to("/tmp")
        case "fifo inside":
            os.mkfifo(room.make("thing") / "fifo")
        case "escape inside":
            (room.make("thing") / "escape").symlink_to("../../secret")
        case _:
            room.make("thing")
    for _ in range(2):
        async with room.opened(sandbox_dir="thing" if kind == "sandbox" else "starting_kit") as store:
            await store.scan()
            await store.scan()
            assert await names(store) == []
            assert store.settling == 0
    assert [(one["name"], one["reason"]) for one in said(log_records, "submission.rejected")] == [("thing", reason)]


async def test_hidden_names_are_passed_over(room: StoreRoom, log_records: list[Record]) -> None:
    """Neither a row nor a word."""
    for name in (".git", "__pycache__"):
        room.make(name)
    async with room.opened() as store:
        await store.scan()
        assert await names(store) == []
    assert log_records == []


async def test_a_rejection_is_said_again_when_the_thing_changed(room: StoreRoom, log_records: list[Record]) -> None:
    """A file that is replaced by another one is another thing."""
    path = room.submissions / "thing"
    path.touch()
    async with room.opened() as store:
        await store.scan()
        os.mkfifo(room.root / "other")
        (room.root / "other").rename(path)
        await store.scan()
        await store.scan()
    assert len(said(log_records, "submission.rejected")) == 2


async def test_rows_outlive_the_daemon(room: StoreRoom, log_records: list[Record]) -> None:
    """The next one finds the same submissions, states and scores, and says nothing of them again."""
    scores = {"acc": {"valid": StepScore(math.nan, math.inf, None)}}
    async with room.opened() as store:
        room.make("one")
        await store.scan()
        claimed = await run_to_its_end(store, "one", scores)
        history = await store.history(claimed.id)
    count = len(log_records)
    async with room.opened() as store:
        await store.scan()
        assert (await store.get("one")).state is SubmissionState.SCORED
        assert repr(await store.scores()) == repr({claimed.id: scores})
        assert await store.history(claimed.id) == history
    assert len(log_records) == count


async def test_ids_are_never_used_again(room: StoreRoom) -> None:
    """What is forgotten leaves its number behind: the journal still knows it."""
    async with room.opened() as store:
        folder = room.make("gone")
        await store.scan()
        gone = await store.get("gone")
        folder.rename(room.root / "elsewhere")
        await store.scan()
        room.make("next")
        await store.scan()
        assert (await store.get("next")).id > gone.id


async def test_what_is_gone_before_it_runs_is_forgotten(room: StoreRoom, log_records: list[Record]) -> None:
    """A waiting submission goes with its folder, and the dispatcher is told."""
    async with room.opened() as store:
        folder = room.make("gone")
        await store.scan()
        store.changed.clear()
        folder.rename(room.root / "elsewhere")
        await store.scan()
        assert store.changed.is_set()
        with pytest.raises(UnknownSubmissionError):
            await store.get("gone")
    assert [record["submission"] for record in said(log_records, "submission.forgotten")] == ["gone"]


async def test_one_that_runs_is_not_forgotten(room: StoreRoom) -> None:
    """A claimed submission has a copy of its own: its folder may go."""
    async with room.opened() as store:
        folder = room.make("running")
        await store.scan()
        claimed = await store.claim()
        assert claimed is not None
        await store.set_training(claimed.id)
        folder.rename(room.root / "elsewhere")
        await store.scan()
        assert (await store.get("running")).state is SubmissionState.TRAINING


async def test_a_change_after_the_end_is_said_once(room: StoreRoom, log_records: list[Record]) -> None:
    """A folder that changes after a final state keeps that state; after a restart nothing is said again."""
    async with room.opened() as store:
        folder = room.make("ended")
        await store.scan()
        await run_to_its_end(store, "ended")
        await store.scan()
        assert said(log_records, "submission.changed") == []
        (folder / "estimator.py").write_text("something else", encoding="utf-8")
        await store.scan()
        await store.scan()
        assert await store.claim() is None
    async with room.opened() as store:
        await store.scan()
    (record,) = said(log_records, "submission.changed")
    assert (record["submission"], record["state"]) == ("ended", "scored")


async def test_a_change_while_it_waited_is_none(room: StoreRoom, log_records: list[Record]) -> None:
    """What was run is what is there: nobody is told of a change that came before the run."""
    async with room.opened() as store:
        folder = room.make("edited")
        await store.scan()
        (folder / "estimator.py").write_text("a better idea", encoding="utf-8")
        await asyncio.sleep(0.02)  # the kernel's time stamps are up to 10 ms behind the clock
        await run_to_its_end(store, "edited")
        await store.scan()
        assert said(log_records, "submission.changed") == []
        (folder / "estimator.py").write_text("too late", encoding="utf-8")
        await store.scan()
    assert len(said(log_records, "submission.changed")) == 1


async def test_a_file_system_that_fails_loses_nobody(room: StoreRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be looked at is an outage of the store, and is claimed when it can be again."""
    async with room.opened() as store:
        room.make("one")
        await store.scan()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "is_dir", _stale)
            with pytest.raises(StoreError, match="one: Stale file handle"):
                await store.claim()
        claimed = await store.claim()
        assert claimed is not None
        assert claimed.name == "one"


def _stale(path: Path) -> bool:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))


async def test_the_sandbox_waits_for_nobody(room: StoreRoom) -> None:
    """The operator may run it by name; a dispatcher never gets it."""
    async with room.opened() as store:
        room.make("starting_kit")
        claimed = await store.claim_named("starting_kit")
        assert claimed is not None
        await store.release(claimed.id)
        assert await store.claim() is None


async def test_scores_can_be_read_by_other_programs(room: StoreRoom) -> None:
    """The view has a row for each score type and step; what is no number is a text."""
    async with room.opened() as store:
        room.make("one")
        await store.scan()
        await run_to_its_end(store, "one", {"acc": {"valid": StepScore(0.5, 0.25, math.nan)}})
    connection = sqlite3.connect(room.root / "submissions.sqlite3")
    rows = connection.execute("SELECT name, score, step, mean, std, bagged FROM scores").fetchall()
    connection.close()
    assert rows == [("one", "acc", "valid", 0.5, 0.25, "nan")]


async def test_a_retry_drops_the_scores_for_everybody(room: StoreRoom) -> None:
    """Other programs do not see old scores either while a submission runs again."""
    async with room.opened() as store:
        room.make("one")
        await store.scan()
        ended = await run_to_its_end(store, "one", {"acc": {"valid": StepScore(0.5, 0.25, None)}})
        await store.requeue(ended.id)
    connection = sqlite3.connect(room.root / "submissions.sqlite3")
    rows = connection.execute("SELECT * FROM scores").fetchall()
    connection.close()
    assert rows == []


async def test_a_name_is_never_sql(room: StoreRoom) -> None:
    """Quotes in what an operator asks for are letters."""
    async with room.opened() as store:
        room.make("good")
        await store.scan()
        with pytest.raises(UnknownSubmissionError):
            await store.get("' OR 1=1 --")


async def test_trouble_with_the_database_does_not_end_the_watch(
    room: StoreRoom, log_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that cannot be written is said once, and what came meanwhile is taken once it can, which is said too."""
    monkeypatch.setattr(arrivals, "_STORE_RETRY_S", 0.02)
    async with room.opened() as store, running(store.watch(), store.scanned):
        connection = sqlite3.connect(room.root / "submissions.sqlite3", isolation_level=None)
        connection.execute("ALTER TABLE submissions RENAME TO away")
        room.move_in("patient")
        await until(lambda: said(log_records, "store.unavailable"), what="the trouble")
        adopt, looks = store.registry.adopt, []

        async def look() -> None:
            looks.append("")
            await adopt()

        monkeypatch.setattr(store.registry, "adopt", look)
        await until(lambda: len(looks) > 3, what="another look")
        connection.execute("ALTER TABLE away RENAME TO submissions")
        connection.close()
        await until(lambda: said(log_records, "submission.detected"), what="the arrival")
        assert await names(store) == ["patient"]
        await until(lambda: said(log_records, "store.recovered"), what="the end of it")
        assert len(said(log_records, "store.unavailable")) == 1


async def test_a_store_that_cannot_be_opened_says_where(room: StoreRoom) -> None:
    """The error names the file."""
    (room.root / "submissions.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"submissions\.sqlite3"):
        async with room.opened():
            pass


async def test_queued_at_is_the_moment_of_registration(room: StoreRoom) -> None:
    """Waiting begins when the submission is complete, whatever times its files have."""
    room.make("old", mtime=0.0)
    began = clock.wall()
    async with room.opened() as store:
        await store.scan()
        assert began <= (await store.get("old")).queued_at <= clock.wall()


async def test_a_history_stays_short_and_keeps_every_end(room: StoreRoom) -> None:
    """A cloud without capacity for a month must not fill the disk; what a submission came to is never dropped."""
    room.make("one")
    async with room.opened() as store:
        await store.scan()
        ended = await run_to_its_end(store, "one")
        await store.requeue(ended.id)
        for _ in range(TRANSITIONS_KEPT):
            claimed = await store.claim()
            assert claimed is not None
            await store.release(claimed.id)
        states = [state for state, _ in await store.history(ended.id)]
    assert states[:2] == [SubmissionState.TESTED, SubmissionState.SCORED]
    assert len(states) == TRANSITIONS_KEPT + 1 + 2
    assert set(states[2:]) == {SubmissionState.NEW, SubmissionState.SENT_TO_TRAINING}
