"""Every store keeps the contract."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.board_config import SqlalchemySection
from rampd.errors import StoreError, SupersededError, TransitionRefusedError
from rampd.models import Figures, FoldFigures
from rampd.states import FINAL_STATES, SubmissionState
from rampd.stores.board_sql import Statements
from rampd.stores.directory import DirectoryStore
from rampd.stores.rampboard import RampBoardStore
from rampd.testing import InMemoryStore, StoreContract
from rampd.testing.stores import SCORES
from support.board import EVENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rampd.stores.base import SubmissionStore
    from support.board import Board


class TestInMemoryStore(StoreContract):
    """The fake that dispatcher tests lean on is as strict as the real one."""

    @asynccontextmanager
    async def open_store(self, root: Path) -> AsyncIterator[SubmissionStore]:
        """Give one whose folders are made as submissions are added."""
        yield InMemoryStore(root / "submissions")

    async def add(self, store: SubmissionStore, name: str) -> None:
        """Tell it."""
        assert isinstance(store, InMemoryStore)
        store.add(name)


class TestDirectoryStore(StoreContract):
    """The embedded store, on a file of its own."""

    @asynccontextmanager
    async def open_store(self, root: Path) -> AsyncIterator[SubmissionStore]:
        """Give one that takes a folder as soon as it sees it."""
        self.submissions_dir = root / "submissions"
        self.submissions_dir.mkdir()
        store = DirectoryStore(
            root / "submissions.sqlite3",
            submissions_dir=self.submissions_dir,
            predictions_dir=root / "predictions",
            logs_dir=root / "logs",
            settle_time_s=0.0,
        )
        async with AsyncExitStack() as stack:
            await store.open(stack)
            yield store

    async def add(self, store: SubmissionStore, name: str) -> None:
        """Make its folder, and have it found."""
        folder = self.submissions_dir / name
        folder.mkdir()
        (folder / "estimator.py").touch()
        await store.scan()


class ByTitle(RampBoardStore):
    """The board's store, but a submission's name is its title in the board: the contract's names are no numbers."""

    titles: dict[int, str]

    def _name_of(self, submission_id: int) -> str:
        return self.titles[submission_id]

    def _id_of(self, name: str) -> int | None:
        return next((number for number, title in self.titles.items() if title == name), None)


def _figures(_: Path) -> Figures:
    """Return the folds and bags whose summary is the contract's SCORES, as far as a fold can have it."""
    folds = [{name: {step: one.mean for step, one in steps.items()} for name, steps in SCORES.items()}]
    bags = {
        name: {step: [one.bagged] for step, one in steps.items() if one.bagged is not None}
        for name, steps in SCORES.items()
    }
    return Figures([FoldFigures(scores, {"train": 1.0, "valid": 0.5}) for scores in folds * 2], bags)


class TestRampBoardStore(StoreContract):
    """The RAMP board's PostgreSQL."""

    @pytest.fixture(autouse=True)
    def _on(self, board: Board) -> None:
        self.board = board

    @asynccontextmanager
    async def open_store(self, root: Path) -> AsyncIterator[SubmissionStore]:
        """Give one on a board of its own."""
        store = ByTitle(
            SqlalchemySection.model_validate(self.board.section),
            event_name=EVENT,
            submissions_dir=self.board.deployment.submissions,
            predictions_dir=root / "predictions",
            state_dir=root / "state",
            read_figures=_figures,
        )
        store.titles = {}
        async with AsyncExitStack() as stack:
            await store.open(stack)
            yield store

    async def add(self, store: SubmissionStore, name: str) -> None:
        """Add its rows as ramp_database does, and a folder."""
        assert isinstance(store, ByTitle)
        (number,) = self.board.insert(name)
        store.titles[number] = name
        folder = self.board.deployment.submissions
        (folder / f"submission_{number:09d}").rename(folder / name)
        await store.scan()

    async def test_a_claim_forgets_what_is_gone(self, tmp_path: Path) -> None:
        """Where another program's rows are concerned it is passed over instead, and taken once it is there."""
        async with self.open_store(tmp_path) as store:
            await self.add(store, "gone")
            await self.add(store, "there")
            folder = store.submission_dir(await store.get("gone"))
            away = folder.rename(tmp_path / "away")
            claimed = [await store.claim(), await store.claim()]
            assert [one and one.name for one in claimed] == ["there", None]
            assert (await store.get("gone")).state is SubmissionState.NEW
            away.rename(folder)
            back = await store.claim()
            assert back is not None
            assert back.name == "gone"

    async def test_a_lease_that_another_has_is_lost(self, tmp_path: Path) -> None:
        """A renewal tells: what was claimed elsewhere meanwhile, and what is still this daemon's."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            await self.add(store, "lost")
            await self.add(store, "kept")
            lost, kept = await store.claim(), await store.claim()
            assert lost is not None
            assert kept is not None
            take = "UPDATE rampd_leases SET owner = 'another', attempt = attempt + 1 WHERE submission_id = %s"
            self.board.query(take, [lost.id])
            await store.board.holding.renew()
            assert (store.is_lost(lost.id), store.is_lost(kept.id)) == (True, False)
            with pytest.raises(SupersededError):
                await store.confirm(lost.id)
            with pytest.raises(SupersededError):
                await store.set_training(lost.id)
            await store.release(lost.id)
            assert (await store.get("lost")).state is SubmissionState.SENT_TO_TRAINING
            await store.confirm(kept.id)
            await store.set_training(kept.id)

    async def test_what_runs_here_is_taken_back_from_the_queue(self, tmp_path: Path) -> None:
        """Put back by another daemon while this one was cut off, and claimed by nobody: it is running after all."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            number = await self._at(store, "one", SubmissionState.TRAINING)
            self.board.query("UPDATE submissions SET state = 'new'")
            self.board.query("UPDATE rampd_leases SET expires_at = NULL")
            store.board.holding.hold(number, 1, asked_at=clock.boottime() - 61)
            await store.board.holding.renew()
            assert (await store.get("one")).state is SubmissionState.TRAINING
            assert not store.is_lost(number)
            assert self.board.query("SELECT DISTINCT state FROM submissions WHERE name = 'starting_kit'") == [("new",)]

    async def test_no_lease_is_kept_of_what_was_moved_by_hand(self, tmp_path: Path) -> None:
        """Whoever ended it on the board, and puts it back there, has it run by whichever daemon is free."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            number = await self._at(store, "one", SubmissionState.TRAINING)
            self.board.query("UPDATE submissions SET state = 'training_error' WHERE id = %s", [number])
            with pytest.raises(TransitionRefusedError, match="is training_error and cannot become tested"):
                await store.set_tested(number)
            assert store.board.holding.held == []

    async def test_a_lock_that_is_away_is_an_outage(self, tmp_path: Path) -> None:
        """Without leases, what cannot be written while the event's lock is not held is not refused: it is repeated."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            number = await self._at(store, "one", SubmissionState.TRAINING)
            store.board.holding.statements = Statements(leased=False)
            with pytest.raises(StoreError, match="does not hold it") as caught:
                await store.set_tested(number)
            assert not isinstance(caught.value, TransitionRefusedError)
            assert (await store.get("one")).state is SubmissionState.TRAINING

    async def test_what_was_tested_here_is_scored_all_the_same(self, tmp_path: Path) -> None:
        """Put back by another daemon while this one was cut off before its scores, and taken back: they are written."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            number = await self._at(store, "one", SubmissionState.TESTED)
            self.board.query("UPDATE submissions SET state = 'new' WHERE id = %s", [number])
            self.board.query("UPDATE rampd_leases SET expires_at = NULL")
            store.board.holding.hold(number, 1, asked_at=clock.boottime() - 61)
            await store.board.holding.renew()
            assert (await store.get("one")).state is SubmissionState.TESTED
            await store.set_scored(number, SCORES)
            assert (await store.get("one")).state is SubmissionState.SCORED

    @pytest.mark.parametrize("state", sorted(FINAL_STATES))
    async def test_a_late_renewal_leases_nothing_that_has_ended(self, tmp_path: Path, state: SubmissionState) -> None:
        """One that was sent before an end was written, and done after it, is no new lease and no loss."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            number = await self._at(store, "one", state)
            store.board.holding.hold(number, 1, asked_at=clock.boottime())
            await store.board.holding.renew()
            assert not store.is_lost(number)
            assert self.board.query("SELECT expires_at FROM rampd_leases") == [(None,)]

    async def test_what_a_dead_host_had_tested_waits_again(self, tmp_path: Path) -> None:
        """A host that dies for good between `tested` and `scored` leaves nothing that nobody would ever end."""
        async with self.open_store(tmp_path / "dead") as store:
            number = await self._at(store, "one", SubmissionState.TESTED)
        with self.board.after_a_minute():
            async with self.open_store(tmp_path / "other") as other:
                assert isinstance(other, ByTitle)
                other.titles = {number: "one"}
                await other.scan()
                assert (await other.get("one")).state is SubmissionState.NEW
                claimed = await other.claim()
                assert claimed is not None
                assert claimed.id == number

    async def test_what_another_dispatcher_had_tested_stays(self, tmp_path: Path) -> None:
        """Without a lease it may be years old: it is neither put back nor run."""
        async with self.open_store(tmp_path) as store:
            await self._at(store, "one", SubmissionState.TESTED)
            self.board.query("DELETE FROM rampd_leases")
            await store.scan()
            assert await store.release_unheld([]) == []
            assert (await store.get("one")).state is SubmissionState.TESTED

    async def test_a_claim_that_nobody_heard_of_is_put_back(self, tmp_path: Path) -> None:
        """A claim that was made, and whose answer was lost with the connection, waits again after half a minute."""
        async with self.open_store(tmp_path) as store:
            assert isinstance(store, ByTitle)
            await self.add(store, "lost")
            await self.add(store, "held")
            lost, held = await store.claim(), await store.claim()
            assert lost is not None
            assert held is not None
            store.board.holding.let_go(lost.id)
            await store.scan()
            assert (await store.get("lost")).state is SubmissionState.SENT_TO_TRAINING
            self.board.query("UPDATE rampd_leases SET state_at = state_at - interval '31 s'")
            await store.scan()
            assert (await store.get("lost")).state is SubmissionState.NEW
            assert (await store.get("held")).state is SubmissionState.SENT_TO_TRAINING
            again = await store.claim()
            assert again is not None
            assert again.id == lost.id

    async def test_scores_are_kept_as_they_are(self, tmp_path: Path) -> None:
        """Every double comes back as it was, NaN and infinities too; mean and std are those of the board's folds."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", SubmissionState.SCORED)
            (found,) = (await store.scores()).values()
            assert list(await store.scores()) == [number]
            for name, steps in SCORES.items():
                for step, figures in steps.items():
                    assert repr(found[name][step].mean) == repr(figures.mean)
                    assert repr(found[name][step].bagged) == repr(figures.bagged)
