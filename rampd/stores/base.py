"""The contract of a submission store: RAMP's truth about submissions, claimed one at a time.

A store says who is next and keeps what became of it. It knows nothing of workers, attempts' allocations, slots or
retries; those are the journal's and the dispatcher's. Every write names the state it expects and is idempotent: a
write that was already made (before a crash, say) is silently the same. One that the table of transitions does not know
(`rampd.states.TRANSITIONS`: somebody else has moved the submission) is refused with a TransitionRefusedError, changes
nothing, and is not asked for again; any other StoreError means that the same write may work later, and it is repeated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.models import Scores, Submission
    from rampd.states import SubmissionState


class SubmissionStore(ABC):
    """Submissions of one event.

    Attributes
    ----------
    changed
        Set whenever something may have become claimable, or may have gone; the dispatcher clears it before it looks.
    scanned
        Set once `watch` has looked at everything for the first time.
    """

    changed: asyncio.Event
    scanned: asyncio.Event

    @property
    def is_open(self) -> bool:
        """Whether the event is open, as far as the store knows: one that has closed is drained under --events-dir."""
        return True

    @abstractmethod
    async def open(self, stack: AsyncExitStack) -> None:
        """Open the database; register its closing on `stack`. Nothing is watched yet.

        Raises
        ------
        StoreError
            It cannot be opened; the message says what to do.
        """

    def reconfigure(self, *, settle_time_s: float) -> None:  # noqa: B027 -- nothing to do is the rule
        """Use other settings from now on; a store whose submissions do not settle has none."""

    async def prepare(self) -> None:  # noqa: B027 -- most stores need nothing more than to be open
        """Make ready to claim and to write, once it is open: what a look from outside (rampctl) does not do.

        Raises
        ------
        StoreError
            It cannot be written, or belongs to another daemon.
        """

    @abstractmethod
    async def watch(self) -> None:
        """Find submissions as they arrive, for ever: a task of the dispatcher's. The first full scan comes first."""

    @abstractmethod
    async def scan(self) -> None:
        """Look once for submissions that arrived, changed or went."""

    @abstractmethod
    async def claim(self, skip: Collection[int] = ()) -> Submission | None:
        """Take the oldest `new` submission whose id is not in `skip`: `new` -> `sent_to_training`, atomically.

        A submission whose folder has gone is forgotten (where the store may: else passed over) and the next one is
        looked at.
        """

    @abstractmethod
    async def claim_named(self, name: str) -> Submission | None:
        """Take one submission whatever its place, one that has not been found yet and the sandbox included.

        Returns
        -------
        Submission or None
            None where it is not `new`.

        Raises
        ------
        UnknownSubmissionError
            There is none of that name.
        SubmissionRefusedError
            What is there is no submission.
        """

    @abstractmethod
    async def release(self, submission_id: int) -> None:
        """Put a claimed or running submission back to `new`; it keeps its place in the queue."""

    @abstractmethod
    async def release_unheld(self, held: Collection[int]) -> Sequence[Submission]:
        """Put what was claimed here, has not ended and is not in `held` back to `new`, and return it.

        Called when every outcome that the journal knows is in the store: one that is `tested` still has lost its own.
        """

    def is_lost(self, submission_id: int) -> bool:
        """Say whether it is known already that another daemon has claimed a submission of ours: its run is in vain."""
        del submission_id
        return False

    async def confirm(self, submission_id: int) -> None:  # noqa: B027 -- most stores have one daemon, and nothing to do
        """Make sure that a submission is still this daemon's, before anything outside the store is written for it.

        Raises
        ------
        SupersededError
            Another daemon has claimed it since. The writes below raise it, too, `release` apart.
        """

    @abstractmethod
    async def set_training(self, submission_id: int) -> None:
        """Say that the submission's process exists."""

    @abstractmethod
    async def set_tested(self, submission_id: int) -> None:
        """Say that its output lies in predictions_dir."""

    @abstractmethod
    async def set_scored(self, submission_id: int, scores: Scores, *, max_rss_bytes: int | None = None) -> None:
        """Keep its scores and say `scored`, in one transaction; its peak memory too, where there is a place for it."""

    @abstractmethod
    async def set_failed(
        self, submission_id: int, state: SubmissionState, error_msg: str, *, max_rss_bytes: int | None = None
    ) -> None:
        """Say `training_error` or `checking_error`, with the message a participant may see. Drops older scores."""

    @abstractmethod
    async def requeue(self, submission_id: int) -> None:
        """Put a submission in a final state back to `new`, at the end of the queue (the operator's retry)."""

    @abstractmethod
    async def get(self, name: str) -> Submission:
        """Return one submission.

        Raises
        ------
        UnknownSubmissionError
            With the nearest names there are.
        """

    @abstractmethod
    async def list(self, states: Collection[SubmissionState] | None = None) -> Sequence[Submission]:
        """Return submissions: those waiting in the order in which they will run, the others by id."""

    @abstractmethod
    async def counts(self) -> Mapping[SubmissionState, int]:
        """Return how many submissions are in each state; every state is there, with 0 if need be."""

    @abstractmethod
    async def history(self, submission_id: int) -> Sequence[tuple[SubmissionState, float]]:
        """Return every transition of one submission with its time (seconds since the epoch), oldest first."""

    @abstractmethod
    async def scores(self) -> Mapping[int, Scores]:
        """Return the scores of every `scored` submission, by id."""

    async def scores_of(self, submission_id: int) -> Scores:
        """Return the scores of one submission; none where it is not `scored`, or where there is no such one."""
        return (await self.scores()).get(submission_id, {})

    @abstractmethod
    def submission_dir(self, submission: Submission) -> Path:
        """Return where what the participant sent lies."""

    @property
    @abstractmethod
    def settling(self) -> int:
        """How many folders were seen that are not taken yet (for hunger_policy exit and for status)."""
