"""Runs submissions on a Dask cluster: any number of hosts, with nothing but distributed on them."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import importlib
import ipaddress
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from rampd import clock, ramp_test
from rampd.copying import UnsafeTreeError
from rampd.errors import (
    ResultsError,
    WorkerError,
    WorkerLostError,
    WorkerSetupError,
    WorkerUnavailableError,
)
from rampd.files import remove_tree
from rampd.models import Exit, Job, Results
from rampd.workers import containment
from rampd.workers.base import Allocation, Worker, WorkerContext
from rampd.workers.dask_bundle import keeper_sources
from rampd.workers.dask_config import DaskConfig
from rampd.workers.dask_facts import TlsFiles
from rampd.workers.dask_run import SUBMISSIONS
from rampd.workers.dask_seats import Seats
from rampd.workers.dask_sweeper import Sweeper
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
OWNER_FILE = "dask_owner"


class DaskAllocation(Allocation):
    """A run on a Dask worker, which its address finds, under a key at the scheduler."""

    attempt_id: str
    attempt_dir: str
    log_path: str
    key: str
    dask_worker: str
    """The Dask worker's address."""
    host: str
    pid: int | None = None
    """Of the run's supervisor, on its host."""
    deadline: float | None = None
    """Wall clock, seconds since the epoch: its time is over then."""

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return the host and the Dask worker."""
        return {"host": self.host, "dask_worker": self.dask_worker, "pid": self.pid}


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
        self._owner = ""

    # --- opening and looking

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
        self._owner = await asyncio.to_thread(_owner_of, self.context.state_dir)
        self._cluster = module.Cluster(config.dask_scheduler, tls)
        self._transfer = Transfer(self._cluster, self._request)
        self._seats = Seats(self._cluster, self._request("look"), self.context.time_between_collection_s)
        await self._cluster.open(stack)
        self._sweeper = Sweeper(self._cluster, self._request, self._key)
        await self._sweeper.open(stack)
        for message in self._exposures():
            log.warning("worker.uncontained", message=message)
        await self._cluster.wait_until_up(_OPENING_S)

    def _exposures(self) -> list[str]:
        scheme, _, rest = self.config.dask_scheduler.partition("://")
        host = rest.rpartition(":")[0].strip("[]")
        is_local = host == "localhost"
        with suppress(ValueError):
            is_local = ipaddress.ip_address(host).is_loopback
        found = []
        if scheme == "tcp" and not is_local:
            found.append(
                f"{self.config.dask_scheduler} is neither encrypted nor authenticated: whoever reaches its port runs "
                "any code on every Dask worker and reads and changes what submissions send; use tls:// with "
                "worker.tls_ca_file, tls_client_cert and tls_client_key, or have a firewall let in its hosts only"
            )
        if self.config.run_as is None:
            found.append(
                "submissions run as the Dask workers' own user: they can read and change what it can; give Dask "
                "workers a user of their own, or start them as root with worker.run_as naming one"
            )
        return found

    def warnings(self) -> Sequence[str]:
        """Return what the platform does not protect from submissions, and what of the cluster is not as it should."""
        return (*self._exposures(), *self._cluster.disagreements(), *self._seats.warnings())

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

    def _request(self, do: str, **more: Any) -> dict[str, Any]:
        config, context = self.config, self.context
        return {
            "do": do,
            "owner": self._owner,
            "temporary": config.remote_scratch_dir,
            "conda_env": config.conda_env,
            "kit_dir": config.remote_kit_dir or str(context.kit_dir),
            "kit_key": "worker.remote_kit_dir" if config.remote_kit_dir else "ramp.kit_dir",
            "data_dir": config.remote_data_dir or str(context.data_dir),
            "data_key": "worker.remote_data_dir" if config.remote_data_dir else "ramp.data_dir",
            "run_as": config.run_as,
            **more,
        }

    # --- the five steps

    async def setup(self, job: Job) -> DaskAllocation:
        """Take a seat on a Dask worker, waiting for one, and pack the submission; see `Worker.setup`."""
        if self._owed is not None:
            # Nothing may run twice at once: what an earlier daemon left comes first.
            await self._sweeper.reclaim(self._owed | self._known)
            self._owed = None
        self._known.add(job.attempt_id)
        key = self._key(job.attempt_id)
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

    def _key(self, attempt_id: str) -> str:
        return f"rampd-{self._owner}-{attempt_id}"

    def _pack(self, job: Job) -> None:
        job.log_path.parent.mkdir(parents=True, exist_ok=True)
        job.attempt_dir.mkdir(mode=0o700)
        self._transfer.pack(job, max_bytes=self.config.max_output_bytes, max_files=self.config.max_output_files)

    async def launch_submission(self, job: Job, allocation: DaskAllocation) -> DaskAllocation:
        """Hand the submission over and return once its process exists; see `Worker.launch_submission`."""
        if allocation.deadline is not None:
            return allocation
        started = self._cluster.expect_start(job.attempt_id)
        # An earlier daemon may have ended around this very step. Should it have handed the submission over, and not
        # come to have the key kept, the fence on the far side refuses the second one.
        if job.attempt_id in self._fresh or allocation.key not in await self._cluster.published():
            worker = (await self._cluster.workers()).get(allocation.dask_worker)
            if worker is None:
                raise WorkerUnavailableError(f"the Dask worker {allocation.dask_worker} went before it was asked")
            self._seats.keep(allocation.key, allocation.dask_worker)
            await asyncio.to_thread(_begin_log, job.log_path)
            archive = await self._transfer.send(allocation)
            self._fresh.discard(job.attempt_id)
            await self._cluster.submit(allocation.key, worker, self._run_request(job, archive))
        self._seats.keep(allocation.key, allocation.dask_worker)
        launched = await self._begun(allocation, started)
        return launched.model_copy(update={"deadline": clock.wall() + job.timeout_s})

    def _run_request(self, job: Job, archive: bytes | None) -> dict[str, Any]:
        there = self._request("run")
        remote_job = dataclasses.replace(job, kit_dir=Path(there["kit_dir"]), data_dir=Path(there["data_dir"]))
        return there | {
            "attempt": job.attempt_id,
            "submission": job.submission,
            "archive": archive,
            "arguments": ramp_test.argv(Path("/"), remote_job, Path(SUBMISSIONS))[1:],
            "environment": self._environment(job),
            "deadline_s": job.timeout_s + REMOTE_GRACE_S,
            "max_log_bytes": int(self.config.max_log_bytes),
            "max_bytes": int(self.config.max_output_bytes),
            "max_files": self.config.max_output_files,
            "keeper": keeper_sources(),
        }

    def _environment(self, job: Job) -> dict[str, str]:
        environment = containment.thread_limits(job.n_threads)
        for name, text in self.config.env.items():
            value = os.environ.get(name) if text is None else text
            if value is not None and not (containment.is_withheld(name) and text is None):
                environment[name] = value
        return environment

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
            self._cluster.note_start(allocation.attempt_id, None)

    async def _answer(self, allocation: DaskAllocation) -> bytes:
        """Wait for the end of a run and return its answer, through lost connections."""

        def patience_s() -> float:
            if allocation.deadline is None:
                return _STOP_S
            # At the deadline it would be called the participant's: what became of it in time is not known.
            return max(0.0, allocation.deadline - _MARGIN_S - clock.wall())

        return await self._cluster.result(allocation.key, allocation.dask_worker, patience_s=patience_s)

    async def _take_in(self, allocation: DaskAllocation, answer: bytes) -> Mapping[str, Any]:
        """Keep what came back with the end of a run; return its head."""
        head, payload = split(answer)
        self._seats.give_back(allocation.key)
        where = f"{allocation.host} (Dask worker {allocation.dask_worker})"
        if "missing" in head:
            self._seats.look_again()
            raise WorkerSetupError(f"{head['missing']} on {where}", [str(one) for one in head.get("existing", ())])
        if head.get("fenced"):
            raise WorkerLostError(f"Dask ran the task twice on {where}; the second time was refused")
        if "lost" in head:
            raise WorkerLostError(f"{head['lost']} on {where}")
        if "error" in head:
            raise WorkerError(f"{head['error']} on {where}")
        if "failed" in head:
            raise _not_started(int(head["failed"][0]), str(head["failed"][1]), where)
        if head.get("log_errno"):
            error = f"the log could not be written on {where}: {os.strerror(int(head['log_errno']))}"
            log.warning("worker.lost", error=error, outcome=WorkerError.outcome)
        ended = Exit(
            status=int(head["status"]),
            signal=int(head["signal"]) or None,
            max_rss_bytes=int(head["max_rss_bytes"]) or None,
            log_bytes=int(head["log_bytes"]),
            log_capped=bool(head["log_capped"]),
            timed_out=bool(head["timed_out"]),
        )
        await self._transfer.keep(allocation, head, payload)
        self._ended[allocation.attempt_id] = ended
        return head

    async def is_submission_finished(self, allocation: DaskAllocation) -> bool:
        """Return whether the run has ended; see `Worker.is_submission_finished`."""
        if allocation.attempt_id in self._ended:
            return True
        if not await self._cluster.wait_until_up(_RECONNECT_S):
            return False
        return await self._cluster.is_done(allocation.key)

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
            self._transfer.follow_log(allocation, every_s=self.context.time_between_collection_s),
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
            allocation, max_bytes=self.config.max_output_bytes, max_files=self.config.max_output_files
        )
        refused = f"training_output was refused: {fetched.refused}." if fetched.refused else ""
        return Results(ended, fetched.training_output, job.log_path, refused=refused, run_dir=Path(fetched.run_dir))

    async def teardown(self, allocation: DaskAllocation) -> None:
        """End what runs, there, and remove what was made, there and here; see `Worker.teardown`."""
        attempt_id = allocation.attempt_id
        await asyncio.to_thread(remove_tree, self._attempts_dir / attempt_id)
        self._ended.pop(attempt_id, None)
        self._transfer.forget(attempt_id)
        self._cluster.has_ended(attempt_id)
        self._known.discard(attempt_id)
        self._fresh.discard(attempt_id)
        try:
            await self._sweeper.remove(attempt_id, allocation.dask_worker, allocation.host)
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
        reclaimed = await self._sweeper.reclaim(keep)
        self._owed = None
        return local + reclaimed

    def _reclaim_here(self, keep: Collection[str]) -> list[str]:
        folder = self._attempts_dir
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        stale = [path for path in found if path.name not in keep]
        for path in stale:
            remove_tree(path)
        return [f"folder {path.name}" for path in stale]


def _not_started(number: int, step: str, where: str) -> WorkerError:
    why = os.strerror(number)
    if step == "process" or number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return WorkerError(f"ramp-test could not be started on {where}: {why}")
    if step == "folder":
        return WorkerSetupError(f"the user that submissions run as cannot enter their folder on {where}: {why}")
    return WorkerSetupError(
        f"worker.conda_env: ramp-test cannot be executed on {where}: {why} "
        "(itself, or the interpreter its first line names)"
    )


def _begin_log(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(open_log(str(path)))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error


def _owner_of(state_dir: Path) -> str:
    """Return the name under which this event's runs are known in the cluster: random, and kept in state_dir."""
    path = state_dir / OWNER_FILE
    with suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    owner = secrets.token_hex(8)
    if state_dir.is_dir():  # `rampctl check` asks before there is one, and writes nothing
        try:
            path.write_text(f"{owner}\n", encoding="ascii")
        except OSError as error:
            raise WorkerError(f"{path}: cannot be written: {error.strerror}") from error
    return owner
