"""Runs submissions on a Dask cluster: any number of hosts, with nothing but distributed on them."""

from __future__ import annotations

import asyncio
import importlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from rampd.copying import UnsafeTreeError
from rampd.errors import (
    ResultsError,
    WorkerError,
    WorkerSetupError,
    WorkerUnavailableError,
)
from rampd.files import remove_tree
from rampd.models import Exit, Job, Results
from rampd.workers.base import Worker, WorkerContext
from rampd.workers.dask_allocation import DaskAllocation
from rampd.workers.dask_config import DaskConfig
from rampd.workers.dask_endings import ending_of
from rampd.workers.dask_facts import TlsFiles
from rampd.workers.dask_requests import Requests, owner_of
from rampd.workers.dask_seats import Seats
from rampd.workers.dask_sweeper import NotRemovedError, Sweeper
from rampd.workers.dask_tasks import Tasks
from rampd.workers.dask_transfer import Transfer, split
from rampd.workers.supervisor import open_log

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AsyncExitStack

    from rampd.config import WorkerConfig
    from rampd.workers.dask_cluster import Cluster

log = structlog.get_logger("rampd.workers.dask")

_SEATED_S = 10.0
"""For how long a task may wait behind somebody else's on a Dask worker that looked free."""
_STOP_S = 5.0 + 10.0
"""TERM, 5 s, KILL, and the way there and back."""
_RECONNECT_S = 5.0
_OPENING_S = 3.0
_MARGIN_S = 1.0
REMOTE_GRACE_S = 15.0
"""The daemon ends a run at its timeout; so much later its host does, for a daemon that is gone."""


class DaskWorker(Worker[DaskAllocation]):
    """Runs each submission as one task, pinned to a Dask worker that has a free seat.

    A run goes on without the daemon: the scheduler keeps its task under the attempt's id.
    """

    config: DaskConfig
    config_model = DaskConfig
    allocation_model = DaskAllocation
    resumable = True
    reclaim_interval_s: ClassVar[float | None] = 60.0

    def __init__(self, config: WorkerConfig, context: WorkerContext) -> None:
        super().__init__(config, context)
        self._ended: dict[str, Exit] = {}
        """How runs ended, by attempt: a cache of what the scheduler keeps."""
        self._fresh: set[str] = set()
        """Attempts that this process has set up and not handed over yet."""
        self._known: set[str] = set()
        """Attempts that this process has to do with."""
        self._owed: frozenset[str] | None = None
        """What a reclaim that could not be made yet leaves alone."""
        self._cluster: Cluster

    # --- opening and looking

    def reconfigure(self, config: WorkerConfig, context: WorkerContext) -> None:
        """Have all of its parts use them; see `Worker.reconfigure`."""
        super().reconfigure(config, context)
        self._requests.config, self._requests.context = self.config, context
        self._seats.interval_s = context.time_between_collection_s

    async def open(self, stack: AsyncExitStack) -> None:
        """Begin to connect to the scheduler. One that is not there holds the event, and fails nothing."""
        # 0.7 s of imports, off the loop and only where Dask is asked for.
        module = await asyncio.to_thread(importlib.import_module, "rampd.workers.dask_cluster")
        config = self.config
        tls = None
        if config.tls_ca_file and config.tls_client_cert and config.tls_client_key:
            root = self.context.deployment_dir
            files = (config.tls_ca_file, config.tls_client_cert, config.tls_client_key)
            tls = TlsFiles(*(root / file for file in files))
        owner = await asyncio.to_thread(owner_of, self.context.state_dir)
        self._requests = Requests(config, self.context, owner)
        self._cluster = module.Cluster(config.dask_scheduler, tls)
        self._tasks = Tasks(self._cluster)
        self._transfer = Transfer(self._cluster, self._requests.to)
        self._seats = Seats(self._cluster, self._requests.to("look"), self.context.time_between_collection_s)
        await self._cluster.open(stack)
        self._sweeper = Sweeper(self._cluster, self._tasks, self._requests.to, self._requests.key_of)
        await self._sweeper.open(stack)
        for message in self.config.exposures():
            log.warning("worker.uncontained", message=message)
        await self._cluster.wait_until_up(_OPENING_S)

    def warnings(self) -> Sequence[str]:
        """Return what the platform does not protect from submissions, and what of the cluster is not as it should."""
        return (*self.config.exposures(), *self._cluster.disagreements(), *self._seats.warnings())

    def describe(self) -> Mapping[str, object]:
        """Return the scheduler, and what it has."""
        return {
            "dask_scheduler": self.config.dask_scheduler,
            "conda_env": self.config.conda_env,
            "run_as": self.config.run_as,
            **self._seats.describe(),
        }

    async def check(self) -> None:
        """Look for the scheduler, its workers, and what submissions need on their hosts; see `Worker.check`."""
        if not await self._cluster.wait_until_up(_RECONNECT_S):
            raise WorkerSetupError(
                f"worker.dask_scheduler: {self.config.dask_scheduler} cannot be reached: {self._cluster.error}"
            )
        try:
            await self._seats.check()
        except WorkerUnavailableError as error:
            raise WorkerSetupError(f"worker.dask_scheduler: {error}") from error

    # --- the five steps

    async def setup(self, job: Job) -> DaskAllocation:
        """Take a seat on a Dask worker, waiting for one, and pack the submission; see `Worker.setup`."""
        if self._owed is not None:
            # Nothing may run twice at once: what an earlier daemon left comes first.
            with suppress(NotRemovedError):  # one host's trouble with a file; all that could run was ended
                await self._sweeper.reclaim(self._owed | self._known)
            self._owed = None
        self._known.add(job.attempt_id)
        key = self._requests.key_of(job.attempt_id)
        worker = await self._seats.take(key)
        packing = asyncio.ensure_future(asyncio.to_thread(self._pack, job))
        try:
            await asyncio.shield(packing)
        except BaseException as error:
            self._seats.give_back(key)
            # A cancelled call returns when its thread has ended, and leaves nothing.
            await asyncio.wait({packing})
            await asyncio.to_thread(remove_tree, job.attempt_dir)
            if isinstance(error, UnsafeTreeError):
                raise WorkerError(f"{job.submission_dir} changed while it was copied: {error}") from error
            if isinstance(error, OSError):
                raise WorkerError(f"{error.filename}: cannot be written: {error.strerror}") from error
            raise
        self._fresh.add(job.attempt_id)
        return DaskAllocation(
            attempt_id=job.attempt_id,
            attempt_dir=str(job.attempt_dir),
            log_path=str(job.log_path),
            key=key,
            dask_worker=worker.address,
            host=worker.host,
        )

    def _pack(self, job: Job) -> None:
        job.log_path.parent.mkdir(parents=True, exist_ok=True)
        job.attempt_dir.mkdir(mode=0o700)
        self._transfer.pack(job, max_bytes=self.config.max_output_bytes, max_files=self.config.max_output_files)

    async def launch_submission(self, job: Job, allocation: DaskAllocation) -> DaskAllocation:
        """Hand the submission over and return once its process exists; see `Worker.launch_submission`."""
        if allocation.deadline is not None:
            return allocation
        started = self._tasks.expect_start(job.attempt_id)
        # An earlier daemon may have ended around this very step. Should it have handed the submission over, and not
        # come to have the key kept, the fence on the far side refuses the second one.
        if job.attempt_id in self._fresh or allocation.key not in await self._tasks.published():
            worker = (await self._cluster.workers()).get(allocation.dask_worker)
            if worker is None:
                raise WorkerUnavailableError(f"the Dask worker {allocation.dask_worker} went before it was asked")
            self._seats.keep(allocation.key, allocation.dask_worker)
            await asyncio.to_thread(_begin_log, job.log_path)
            archive = await self._transfer.send(allocation)
            self._fresh.discard(job.attempt_id)
            await self._tasks.submit(
                allocation.key, worker, self._requests.to_run(job, archive, grace_s=REMOTE_GRACE_S)
            )
        self._seats.keep(allocation.key, allocation.dask_worker)
        return (await self._begun(allocation, started)).launched(job.timeout_s)

    async def _begun(self, allocation: DaskAllocation, started: asyncio.Future[int | None]) -> DaskAllocation:
        """Return once the process exists, or has ended already."""
        ending = asyncio.create_task(self._answer(allocation), name=f"end of {allocation.attempt_id}")
        try:
            either: set[asyncio.Future[Any]] = {started, ending}
            await asyncio.wait(either, timeout=_SEATED_S, return_when=asyncio.FIRST_COMPLETED)
            while not (started.done() or ending.done()):
                await self._withdraw_if_waiting(allocation)
                await asyncio.wait(either, timeout=_SEATED_S, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                head = await self._take_in(allocation, ending.result())
                return allocation.model_copy(update={"pid": head.get("pid")})
            return allocation.model_copy(update={"pid": started.result()})
        finally:
            ending.cancel()
            await asyncio.wait({ending})
            if not ending.cancelled():
                ending.exception()

    async def _withdraw_if_waiting(self, allocation: DaskAllocation) -> None:
        """Take a task back that waits behind another daemon's, unless it has begun meanwhile."""
        try:
            withdrawal, _ = await self._transfer.ask(allocation, "withdraw")
            listed, _ = await self._transfer.ask(allocation, "list")
        except WorkerUnavailableError:
            return  # what became of it is heard in another way
        if withdrawal.get("withdrawn"):
            raise WorkerUnavailableError(f"the Dask worker {allocation.dask_worker} was taken by another client")
        if allocation.attempt_id in listed.get("active", ()):
            self._tasks.note_start(allocation.attempt_id, None)

    async def _answer(self, allocation: DaskAllocation) -> bytes:
        """Wait for the end of a run and return its answer, through lost connections."""

        def patience_s() -> float:
            left_s = allocation.left_s()
            # At the deadline it would be called the participant's: what became of it in time is not known.
            return _STOP_S if left_s is None else max(0.0, left_s - _MARGIN_S)

        return await self._tasks.result(allocation.key, allocation.dask_worker, patience_s=patience_s)

    async def _take_in(self, allocation: DaskAllocation, answer: bytes) -> Mapping[str, Any]:
        """Keep what came back with the end of a run; return its head."""
        head, payload = split(answer)
        self._seats.give_back(allocation.key)
        where = f"{allocation.host} (Dask worker {allocation.dask_worker})"
        if "missing" in head:
            self._seats.look_again()
        ended = ending_of(head, where)
        await self._transfer.keep(allocation, head, payload)
        self._ended[allocation.attempt_id] = ended
        return head

    async def is_submission_finished(self, allocation: DaskAllocation) -> bool:
        """Return whether the run has ended; see `Worker.is_submission_finished`."""
        if allocation.attempt_id in self._ended:
            return True
        if not await self._cluster.wait_until_up(_RECONNECT_S):
            return False
        return await self._tasks.is_done(allocation.key)

    async def exit_of(self, allocation: DaskAllocation) -> Exit:
        """Return how the run ended; see `Worker.exit_of`."""
        return await self.wait(allocation)

    async def wait(self, allocation: DaskAllocation) -> Exit:
        """Return when the run's future is done; only its log is looked at meanwhile."""
        if (ended := self._ended.get(allocation.attempt_id)) is not None:
            return ended
        self._known.add(allocation.attempt_id)
        self._seats.keep(allocation.key, allocation.dask_worker)
        following = asyncio.create_task(
            self._transfer.follow_log(
                allocation,
                every_s=self.context.time_between_collection_s,
                max_bytes=self.config.max_log_bytes,
            ),
            name=f"log of {allocation.attempt_id}",
        )
        try:
            answer = await self._answer(allocation)
        finally:
            following.cancel()
            await asyncio.wait({following})
        if not following.cancelled() and isinstance(error := following.exception(), ResultsError):
            raise error
        await self._take_in(allocation, answer)
        return self._ended[allocation.attempt_id]

    async def stop(self, allocation: DaskAllocation) -> Exit:
        """End the run with its whole process tree; see `Worker.stop`."""
        if (ended := self._ended.get(allocation.attempt_id)) is not None:
            return ended
        if not await self._cluster.wait_until_up(_RECONNECT_S):
            raise WorkerUnavailableError(f"the Dask scheduler cannot be reached: {self._cluster.error}")
        await self._transfer.ask(allocation, "stop")
        try:
            async with asyncio.timeout(_STOP_S):
                return await self.wait(allocation)
        except TimeoutError:
            raise WorkerUnavailableError(f"the Dask worker {allocation.dask_worker} does not end the run") from None

    async def collect_results(self, job: Job, allocation: DaskAllocation) -> Results:
        """Fetch what is left of the log, and training_output; see `Worker.collect_results`."""
        ended = await self.stop(allocation)
        fetched = await self._transfer.fetch(
            allocation,
            max_bytes=self.config.max_output_bytes,
            max_files=self.config.max_output_files,
            max_log_bytes=self.config.max_log_bytes,
        )
        refused = f"training_output was refused: {fetched.refused}." if fetched.refused else ""
        return Results(ended, fetched.training_output, job.log_path, refused=refused, run_dir=Path(fetched.run_dir))

    async def teardown(self, allocation: DaskAllocation) -> None:
        """End what runs, there, and remove what was made, there and here; see `Worker.teardown`."""
        attempt_id = allocation.attempt_id
        try:
            await asyncio.to_thread(remove_tree, self._attempts_dir / attempt_id)
        finally:  # what cannot be removed here keeps neither the run there nor its seat
            await self._tear_down_there(allocation)

    async def _tear_down_there(self, allocation: DaskAllocation) -> None:
        attempt_id = allocation.attempt_id
        self._ended.pop(attempt_id, None)
        is_fence_only = self._transfer.has_come_whole(attempt_id)
        self._transfer.forget(attempt_id)
        self._tasks.has_ended(attempt_id)
        self._known.discard(attempt_id)
        self._fresh.discard(attempt_id)
        try:
            await self._sweeper.remove(attempt_id, allocation.dask_worker, allocation.host, is_fence_only=is_fence_only)
        finally:
            self._seats.give_back(allocation.key)

    @property
    def _attempts_dir(self) -> Path:
        return self.context.state_dir / "attempts"

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End runs and remove folders, there and here, that no attempt holds any more; see `Worker.reclaim`."""
        local = await asyncio.to_thread(self._reclaim_here, keep)
        if not await self._cluster.wait_until_up(_OPENING_S):
            self._owed = frozenset(keep)
            return local
        try:
            reclaimed = await self._sweeper.reclaim(keep)
        except NotRemovedError:
            self._owed = None
            raise
        except WorkerError:
            self._owed = frozenset(keep)
            raise
        self._owed = None
        return local + reclaimed

    def _reclaim_here(self, keep: Collection[str]) -> list[str]:
        folder = self._attempts_dir
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        stale = [path for path in found if path.name not in keep]
        for path in stale:
            try:
                remove_tree(path)
            except OSError as error:
                raise ResultsError(f"{error.filename}: cannot be removed: {error.strerror}") from error
        return [f"folder {path.name}" for path in stale]


def _begin_log(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(open_log(str(path)))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
