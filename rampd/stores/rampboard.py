"""The RAMP board's database as the store: submissions arrive through ramp-frontend, and its pages show the results.

`RampBoardStore` keeps the contract of stores on ramp-database's own tables; `board_sql` has the statements,
`board_holding` says what is ours, `board_leaderboards` has the pages built. A submission's name here is its folder's,
`submission_%09d` of its id. A team's sandbox is a row like the others that is never listed, counted or run.
"""

from __future__ import annotations

import asyncio
import difflib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from rampd import clock, ramp_test
from rampd.errors import BadResultsError, SubmissionRefusedError, SupersededError, UnknownSubmissionError
from rampd.models import Figures, Submission
from rampd.states import FINAL_STATES, TRANSITIONS, SubmissionState
from rampd.stores.base import SubmissionStore
from rampd.stores.board_arrays import stored_none
from rampd.stores.board_event import BoardEvent
from rampd.stores.board_figures import bulk_parameters, by_submission
from rampd.stores.board_folders import BoardFolders
from rampd.stores.board_states import id_of, mib_of, name_of, state_of, words_of
from rampd.stores.board_tables import FORGET_GONE
from rampd.stores.board_watch import BoardWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.board_config import SqlalchemySection
    from rampd.models import Scores
    from rampd.stores.board_database import Row
    from rampd.stores.board_leaderboards import Leaderboards

log = structlog.get_logger("rampd.stores.rampboard")

_CLAIM_TRIES = 50
_LOCKED_S = 0.02


class RampBoardStore(SubmissionStore):
    """Submissions of one event, as rows of the RAMP board.

    Parameters
    ----------
    section
        Where the database is.
    event_name
        The event's name in it.
    submissions_dir
        Where ramp-frontend puts submissions; never written to.
    predictions_dir
        Where checked predictions lie once a submission is tested: its figures are read from there.
    state_dir
        Keeps this daemon's name on the board.
    only_while_open
        Claim nothing before the event's opening and after its closing.
    leaderboards
        Has pages built; None for none.
    read_figures
        Reads predictions.
    """

    _name_of = staticmethod(name_of)
    _id_of = staticmethod(id_of)

    def __init__(
        self,
        section: SqlalchemySection,
        *,
        event_name: str,
        submissions_dir: Path,
        predictions_dir: Path,
        state_dir: Path,
        only_while_open: bool = False,
        leaderboards: Leaderboards | None = None,
        read_figures: Callable[[Path], Figures] = ramp_test.read_figures,
    ) -> None:
        self.changed = asyncio.Event()
        self.board = BoardEvent(section, event_name, state_dir)
        self._holding = self.board.holding
        self._folders = BoardFolders(submissions_dir, self._name_of)
        self._predictions_dir = predictions_dir
        self._read_figures = read_figures
        self._leaderboards = leaderboards
        self._only_while_open = only_while_open
        self._watch = BoardWatch(
            self.board,
            name_of=self._name_of,
            on_found=self.changed.set,
            on_placed=partial(self._pages_changed, final=False),
        )
        self.scanned = self._watch.scanned

    @property
    def is_open(self) -> bool:
        """Whether the event is open, as of the last look."""
        return self.board.row.is_open

    @property
    def settling(self) -> int:
        """Nothing settles here: a row is complete when it is committed."""
        return 0

    def submission_dir(self, submission: Submission) -> Path:
        """Return the folder that ramp-frontend made."""
        return self._folders.path(submission.name)

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect and look whether the board is what it should be; see `SubmissionStore.open`. Writes nothing."""
        stack.callback(self._folders.close)
        await self.board.open(stack)
        if self._leaderboards is not None:
            stack.push_async_callback(self._close_pages, self._leaderboards)

    async def _close_pages(self, leaderboards: Leaderboards) -> None:
        # A daemon that ends with runs of its own left was told to end at once, or comes back soon.
        await leaderboards.close(build=not self._holding.held)

    async def prepare(self) -> None:
        """Make the tables of leases, or take the event's lock; see `SubmissionStore.prepare`."""
        await self._holding.prepare()

    async def scan(self) -> None:
        """Look once at what waits; one statement while nothing happens. See `SubmissionStore.scan`."""
        await self._watch.scan()

    async def watch(self) -> None:
        """Find submissions as they arrive; see `SubmissionStore.watch`."""
        await self._watch.run()

    def _pages_changed(self, *, final: bool) -> None:
        if self._leaderboards is not None:
            self._leaderboards.ask_for(final=final)

    # Claiming and putting back.

    async def claim(self, skip: Collection[int] = ()) -> Submission | None:
        """Take the oldest waiting submission; see `SubmissionStore.claim`.

        One whose folder is not there (yet) is passed over and stays `new`: the row is the board's, not ours to drop.
        """
        if self._only_while_open and not self.is_open:
            return None
        self._folders.expect_an_answer()
        await self._holding.prepare()
        may_look = True
        for _ in range(_CLAIM_TRIES):
            passed_over = [*skip, *self._folders.missing]
            submission = await self._claim(self._holding.statements.claim, skip=passed_over)
            if submission is not None:
                if await self._is_there(submission):
                    return submission
                continue
            if may_look and self._folders.missing:
                may_look = False
                if await self._folders.look():
                    continue
            (found,) = await self.board.ask(self._holding.statements.is_waiting, skip=passed_over)
            if not found["waits"]:
                return None
            await asyncio.sleep(_LOCKED_S)  # somebody had it locked: another claim, or a numbering of the queue
        return None

    async def _is_there(self, submission: Submission) -> bool:
        """Say whether the folder of a submission that was claimed is there; put the submission back if not."""
        is_there = False
        try:
            is_there = await self._folders.look(submission)
            if not is_there:
                self._folders.note_missing(submission)
        finally:
            if not is_there:
                # Let go first: if the database is away as well, the claim is one that nobody heard of.
                self._holding.let_go(submission.id)
                await self.release(submission.id)
        return is_there

    async def _claim(self, statement: str, **parameters: Any) -> Submission | None:
        asked_at = clock.boottime()
        rows = await self.board.ask(statement, **parameters)
        if not rows:
            return None
        submission = self._submission(rows[0])
        self._holding.hold(submission.id, rows[0].get("attempt"), asked_at=asked_at)
        self._watch.untidy()
        return submission

    async def claim_named(self, name: str) -> Submission | None:
        """Claim one; see `SubmissionStore.claim_named`."""
        await self._holding.prepare()
        submission_id = self._id_of(name)
        if submission_id is not None:
            rows = await self.board.ask(self._holding.statements.sandbox, id=submission_id)
            if rows and rows[0]["is_sandbox"]:
                raise SubmissionRefusedError("sandbox", f"{name!r} is a team's sandbox, which is never run")
        found = await self.get(name)
        if not await self._folders.look(found):
            raise SubmissionRefusedError("no_folder", f"{self.submission_dir(found)} is not there")
        return await self._claim(self._holding.statements.claim_one, id=found.id)

    async def release(self, submission_id: int) -> None:
        """Put back; see `SubmissionStore.release`. What another daemon has claimed meanwhile stays its own."""
        with suppress(SupersededError):
            await self._write(submission_id, SubmissionState.NEW)
        self._holding.let_go(submission_id)
        self._watch.untidy()
        self.changed.set()

    async def release_unheld(self, held: Collection[int]) -> Sequence[Submission]:
        """Put back what nobody holds; see `SubmissionStore.release_unheld`. Other daemons' leases are left alone."""
        await self._holding.prepare()
        if self._holding.is_leased:
            await self.board.ask(FORGET_GONE)
        for submission_id in held:
            await self._holding.recall(submission_id)
        if self._holding.is_leased:
            await self._holding.renew()
        rows = await self.board.ask(self._holding.statements.release_unheld, held=list(held))
        for row in rows:
            self._holding.let_go(row["id"])
        self._watch.untidy()
        self.changed.set()
        return [self._submission(row) for row in rows]

    def is_lost(self, submission_id: int) -> bool:
        """Say whether its lease is another's; see `SubmissionStore.is_lost`."""
        return submission_id in self._holding.lost

    async def confirm(self, submission_id: int) -> None:
        """Make sure that nobody else has claimed it; see `SubmissionStore.confirm`."""
        if self._holding.is_sure_of(submission_id):
            return
        await self._holding.prepare()
        if self._holding.is_leased:
            rows = await self.board.ask(self._holding.statements.whose, id=submission_id)
            if rows and not rows[0]["ours"] and rows[0]["state"] != SubmissionState.NEW:
                self._holding.let_go(submission_id)
                raise SupersededError(self._name_of(submission_id))

    # Outcomes.

    async def set_training(self, submission_id: int) -> None:
        """Say `training`; see `SubmissionStore.set_training`."""
        await self._write(submission_id, SubmissionState.TRAINING)
        self._pages_changed(final=False)

    async def set_tested(self, submission_id: int) -> None:
        """Say `tested`; see `SubmissionStore.set_tested`."""
        await self._write(submission_id, SubmissionState.TESTED)

    async def set_scored(self, submission_id: int, scores: Scores, *, max_rss_bytes: int | None = None) -> None:
        """Write times, scores and bags, and say `scored`, in one statement; see `SubmissionStore.set_scored`.

        The figures of folds and bags are read from the predictions. Where those have gone meanwhile, the last bags
        are all that is kept.
        """
        folder = self._predictions_dir / self._name_of(submission_id)
        try:
            figures = await asyncio.to_thread(self._read_figures, folder)
        except (BadResultsError, OSError) as error:
            log.warning("board.figures_missing", submission_id=submission_id, path=str(folder), error=str(error))
            figures = Figures((), {})
        await self._write(
            submission_id,
            SubmissionState.SCORED,
            max_ram=mib_of(max_rss_bytes),
            **bulk_parameters(figures, scores),
        )
        self._end(submission_id)

    async def set_failed(
        self, submission_id: int, state: SubmissionState, error_msg: str, *, max_rss_bytes: int | None = None
    ) -> None:
        """Say that it failed, and why; see `SubmissionStore.set_failed`."""
        # PostgreSQL's texts have neither NULs nor halves of characters.
        shown = error_msg.replace("\0", "").encode(errors="replace").decode()
        await self._write(submission_id, state, error_msg=shown, max_ram=mib_of(max_rss_bytes))
        self._end(submission_id)

    def _end(self, submission_id: int) -> None:
        self._holding.let_go(submission_id)
        self._watch.untidy()
        self._pages_changed(final=True)

    async def requeue(self, submission_id: int) -> None:
        """Put a submission that has ended at the end of the queue; see `SubmissionStore.requeue`."""
        await self._holding.prepare()
        rows = await self.board.ask(
            self._holding.statements.requeue, id=submission_id, before=words_of(FINAL_STATES), none=stored_none()
        )
        if rows and not rows[0]["moved"] and rows[0]["before"] != SubmissionState.NEW:
            raise self._holding.refused(submission_id, rows[0]["before"], SubmissionState.NEW, legal=FINAL_STATES)
        self._watch.untidy()
        self.changed.set()
        self._pages_changed(final=True)

    async def _write(self, submission_id: int, state: SubmissionState, **parameters: Any) -> None:
        """Make one transition under this daemon's lease; one that was made already is left as it is.

        Raises
        ------
        SupersededError
            Another daemon has claimed the submission since.
        TransitionRefusedError
            It is in a state from which there is no way there.
        StoreError
            The database is away, or the event's lock.
        """
        await self._holding.prepare()
        await self._holding.recall(submission_id)
        statements = self._holding.statements
        before = {old for old, new in TRANSITIONS.items() if state in new and not old.is_final}
        # What was put back while this daemon was cut off is still its own as long as nobody claims it.
        ours = before | {SubmissionState.NEW} if self._holding.is_leased else before
        if self._holding.is_leased and submission_id not in self._holding.held:
            await self._take(submission_id, state)
        statement = statements.set_scored if state is SubmissionState.SCORED else statements.move(state)
        rows = await self.board.ask(
            statement,
            **{
                **self._holding.fence(submission_id),
                "id": submission_id,
                "before": words_of(ours),
                **parameters,
            },
        )
        if not rows or rows[0]["moved"]:  # one that is gone was deleted: there is nobody left to tell
            return
        found = rows[0]
        if found["before"] == state and (found["held"] or state is SubmissionState.NEW):
            return
        if not found["held"] and found["before"] != SubmissionState.NEW:
            self._holding.let_go(submission_id)
            raise SupersededError(self._name_of(submission_id))
        legal = ours if found["held"] else before
        raise self._holding.refused(submission_id, found["before"], state, legal=legal)

    async def _take(self, submission_id: int, state: SubmissionState) -> None:
        """Lease a submission that waits, to end it unrun."""
        if state is not SubmissionState.CHECKING_ERROR:
            return
        asked_at = clock.boottime()
        rows = await self.board.ask(self._holding.statements.take, id=submission_id)
        if rows:
            self._holding.hold(submission_id, rows[0]["attempt"], asked_at=asked_at)

    # Reading.

    def _submission(self, row: Row) -> Submission:
        return Submission(
            id=row["id"],
            name=self._name_of(row["id"]),
            state=state_of(row["state"]),
            queued_at=row["queued_at"],
            state_at=row["state_at"],
            error_msg=row["error_msg"],
        )

    async def get(self, name: str) -> Submission:
        """Return one submission; see `SubmissionStore.get`."""
        submission_id = self._id_of(name)
        if submission_id is not None:
            rows = await self.board.ask(self._holding.statements.one, id=submission_id)
            if rows:
                return self._submission(rows[0])
        names = [submission.name for submission in await self.list()]
        raise UnknownSubmissionError(name, difflib.get_close_matches(name, names, n=3))

    async def list(self, states: Collection[SubmissionState] | None = None) -> Sequence[Submission]:
        """Return submissions; see `SubmissionStore.list`."""
        found = [self._submission(row) for row in await self.board.ask(self._holding.statements.every)]
        return found if states is None else [one for one in found if one.state in states]

    async def counts(self) -> Mapping[SubmissionState, int]:
        """Return how many submissions are in each state, sandboxes apart."""
        counts = dict.fromkeys(SubmissionState, 0)
        for row in await self.board.ask(self._holding.statements.counts):
            counts[state_of(row["state"])] += row["n"]
        return counts

    async def history(self, submission_id: int) -> Sequence[tuple[SubmissionState, float]]:
        """Return every transition with its time; without our tables, the arrival alone."""
        rows = await self.board.ask(self._holding.statements.history, id=submission_id)
        return [(state_of(row["state"]), row["at"]) for row in rows]

    async def scores(self) -> Mapping[int, Scores]:
        """Return the scores of every scored submission, as the board has them: whichever dispatcher wrote them."""
        return by_submission(await self.board.ask(self._holding.statements.figures(), none=stored_none()))

    async def scores_of(self, submission_id: int) -> Scores:
        """Return the scores of one submission."""
        figures = self._holding.statements.figures(of_one=True)
        return by_submission(await self.board.ask(figures, none=stored_none(), id=submission_id)).get(submission_id, {})
