"""The contract that every store keeps."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.errors import TransitionRefusedError, UnknownSubmissionError
from rampd.models import StepScore
from rampd.states import TRANSITIONS, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from rampd.models import Scores
    from rampd.stores.base import SubmissionStore

    Write = Callable[[SubmissionStore, int], Awaitable[None]]

SCORES: Scores = {
    "acc": {
        "train": StepScore(0.97, 0.01, None),
        "valid": StepScore(0.1 + 0.2, 0.0, 0.95),
        "test": StepScore(1 / 3, 5e-324, 1.7976931348623157e308),
    },
    "nll": {
        "train": StepScore(math.inf, math.nan, None),
        "valid": StepScore(-math.inf, math.nan, math.nan),
        "test": StepScore(math.nan, 0.0, -math.inf),
    },
}
"""Figures that are hard to keep: infinities, NaN, the smallest and the largest double."""

_WAY = (
    SubmissionState.SENT_TO_TRAINING,
    SubmissionState.TRAINING,
    SubmissionState.TESTED,
    SubmissionState.SCORED,
)
_MESSAGE = "Traceback: é \N{SNOWMAN}\n  line 2"

_WRITES: dict[SubmissionState, Write] = {
    SubmissionState.NEW: lambda store, number: store.release(number),
    SubmissionState.TRAINING: lambda store, number: store.set_training(number),
    SubmissionState.TESTED: lambda store, number: store.set_tested(number),
    SubmissionState.SCORED: lambda store, number: store.set_scored(number, SCORES),
    SubmissionState.TRAINING_ERROR: lambda store, number: store.set_failed(
        number, SubmissionState.TRAINING_ERROR, _MESSAGE
    ),
    SubmissionState.CHECKING_ERROR: lambda store, number: store.set_failed(
        number, SubmissionState.CHECKING_ERROR, _MESSAGE
    ),
}
"""What brings a submission into each state, `claim` apart."""


class StoreContract(ABC):
    """What every store promises. Subclass it in a test module, and give it the two hooks."""

    pytestmark = pytest.mark.asyncio

    @abstractmethod
    def open_store(self, root: Path) -> AbstractAsyncContextManager[SubmissionStore]:
        """Give an open store without submissions, whose files lie below `root`; close it afterwards."""

    @abstractmethod
    async def add(self, store: SubmissionStore, name: str) -> None:
        """Have the store take a new submission, with a folder of that name, as its latest one."""

    async def _at(self, store: SubmissionStore, name: str, state: SubmissionState) -> int:
        """Add a submission, bring it into a state, and return its id. It must be the only one that waits."""
        await self.add(store, name)
        number = (await store.get(name)).id
        if state is SubmissionState.NEW:
            return number
        claimed = await store.claim()
        assert claimed is not None
        assert claimed.name == name
        if state is SubmissionState.SENT_TO_TRAINING:
            return number
        await store.set_training(number)
        if state in (SubmissionState.TESTED, SubmissionState.SCORED):
            await store.set_tested(number)
        await _WRITES[state](store, number)
        return number

    async def test_claims_in_the_order_of_arrival(self, tmp_path: Path) -> None:
        """The oldest submission goes first, whatever its name, and then there is none."""
        async with self.open_store(tmp_path) as store:
            for name in ("c", "a", "b"):
                await self.add(store, name)
            claimed = [await store.claim() for _ in range(4)]
            assert [one.name if one else None for one in claimed] == ["c", "a", "b", None]
            assert {one.state for one in claimed if one} == {SubmissionState.SENT_TO_TRAINING}

    async def test_a_claim_skips_what_it_is_told_to(self, tmp_path: Path) -> None:
        """A skipped submission keeps waiting, at the head of the queue."""
        async with self.open_store(tmp_path) as store:
            await self.add(store, "first")
            await self.add(store, "second")
            first = await store.get("first")
            second = await store.claim(skip=[first.id])
            assert second is not None
            assert second.name == "second"
            assert await store.claim(skip={first.id}) is None
            assert await store.claim() is not None

    async def test_two_claims_never_give_the_same(self, tmp_path: Path) -> None:
        """Claims at the same time share the queue out, each submission once."""
        async with self.open_store(tmp_path) as store:
            names = [f"s{number}" for number in range(8)]
            for name in names:
                await self.add(store, name)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(store.claim()) for _ in range(12)]
            claimed = [one.name for task in tasks if (one := task.result())]
            assert sorted(claimed) == names

    async def test_a_claim_forgets_what_is_gone(self, tmp_path: Path) -> None:
        """A submission whose folder went is passed over, and never heard of again."""
        async with self.open_store(tmp_path) as store:
            await self.add(store, "gone")
            await self.add(store, "there")
            gone = await store.get("gone")
            for file in store.submission_dir(gone).iterdir():
                file.unlink()
            store.submission_dir(gone).rmdir()
            claimed = await store.claim()
            assert claimed is not None
            assert claimed.name == "there"
            with pytest.raises(UnknownSubmissionError):
                await store.get("gone")
            await store.set_training(gone.id)
            assert sum((await store.counts()).values()) == 1

    async def test_a_claim_by_name_passes_the_queue(self, tmp_path: Path) -> None:
        """The operator's choice is taken whatever its place, and only while it is new."""
        async with self.open_store(tmp_path) as store:
            for name in ("first", "chosen", "last"):
                await self.add(store, name)
            chosen = await store.claim_named("chosen")
            assert chosen is not None
            assert (chosen.name, chosen.state) == ("chosen", SubmissionState.SENT_TO_TRAINING)
            assert await store.claim_named("chosen") is None
            assert [one.name for one in await store.list([SubmissionState.NEW])] == ["first", "last"]
            with pytest.raises(UnknownSubmissionError):
                await store.claim_named("missing")

    async def test_release_keeps_the_place(self, tmp_path: Path) -> None:
        """What is put back runs before those that came after it."""
        async with self.open_store(tmp_path) as store:
            await self.add(store, "first")
            await self.add(store, "second")
            first = await store.get("first")
            for is_running in (False, True):
                assert await store.claim() is not None
                if is_running:
                    await store.set_training(first.id)
                await store.release(first.id)
                waiting = await store.list([SubmissionState.NEW])
                assert [one.name for one in waiting] == ["first", "second"]
                assert waiting[0].queued_at == first.queued_at

    async def test_release_unheld_puts_back_what_nobody_holds(self, tmp_path: Path) -> None:
        """Claimed, running and tested submissions that are not held wait again; all others stay as they are."""
        async with self.open_store(tmp_path) as store:
            ids = {str(state): await self._at(store, str(state), state) for state in _WAY}
            held = await self._at(store, "held", SubmissionState.TRAINING)
            released = await store.release_unheld({held})
            assert {one.name for one in released} == {"sent_to_training", "training", "tested"}
            assert {one.state for one in released} == {SubmissionState.NEW}
            states = {one.name: one.state for one in await store.list()}
            assert states.pop("held") is SubmissionState.TRAINING
            assert states == {
                "sent_to_training": SubmissionState.NEW,
                "training": SubmissionState.NEW,
                "tested": SubmissionState.NEW,
                "scored": SubmissionState.SCORED,
            }
            assert await store.release_unheld([held]) == []
            assert ids["scored"] in await store.scores()

    @pytest.mark.parametrize("state", list(_WRITES))
    async def test_a_write_is_legal_or_refused(self, tmp_path: Path, state: SubmissionState) -> None:
        """From each state a write does what the table of transitions says; a refused one changes nothing."""
        async with self.open_store(tmp_path) as store:
            for before in (*(one for one in SubmissionState if one is not SubmissionState.NEW), SubmissionState.NEW):
                number = await self._at(store, str(before), before)
                found = await store.get(str(before))
                if before is state or (state in TRANSITIONS[before] and not before.is_final):
                    await _WRITES[state](store, number)
                    assert (await store.get(str(before))).state is state
                else:
                    with pytest.raises(TransitionRefusedError, match=state.value) as caught:
                        await _WRITES[state](store, number)
                    assert (caught.value.submission_id, caught.value.before, caught.value.after) == (
                        number,
                        before,
                        state,
                    )
                    assert await store.get(str(before)) == found
                if (await store.get(str(before))).state is SubmissionState.NEW:
                    assert await store.claim() is not None

    @pytest.mark.parametrize("state", list(_WRITES))
    async def test_a_repeated_write_changes_nothing(self, tmp_path: Path, state: SubmissionState) -> None:
        """What was written before a crash and is written again leaves no second trace."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", state)
            found, history = await store.get("one"), await store.history(number)
            await _WRITES[state](store, number)
            assert await store.get("one") == found
            assert await store.history(number) == history

    async def test_the_first_message_of_a_failure_stands(self, tmp_path: Path) -> None:
        """A failure that is said twice keeps what was said first."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", SubmissionState.TRAINING_ERROR)
            await store.set_failed(number, SubmissionState.TRAINING_ERROR, "something else")
            assert (await store.get("one")).error_msg == _MESSAGE

    async def test_a_failure_drops_older_scores(self, tmp_path: Path) -> None:
        """Scores of an earlier run do not outlive a later one's failure."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", SubmissionState.SCORED)
            await store.requeue(number)
            assert await store.claim() is not None
            await store.set_training(number)
            await store.set_failed(number, SubmissionState.TRAINING_ERROR, _MESSAGE)
            assert await store.scores() == {}

    @pytest.mark.parametrize(
        "state", [SubmissionState.SCORED, SubmissionState.TRAINING_ERROR, SubmissionState.CHECKING_ERROR]
    )
    async def test_requeue_goes_to_the_end(self, tmp_path: Path, state: SubmissionState) -> None:
        """What is tried again runs last, and has neither message nor scores; asked twice, it is queued once."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "again", state)
            ended = await store.get("again")
            await self.add(store, "waiting")
            await store.requeue(number)
            queued = await store.get("again")
            await self.add(store, "later")
            await store.requeue(number)
            assert [one.name for one in await store.list([SubmissionState.NEW])] == ["waiting", "again", "later"]
            assert await store.get("again") == queued
            assert queued.error_msg == ""
            assert queued.queued_at >= ended.state_at
            assert await store.scores() == {}

    @pytest.mark.parametrize("state", _WAY[:3])
    async def test_requeue_is_for_what_has_ended(self, tmp_path: Path, state: SubmissionState) -> None:
        """A submission that is on its way cannot be queued once more."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", state)
            with pytest.raises(TransitionRefusedError):
                await store.requeue(number)
            assert (await store.get("one")).state is state

    async def test_get_names_the_nearest(self, tmp_path: Path) -> None:
        """An unknown name is an error that says what it may have meant; one that is no text is an error too."""
        async with self.open_store(tmp_path) as store:
            await self.add(store, "good_forest")
            with pytest.raises(UnknownSubmissionError, match="did you mean good_forest"):
                await store.get("good_forst")
            with pytest.raises(UnknownSubmissionError) as caught:
                await store.get("\udcff")
            assert caught.value.name == "\udcff"

    async def test_list_has_an_order(self, tmp_path: Path) -> None:
        """Those that wait come as they will run, the others by id; states select."""
        async with self.open_store(tmp_path) as store:
            scored = await self._at(store, "scored", SubmissionState.SCORED)
            failed = await self._at(store, "failed", SubmissionState.CHECKING_ERROR)
            again = await self._at(store, "again", SubmissionState.TRAINING_ERROR)
            await self.add(store, "first")
            await self.add(store, "second")
            await store.requeue(again)
            waiting = [SubmissionState.NEW]
            others = [state for state in SubmissionState if state is not SubmissionState.NEW]
            assert [one.name for one in await store.list(waiting)] == ["first", "second", "again"]
            assert [one.id for one in await store.list(others)] == [scored, failed]
            assert len(await store.list()) == 5
            assert await store.list([]) == []

    async def test_counts_are_total(self, tmp_path: Path) -> None:
        """Every state is counted, those that nobody is in as 0."""
        async with self.open_store(tmp_path) as store:
            assert await store.counts() == dict.fromkeys(SubmissionState, 0)
            await self._at(store, "scored", SubmissionState.SCORED)
            await self.add(store, "first")
            await self.add(store, "second")
            expected = dict.fromkeys(SubmissionState, 0)
            expected |= {SubmissionState.SCORED: 1, SubmissionState.NEW: 2}
            assert await store.counts() == expected

    async def test_history_has_every_transition(self, tmp_path: Path) -> None:
        """Each transition is kept with its time, oldest first; the last is the submission's present state."""
        async with self.open_store(tmp_path) as store:
            began = clock.wall()
            number = await self._at(store, "one", SubmissionState.SCORED)
            await store.requeue(number)
            history = await store.history(number)
            assert [state for state, _ in history] == [SubmissionState.NEW, *_WAY, SubmissionState.NEW]
            times = [at for _, at in history]
            assert times == sorted(times)
            assert began <= times[0] <= times[-1] <= clock.wall()
            assert (await store.get("one")).state_at == times[-1]
            assert list(await store.history(number + 1)) == []

    async def test_scores_are_kept_as_they_are(self, tmp_path: Path) -> None:
        """Every double comes back as it was, NaN and infinities too."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", SubmissionState.SCORED)
            plain = await self._at(store, "plain", SubmissionState.TESTED)
            await store.set_scored(plain, {})
            found = await store.scores()
            assert repr(found) == repr({number: SCORES, plain: {}})

    async def test_scores_of_one_are_its_own(self, tmp_path: Path) -> None:
        """One that has none, that lost them to a retry, or that nobody knows has no scores."""
        async with self.open_store(tmp_path) as store:
            number = await self._at(store, "one", SubmissionState.SCORED)
            plain = await self._at(store, "plain", SubmissionState.TESTED)
            assert [await store.scores_of(one) for one in (plain, number + 100)] == [{}, {}]
            assert repr(await store.scores_of(number)) == repr((await store.scores())[number])
            await store.requeue(number)
            assert await store.scores_of(number) == {}

    async def test_changed_says_what_became_claimable(self, tmp_path: Path) -> None:
        """An arrival, a release and a retry each wake the dispatcher."""
        async with self.open_store(tmp_path) as store:
            await self.add(store, "one")
            assert store.changed.is_set()
            number = (await store.get("one")).id
            assert await store.claim() is not None
            store.changed.clear()
            await store.release(number)
            assert store.changed.is_set()
            assert await store.claim() is not None
            store.changed.clear()
            await store.release_unheld([])
            assert store.changed.is_set()
            assert await store.claim() is not None
            await store.set_failed(number, SubmissionState.CHECKING_ERROR, _MESSAGE)
            store.changed.clear()
            await store.requeue(number)
            assert store.changed.is_set()

    async def test_a_watch_looks_at_everything_first(self, tmp_path: Path) -> None:
        """`scanned` is set once a watch has looked, and a watch ends when it is cancelled, and only then."""
        async with self.open_store(tmp_path) as store:
            assert not store.scanned.is_set()
            watching = asyncio.ensure_future(store.watch())
            async with asyncio.timeout(10):
                await store.scanned.wait()
            assert not watching.done()
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
            assert store.settling == 0
