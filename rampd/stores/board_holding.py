"""Who may write what: this daemon's name on the board, its leases and their renewal, or the event's advisory lock.

A lease is the board's word that a submission is ours: an owner (one a state_dir), an attempt (up by one at each claim,
whoever claims) and when it expires, by the database's clock. Whoever finds it expired may claim; outcomes are written
under owner and attempt, so that whatever became of a lease, one claim alone has the last word.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

import structlog

from rampd import clock
from rampd.errors import StoreError, TransitionRefusedError
from rampd.stores.board_database import RefusedError
from rampd.stores.board_queries import LEASE_S, LOCK, LOCK_CLASS, PARKED_S
from rampd.stores.board_sql import Statements
from rampd.stores.board_states import words_of
from rampd.stores.board_tables import HAS_TABLES, MAKE_TABLES

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.states import SubmissionState
    from rampd.stores.board_database import BoardDatabase

log = structlog.get_logger("rampd.stores.rampboard")

OWNER_FILE = "board_owner"
_RENEW_S = 20.0
_RETRY_S = 2.0
_LOOK_AT_LOCK_S = 15.0
_INSUFFICIENT_PRIVILEGE = "42501"
_MADE_MEANWHILE = frozenset({"23505", "42P07", "42710"})
"""What IF NOT EXISTS comes to where another daemon makes the same at the same moment: a unique violation, a duplicate
table, a duplicate type."""


class Holding:
    """What this daemon holds of one event.

    Parameters
    ----------
    database
        Open before anything is asked of it.
    state_dir
        Keeps the owner's name: a restart is the same owner, another state_dir another.
    event_name
        For people.
    """

    def __init__(self, database: BoardDatabase, state_dir: Path, *, event_name: str) -> None:
        self._database = database
        self._owner_file = state_dir / OWNER_FILE
        self._event_name = event_name
        self._event_id = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._preparing = asyncio.Lock()
        self._prepared = asyncio.Event()
        self._attempts: dict[int, int] = {}
        self._sure_until: dict[int, float] = {}
        self.lost: set[int] = set()
        """What another daemon has claimed while this one could not renew, and has not been claimed here since."""
        self._renewed_at = 0.0
        self._lock_pid: int | None = None
        self._owner = ""
        self.statements = Statements(leased=False)

    @property
    def is_leased(self) -> bool:
        """Whether leases say who holds what; else it is the event's lock."""
        return self.statements.leased

    @property
    def held(self) -> list[int]:
        """The submissions that this daemon claimed and has not ended."""
        return list(self._attempts)

    def fence(self, submission_id: int | None = None) -> dict[str, Any]:
        """Return the parameters under which this daemon writes."""
        return {
            "owner": self._owner,
            "attempt": self._attempts.get(submission_id) if submission_id is not None else None,
            "lock_pid": self._lock_pid or 0,
            "lock_class": LOCK_CLASS,
            "lock_object": self._event_id,
        }

    async def open(self, stack: AsyncExitStack, event_id: int) -> None:
        """See what there is, and write nothing: reading needs no owner."""
        self._event_id = event_id
        (found,) = await self._database.fetch(HAS_TABLES)
        self.statements = Statements(leased=bool(found["there"]))
        stack.push_async_callback(self._close)

    async def prepare(self) -> None:
        """Become somebody who may write: make our tables, or take the event's lock where that is refused. Repeatable.

        Raises
        ------
        StoreError
            Neither is possible: another daemon has the lock, or the database is away.
        """
        if self._prepared.is_set():
            return
        async with self._preparing:
            if self._prepared.is_set():
                return
            self._owner = await asyncio.to_thread(self._read_owner)
            if not self.is_leased:
                self.statements = Statements(leased=await self._make_tables())
            first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            keeping = self._keep_leases(first) if self.is_leased else self._keep_lock(first)
            self._tasks.append(asyncio.create_task(keeping, name=f"{self._event_name}:board/holding"))
            try:
                await first
            except StoreError:
                await self._end_tasks()
                raise
            self._prepared.set()

    def _read_owner(self) -> str:
        try:
            # Empty is what a power cut may leave: a name that daemons would share, and take their claims for one's.
            if owner := self._owner_file.read_text(encoding="ascii").strip():
                return owner
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._owner_file}: cannot be read ({error}); mend it, or remove it") from error
        owner = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        try:
            self._owner_file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            fresh = self._owner_file.with_suffix(".new")
            with fresh.open("w", encoding="ascii") as file:
                file.write(f"{owner}\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._owner_file)
        except OSError as error:
            raise StoreError(f"{self._owner_file}: cannot be written: {error.strerror}") from error
        return owner

    async def _make_tables(self) -> bool:
        """Make our tables; return False where this user may not."""
        for statement in MAKE_TABLES:
            try:
                await self._database.fetch(statement)
            except RefusedError as error:
                if error.sqlstate == _INSUFFICIENT_PRIVILEGE:
                    return False
                if error.sqlstate not in _MADE_MEANWHILE:
                    raise
        return True

    def hold(self, submission_id: int, attempt: int | None, *, asked_at: float) -> None:
        """Remember a claim.

        Parameters
        ----------
        submission_id, attempt
            What was claimed; no attempt without leases.
        asked_at
            CLOCK_BOOTTIME before the claim was sent, in seconds: nobody else may claim for LEASE_S from then on.
        """
        self.lost.discard(submission_id)
        self._attempts[submission_id] = attempt or 0
        self._sure_until[submission_id] = asked_at + LEASE_S

    def let_go(self, submission_id: int) -> None:
        """Forget a submission that was ended or put back."""
        self._attempts.pop(submission_id, None)
        self._sure_until.pop(submission_id, None)

    def refused(
        self, submission_id: int, before: str, state: SubmissionState, *, legal: Collection[SubmissionState]
    ) -> StoreError:
        """Return why nothing was moved, and let go what somebody else has moved: no lease may keep anybody from it.

        From a legal state nothing was moved only because the lock, or the row, was another's just then.
        """
        if before in words_of(legal):
            return StoreError(f"submission {submission_id} could not become {state} now: this daemon does not hold it")
        self.let_go(submission_id)
        return TransitionRefusedError(submission_id, before, state)

    def is_sure_of(self, submission_id: int) -> bool:
        """Say without asking whether nobody else can have claimed it meanwhile."""
        return clock.boottime() < self._sure_until.get(submission_id, 0.0)

    async def recall(self, submission_id: int) -> None:
        """Learn under which attempt an earlier process of this owner held a submission."""
        if submission_id in self._attempts:
            return
        if not self.is_leased:
            self._attempts[submission_id] = 0
            return
        rows = await self._database.fetch(self.statements.attempt_of, id=submission_id, owner=self._owner)
        if rows:
            self._attempts[submission_id] = rows[0]["attempt"]

    async def _keep_leases(self, first: asyncio.Future[None]) -> None:
        first.set_result(None)
        wait_s = _RENEW_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                await self.renew()
            except StoreError:
                # Whoever needs the database now says so; a lease that cannot be renewed costs nothing until it is
                # claimed, and then the claim decides.
                wait_s = _RETRY_S
            else:
                wait_s = _RENEW_S

    async def renew(self) -> None:
        """Renew every lease in one statement, and let go what somebody else has claimed.

        Raises
        ------
        StoreError
            The database is away.
        """
        held = dict(self._attempts)
        asked_at = clock.boottime()
        if held:
            if any(not self.is_sure_of(submission_id) for submission_id in held):
                for state in ("tested", "training"):
                    await self._database.fetch(self.statements.take_back(state), held=list(held), owner=self._owner)
            rows = await self._database.fetch(
                self.statements.renew, held=list(held), owner=self._owner, seconds=LEASE_S
            )
            ours = {row["id"]: row["attempt"] for row in rows}
            for submission_id, attempt in held.items():
                if self._attempts.get(submission_id) != attempt:
                    continue
                if ours.get(submission_id) == attempt:
                    self._sure_until[submission_id] = asked_at + LEASE_S
                else:
                    self.let_go(submission_id)
                    self.lost.add(submission_id)
                    log.warning("lease.lost", submission_id=submission_id)

    async def _keep_lock(self, first: asyncio.Future[None]) -> None:
        while True:
            try:
                async with self._database.session() as session:
                    if not await session.fetch_one(LOCK, {"class": LOCK_CLASS, "object": self._event_id}):
                        raise StoreError(  # noqa: TRY301 -- one place says what becomes of it
                            f"another daemon serves {self._event_name} from the same board, and this database user "
                            f"may not make the table of leases that would let both; stop one of them, or GRANT CREATE"
                        )
                    self._lock_pid = session.backend_pid
                    if not first.done():
                        first.set_result(None)
                    while True:
                        await session.notified(timeout_s=_LOOK_AT_LOCK_S)
                        await session.fetch_one("SELECT 1")
            except StoreError as error:
                if not first.done():
                    first.set_exception(error)
                    return
            finally:
                self._lock_pid = None
            await asyncio.sleep(_RETRY_S)

    async def _close(self) -> None:
        """Stop renewing. What is still held goes on without us: it gets the time that a restart takes."""
        await self._end_tasks()
        if self._attempts and self.is_leased:
            try:
                await self._database.fetch(self.statements.renew, held=self.held, owner=self._owner, seconds=PARKED_S)
            except StoreError as error:
                log.warning("lease.parked", error=str(error))

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
