"""An event that another dispatcher served: what is taken over, and when."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from rampd import ramp_test
from rampd.errors import BadResultsError
from rampd.models import StepScore
from rampd.states import SubmissionState
from rampd.stores.adoption import find_adoption
from support.training_output import build_training_output

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Scores
    from rampd.stores.adoption import Adoption
    from support.store_room import StoreRoom

    Record = dict[str, Any]

_SCORES: Scores = {"acc": {"valid": StepScore(0.9, 0.1, 0.95)}}


def scored(room: StoreRoom, name: str, *, at: float) -> None:
    """Leave a submission with predictions."""
    room.make(name)
    folder = room.predictions / name
    folder.mkdir(parents=True)
    (folder / "scores.csv").touch()
    os.utime(folder, (at, at))


def failed(room: StoreRoom, name: str, *, at: float) -> None:
    """Leave a submission with a log only."""
    room.make(name)
    log = room.logs / name / "log"
    log.parent.mkdir(parents=True)
    log.touch()
    os.utime(log, (at, at))


def read_scores(predictions: Path) -> Scores:
    """Return the same figures for whatever can be read."""
    if predictions.name == "unreadable":
        raise BadResultsError("no folds")
    if predictions.name == "vanished":
        raise FileNotFoundError
    return _SCORES


def found(room: StoreRoom) -> Adoption:
    """Look, and expect something."""
    adoption = find_adoption(room.submissions, room.predictions, room.logs, "starting_kit", read_scores)
    assert adoption is not None
    return adoption


def adopted(records: list[Record]) -> list[tuple[int, int, int]]:
    """Return what was said to be taken over: scored, training_error, new."""
    return [(one["scored"], one["training_error"], one["new"]) for one in records if one["event"] == "event.adopted"]


@pytest.mark.parametrize("folders", ["missing", "empty", "hidden"])
def test_a_fresh_event_is_not_adopted(room: StoreRoom, folders: str) -> None:
    """Without predictions or logs nobody was there before, whatever was submitted."""
    room.make("new")
    if folders != "missing":
        room.predictions.mkdir()
        room.logs.mkdir()
    if folders == "hidden":
        (room.logs / ".gitkeep").touch()
    assert find_adoption(room.submissions, room.predictions, room.logs, "starting_kit", None) is None


def test_folders_say_what_became_of_each(room: StoreRoom) -> None:
    """Predictions mean scored, a log alone training_error, neither new; in the order in which they ended."""
    scored(room, "late", at=3000.0)
    failed(room, "early", at=1000.0)
    scored(room, "middle", at=2000.0)
    room.make("new")
    adoption = found(room)
    assert [(one.name, one.state, one.finished_at) for one in adoption.finished] == [
        ("early", SubmissionState.TRAINING_ERROR, 1000.0),
        ("middle", SubmissionState.SCORED, 2000.0),
        ("late", SubmissionState.SCORED, 3000.0),
    ]
    assert (adoption.scored, adoption.training_error, adoption.new) == (2, 1, 1)


def test_a_log_beside_predictions_is_no_failure(room: StoreRoom) -> None:
    """What ended well has a log too."""
    scored(room, "good", at=1.0)
    (room.logs / "good").mkdir(parents=True)
    (room.logs / "good" / "log").touch()
    assert (found(room).scored, found(room).training_error) == (1, 0)


def test_empty_folders_say_nothing(room: StoreRoom) -> None:
    """An empty folder of predictions, or one for a log without one, leaves a submission new."""
    scored(room, "good", at=1.0)
    for name in ("half", "less"):
        room.make(name)
    (room.predictions / "half").mkdir()
    (room.logs / "less").mkdir(parents=True)
    assert (found(room).scored, found(room).training_error, found(room).new) == (1, 0, 2)


def test_what_is_no_submission_is_not_adopted(room: StoreRoom) -> None:
    """Predictions without a submission, the sandbox, hidden and refused things are left alone."""
    scored(room, "good", at=1.0)
    for name in ("starting_kit", ".hidden", "bad name"):
        scored(room, name, at=1.0)
    (room.predictions / "orphan").mkdir()
    (room.submissions / "file").touch()
    adoption = found(room)
    assert [one.name for one in adoption.finished] == ["good"]
    assert adoption.new == 0


@pytest.mark.parametrize("name", ["unreadable", "vanished"])
def test_unreadable_predictions_count_without_scores(room: StoreRoom, name: str) -> None:
    """They were good once: the submission is not run again for it."""
    scored(room, name, at=1.0)
    (one,) = found(room).finished
    assert one.state is SubmissionState.SCORED
    assert one.scores == {}


@pytest.mark.parametrize("name", ["fold_0/state.txt", "fold_0/y_pred_test.npz", "bagged_scores.csv"])
def test_predictions_with_a_fifo_are_not_waited_for(room: StoreRoom, name: str) -> None:
    """A dispatcher that fetches with rsync keeps what a participant made; nobody writes to it any more."""
    room.make("one")
    predictions = room.predictions / "one"
    build_training_output(predictions)
    (predictions / name).unlink(missing_ok=True)
    os.mkfifo(predictions / name)
    adoption = find_adoption(room.submissions, room.predictions, room.logs, "starting_kit", ramp_test.read_scores)
    assert adoption is not None
    assert [(one.state, one.scores) for one in adoption.finished] == [(SubmissionState.SCORED, {})]


def test_a_missing_submissions_dir_is_an_empty_one(room: StoreRoom) -> None:
    """Whoever cleaned up the submissions has nothing to take over."""
    room.submissions.rmdir()
    (room.predictions / "old").mkdir(parents=True)
    assert found(room).finished == []


async def test_the_first_start_takes_over(room: StoreRoom, log_records: list[Record]) -> None:
    """What has ended is there with state, time and scores, what has not is queued; one record says how many."""
    scored(room, "good", at=2000.0)
    failed(room, "bad", at=1000.0)
    room.make("new")
    async with room.opened(read_scores=read_scores) as store:
        await store.scan()
        await store.scan()
        good, bad = await store.get("good"), await store.get("bad")
        assert (good.state, good.state_at) == (SubmissionState.SCORED, 2000.0)
        assert (bad.state, bad.state_at) == (SubmissionState.TRAINING_ERROR, 1000.0)
        assert bad.id < good.id
        assert await store.scores() == {good.id: _SCORES}
        assert await store.history(good.id) == [(SubmissionState.SCORED, 2000.0)]
        claimed = await store.claim()
        assert claimed is not None
        assert claimed.name == "new"
        assert await store.claim() is None
    assert adopted(log_records) == [(1, 1, 1)]


async def test_what_was_adopted_can_be_run_again(room: StoreRoom) -> None:
    """A retry queues it behind what waits."""
    scored(room, "good", at=1.0)
    room.make("new")
    async with room.opened(read_scores=read_scores) as store:
        await store.scan()
        await store.requeue((await store.get("good")).id)
        assert [one.name for one in await store.list([SubmissionState.NEW])] == ["new", "good"]


async def test_what_was_adopted_has_not_changed(room: StoreRoom, log_records: list[Record]) -> None:
    """A look after the adoption finds the folders as they were; a later change is one."""
    scored(room, "good", at=1.0)
    async with room.opened(read_scores=read_scores) as store:
        await store.scan()
        assert "submission.changed" not in [record["event"] for record in log_records]
        (room.submissions / "good" / "more.py").touch()
        await store.scan()
        assert "submission.changed" in [record["event"] for record in log_records]


@pytest.mark.parametrize("was_served_before", [True, False])
async def test_only_the_very_first_start_takes_over(
    room: StoreRoom, log_records: list[Record], *, was_served_before: bool
) -> None:
    """Predictions that turn up later are our own, or nobody's: they make nothing scored."""
    if was_served_before:
        scored(room, "first", at=1.0)
    async with room.opened(read_scores=read_scores) as store:
        await store.scan()
    count = len(adopted(log_records))
    scored(room, "later", at=1.0)
    for _ in range(2):
        async with room.opened(read_scores=read_scores) as store:
            assert await store.preview_adoption() is None
            await store.scan()
            assert (await store.get("later")).state is SubmissionState.NEW
    assert len(adopted(log_records)) == count == int(was_served_before)


async def test_a_preview_writes_nothing(room: StoreRoom, log_records: list[Record]) -> None:
    """What a first start would take over can be seen beforehand, and is still to be taken over."""
    scored(room, "good", at=1.0)
    room.make("new")
    async with room.opened(read_scores=read_scores) as store:
        for _ in range(2):
            preview = await store.preview_adoption()
            assert preview is not None
            assert (preview.scored, preview.training_error, preview.new) == (1, 0, 1)
        assert await store.list() == []
        assert log_records == []
        await store.scan()
        assert (await store.get("good")).state is SubmissionState.SCORED
