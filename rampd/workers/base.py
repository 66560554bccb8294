"""The worker contract: five steps in RAMP's own names, with state going in and out as data.

A worker never decides policy: order, deadlines, retries and outcomes belong to `rampd.lifecycle`. Nothing that is
needed to find a run again may live on ``self``, so that a later process can go on from the journaled allocation.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from rampd.config import WorkerConfig
from rampd.errors import WorkerSetupError
from rampd.models import Finding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.models import Exit, Job, Results


class Allocation(BaseModel):
    """What a worker needs to find a run again, as plain data. Journaled as JSON; never a secret in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return what an operator wants to know of where the run is, by names of the catalogue's.

        It stands in `submission.started` and `submission.resumed`, and in `rampctl status` while the run lasts; there
        it is read by another process, from the journaled JSON.
        """
        return {}


async def _record_nothing(attempt_id: str, allocation: Allocation) -> None:
    """Stand in for a journal where there is none: a worker on its own."""


A = TypeVar("A", bound=Allocation)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker is told of its event."""

    event_name: str
    deployment_dir: Path
    """What relative paths of the worker's own keys are relative to."""
    kit_dir: Path
    data_dir: Path
    state_dir: Path
    """The attempts' folders are `state_dir/attempts/<attempt_id>`."""
    time_between_collection_s: float
    record: Callable[[str, Allocation], Awaitable[None]] = _record_nothing
    """Commits what `setup` is about to make, by attempt id: for what costs money or outlives the daemon.

    `setup` calls it with an unfinished allocation before the call that makes the thing. Should the daemon end before
    `setup` has returned, the next one calls `setup` again with it as `Job.recorded`, or `teardown` with it.
    """
    submissions_dir: Path | None = None
    """The event's own, as `predictions_dir` and `logs_dir`: where they are known, for those who must be told."""
    predictions_dir: Path | None = None
    logs_dir: Path | None = None


class Worker(ABC, Generic[A]):
    """Runs submissions somewhere.

    Parameters
    ----------
    config
        The event's `worker` section, an instance of `config_model`.
    context
        The event's folders and intervals.

    Notes
    -----
    Every method may be cancelled at any await and must then leave what it left unfinished to `teardown`, which is
    legal from every state. Raise `WorkerSetupError` where the whole event cannot run, `WorkerUnavailableError` where
    there is no capacity now, `WorkerLostError` where a run is gone; anything else counts as a platform error.
    """

    resumable: ClassVar[bool] = False
    """Whether a later process may take a run over from its allocation."""
    config_model: ClassVar[type[WorkerConfig]] = WorkerConfig
    """The pydantic model of the config's `worker` section."""
    allocation_model: ClassVar[type[Allocation]] = Allocation
    reclaim_interval_s: ClassVar[float | None] = None
    """Seconds between two calls of `reclaim` while the daemon runs; None: only at its start."""

    live_keys: ClassVar[frozenset[str]] = frozenset(
        {"env", "max_attempts", "max_log_bytes", "max_output_bytes", "max_output_files", "timeout"}
    )
    """The keys of the `worker` section that `reconfigure` may change while the event is served; any other one has the
    event opened anew. A kind of worker adds its own, if it reads them anew for each run and made nothing of them in
    `open`."""

    def __init__(self, config: WorkerConfig, context: WorkerContext) -> None:
        self.config = config
        self.context = context

    def reconfigure(self, config: WorkerConfig, context: WorkerContext) -> None:
        """Use other settings for runs that are set up from now on; they differ in `live_keys` alone."""
        self.config = config
        self.context = context

    async def open(self, stack: AsyncExitStack) -> None:
        """Open pools and clients, once an event; register their closing on `stack`."""

    def describe(self) -> Mapping[str, object]:
        """Return facts for `daemon.started`, such as which containment is in force. Known after `open`."""
        return {}

    def warnings(self) -> Sequence[str]:
        """Return what an operator should know before submissions run here, a sentence each. Known after `open`."""
        return ()

    async def check(self) -> None:
        """Look whether submissions of this event can run at all. Cheap: asked before a run and while held.

        Raises
        ------
        WorkerSetupError
            With what is missing and what there is instead.
        """

    def hurry(self) -> None:
        """Have what is under way end within about a second: the daemon stops, and its shutdown_grace is over."""

    async def examine(self) -> Sequence[Finding]:
        """Look at what submissions need, a finding each: for `rampctl check`. Writes nothing, launches nothing."""
        try:
            await self.check()
        except WorkerSetupError as error:
            return [Finding("environment", is_ok=False, detail=str(error))]
        return [Finding("environment", is_ok=True, detail="ramp-test, the kit and the data are there")]

    @abstractmethod
    async def setup(self, job: Job) -> A:
        """Prepare `job.attempt_dir` and whatever the run needs.

        Where `job.recorded` is set, an earlier daemon ended within this step: what it had begun is taken up, or ended.

        Returns
        -------
        A
            The allocation; on an error or a cancellation nothing is left behind.
        """

    @abstractmethod
    async def launch_submission(self, job: Job, allocation: A) -> A:
        """Start the submission and return once its process exists. Idempotent: asked twice, it launches once.

        Returns
        -------
        A
            The allocation with what finds the run again.
        """

    @abstractmethod
    async def is_submission_finished(self, allocation: A) -> bool:
        """Return whether the run has ended.

        Raises
        ------
        WorkerLostError
            The run cannot be found any more.
        """

    @abstractmethod
    async def exit_of(self, allocation: A) -> Exit:
        """Return how a finished run ended. Legal only after `is_submission_finished` said so.

        Its status is None where only `collect_results` finds it out.
        """

    async def wait(self, allocation: A) -> Exit:
        """Return when the run has ended. Cancelling it does not end the run.

        The default asks `is_submission_finished` every `time_between_collection`; a worker that can be told
        (a process, a future) overrides it.
        """
        while not await self.is_submission_finished(allocation):  # noqa: ASYNC110 -- nobody tells us: that is this default's point
            await asyncio.sleep(self.context.time_between_collection_s)
        return await self.exit_of(allocation)

    @abstractmethod
    async def stop(self, allocation: A) -> Exit:
        """End the run with its whole process tree (TERM, 5 s, KILL) and return how it ended.

        Silent and quick if it has ended already. Results may still be collected afterwards.
        """

    @abstractmethod
    async def collect_results(self, job: Job, allocation: A) -> Results:
        """Return where log and training_output are, fetched to this machine. Looks into nothing.

        Raises
        ------
        ResultsError
            They could not be fetched or written here.
        """

    @abstractmethod
    async def teardown(self, allocation: A) -> None:
        """End what runs and remove what was made. Legal from every state, idempotent, silent if already gone."""

    @abstractmethod
    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End whatever carries this event's mark and is not in `keep`.

        Parameters
        ----------
        keep
            Attempt ids that are still held. While the daemon runs it changes: look outside first, and into this
            afterwards, so that what was begun meanwhile is not taken for lost.

        Returns
        -------
        list of str
            What was reclaimed, for the log.
        """
