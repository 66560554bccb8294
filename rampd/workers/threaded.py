"""Runs a synchronous plug-in (`BaseWorker`) as a `Worker`: an object an attempt, each in a thread of its own.

A plug-in's exception, its nonsense or its silence is the platform's failure, and no participant's. A call that does not
come back in its time is abandoned: its thread stays (Python cannot end one), and the attempt's folder as long as that.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from rampd import clock
from rampd.errors import WorkerError, WorkerInterruptedError, WorkerLostError, WorkerSetupError
from rampd.files import remove_tree
from rampd.workers import stray_processes
from rampd.workers.base import Allocation, Worker
from rampd.workers.plug_in_config import PlugInConfig, config_for
from rampd.workers.plug_in_run import PlugInRun

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.config_sections import WorkerConfig
    from rampd.models import Exit, Job, Results
    from rampd.workers.base import WorkerContext
    from rampd.workers.base_worker import BaseWorker
    from rampd.workers.calls import Call, Caller

log = structlog.get_logger("rampd.workers.threaded")

_LAST_CALL_S = 60.0
"""What a call gets at most that is made for a run that is over already: teardown, or collecting after a timeout."""
_STOP_S = 5.0
"""From TERM to KILL."""
_HURRIED_STOP_S = 0.3
_LONGEST_GRACE_S = 15.0
"""Less than the dispatcher waits for an interrupted run."""
_MOST_STUCK = 64
"""So many threads that never came back are enough to hold the event."""


class ThreadedAllocation(Allocation):
    """An attempt of a plug-in. What finds its run again is on the plug-in's own object, and goes with the daemon."""

    attempt_id: str


class ThreadedWorker(Worker[ThreadedAllocation]):
    """Runs submissions with a plug-in's class; `adapted` makes the subclass for one.

    A run does not survive the daemon: the next one starts it anew.
    """

    allocation_model = ThreadedAllocation
    plug_in: ClassVar[type[BaseWorker]]

    def __init__(self, config: WorkerConfig, context: WorkerContext) -> None:
        super().__init__(config, context)
        self._runs: dict[str, PlugInRun] = {}
        self._stuck: set[Caller] = set()
        self._hurried = asyncio.Event()
        self._hurried_at = math.inf

    @property
    def _named(self) -> str:
        return f"{self.plug_in.__module__}:{self.plug_in.__qualname__}"

    async def open(self, stack: AsyncExitStack) -> None:  # noqa: ARG002 -- nothing is opened
        """Say what nobody here keeps an eye on."""
        for message in self.warnings():
            log.warning("worker.uncontained", message=message)

    def describe(self) -> Mapping[str, object]:
        """Return which class runs submissions."""
        return {"plug_in": self._named}

    def warnings(self) -> Sequence[str]:
        """Return what the platform does not protect from submissions."""
        contained = f"{self._named} runs submissions as it likes: what contains them is its own business"
        if self.config.run_as is None:
            return (contained,)
        return (contained, f"worker.run_as is not obeyed: {self._named} would have to do it (self.config['run_as'])")

    async def check(self) -> None:
        """Hold the event when too many calls never came back; see `Worker.check`."""
        self._stuck = {caller for caller in self._stuck if caller.is_alive}
        if len(self._stuck) >= _MOST_STUCK:
            raise WorkerSetupError(
                f"{len(self._stuck)} calls of {self._named} never came back, each in a thread of its own; mend it, and "
                "restart rampd"
            )

    def hurry(self) -> None:
        """Give every call that is under way no more than a moment; see `Worker.hurry`."""
        self._hurried_at = clock.boottime()
        self._hurried.set()

    # -- the five steps

    async def setup(self, job: Job) -> ThreadedAllocation:
        """Make the attempt's folder and the plug-in's object, and have it set up; see `Worker.setup`."""
        config = config_for(self.config, self.context, job)
        run = self._runs[job.attempt_id] = PlugInRun(job, self.plug_in, config, self.config)
        try:
            await self._call(run, "make_folders", run.make_folders, within_s=job.timeout_s)
            await self._call(run, "__init__", run.make, within_s=job.timeout_s)
            await self._call(run, "setup", run.set_up, within_s=job.timeout_s)
        except BaseException:
            with suppress(OSError):  # the next start removes the folder; why it could not be begun is worth more
                await self._end(run)
            raise
        return ThreadedAllocation(attempt_id=job.attempt_id)

    async def launch_submission(self, job: Job, allocation: ThreadedAllocation) -> ThreadedAllocation:
        """Have the submission launched; see `Worker.launch_submission`."""
        run = self._run_of(allocation)
        if run.launched_at is None:
            await self._call(run, "launch_submission", run.launch, within_s=job.timeout_s)
        return allocation

    def _run_of(self, allocation: ThreadedAllocation) -> PlugInRun:
        run = self._runs.get(allocation.attempt_id)
        if run is None:
            raise WorkerLostError(f"the run of attempt {allocation.attempt_id} went with the daemon that started it")
        return run

    async def is_submission_finished(self, allocation: ThreadedAllocation) -> bool:
        """Have the plug-in look; see `Worker.is_submission_finished`."""
        run = self._run_of(allocation)
        if run.is_over:
            return True
        call = run.caller.call
        if call is None or call.future.done():
            call = run.caller.begin("_is_submission_finished", run.look)
        # Shortly before the deadline, which would otherwise charge the participant with a look that never came back.
        await self._returned(run, call, within_s=run.look_limit_s(call.begun))
        return run.is_over

    async def exit_of(self, allocation: ThreadedAllocation) -> Exit:
        """Return what is known before the results are collected: of a plug-in, nothing."""
        return self._run_of(allocation).ended

    async def stop(self, allocation: ThreadedAllocation) -> Exit:
        """End what runs here, and tell the plug-in that the run is over; see `Worker.stop`.

        A run elsewhere is ended by the plug-in: by its `check_timeout`, or its `teardown`.
        """
        run = self._run_of(allocation)
        if run.is_over:
            return run.ended
        run.was_stopped, run.is_timed_out = True, run.is_overdue()
        if await self._settled(run):
            await self._tell(run, "check_timeout", partial(run.stop, is_overdue=run.is_timed_out))
        run.is_over = True
        await self._kill(run)
        await asyncio.to_thread(run.log.follow)
        run.ended = run.exit(None)
        return run.ended

    async def collect_results(self, job: Job, allocation: ThreadedAllocation) -> Results:
        """Have results collected into the attempt's folder; see `Worker.collect_results`."""
        run = self._run_of(allocation)
        if run.results is not None:
            return run.results
        if run.was_stopped:
            if run.is_timed_out and not run.caller.is_busy:
                await self._tell(run, "collect_results", run.collect)
            await asyncio.to_thread(run.log.follow, anew=True)
            run.results = results = run.results_of(None)
            run.ended = results.exit
            return results
        said = await self._call(run, "collect_results", run.collect, within_s=job.timeout_s)
        await self._kill(run)  # nothing may write to what is checked next
        await asyncio.to_thread(run.log.follow, anew=True)
        run.results = results = run.results_of(said)
        run.ended = results.exit
        return results

    async def teardown(self, allocation: ThreadedAllocation) -> None:
        """Have the plug-in torn down, and remove the attempt's folder; see `Worker.teardown`."""
        run = self._runs.get(allocation.attempt_id)
        if run is not None:
            await self._end(run)
            return
        folder = self._attempts_dir / allocation.attempt_id
        if not self._is_in_use(folder.name):
            await asyncio.to_thread(_clear, folder)

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End processes and remove folders that an earlier daemon of this event left; see `Worker.reclaim`."""
        found = await asyncio.to_thread(self._found)
        reclaimed: list[str] = []
        for attempt_id in found:
            if attempt_id in keep or self._is_in_use(attempt_id):
                continue
            run = self._runs.get(attempt_id)
            if run is not None:
                await self._end(run)
            else:
                pids = await asyncio.to_thread(_clear, self._attempts_dir / attempt_id)
                reclaimed += [f"process {pid}" for pid in pids]
            reclaimed.append(f"folder {attempt_id}")
        return reclaimed

    @property
    def _attempts_dir(self) -> Path:
        return self.context.state_dir / "attempts"

    def _found(self) -> list[str]:
        folder = self._attempts_dir
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def _is_in_use(self, attempt_id: str) -> bool:
        """Say whether a thread that never came back may still be in an attempt's folder."""
        return any(caller.is_alive and caller.name == attempt_id for caller in self._stuck)

    # -- calls

    async def _call(self, run: PlugInRun, method: str, function: Callable[[], Any], *, within_s: float) -> Any:
        return await self._returned(run, run.caller.begin(method, function), within_s=within_s)

    async def _returned(self, run: PlugInRun, call: Call, *, within_s: float, grace_s: float = 1.0) -> Any:
        """Wait for a call to come back.

        Raises
        ------
        WorkerError
            It raised, or did not come back in its time; in that case it is abandoned.
        """
        if not await self._awaited(call, within_s=within_s, grace_s=grace_s):
            self._abandon(run, call)
            what = f"{call.method}() of {self._named} did not come back"
            if self._hurried.is_set():
                raise WorkerInterruptedError(f"{what} before the daemon had to stop")
            raise WorkerError(f"{what} within {clock.boottime() - call.begun:.3g} s")
        ended = call.future.result()
        if ended.error is None:
            return ended.value
        if isinstance(ended.error, WorkerError):
            raise ended.error
        sentence = run.sentence_of(call.method, ended.error)
        log.warning("worker.plug_in_failed", method=call.method, error=sentence, exc_info=ended.error)
        raise WorkerError(sentence) from ended.error

    async def _awaited(self, call: Call, *, within_s: float, grace_s: float) -> bool:
        """Wait until a call came back, its time is over, or the daemon's patience is; say whether it came back."""
        hurry = asyncio.ensure_future(self._hurried.wait())
        limit = call.begun + within_s
        try:
            await asyncio.wait(
                (call.future, hurry),
                timeout=max(0.0, limit - clock.boottime()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not call.future.done() and self._hurried.is_set():
                limit = min(limit, self._hurried_at + min(grace_s, _LONGEST_GRACE_S))
                await asyncio.wait({call.future}, timeout=max(0.05, limit - clock.boottime()))
        finally:
            hurry.cancel()
        return call.future.done() and not call.future.cancelled()

    def _abandon(self, run: PlugInRun, call: Call) -> None:
        caller = run.caller
        caller.abandon()
        self._stuck.add(caller)
        log.error(
            "worker.abandoned",
            method=call.method,
            waited_s=clock.boottime() - call.begun,
            thread=caller.name,
            stuck=sum(other.is_alive for other in self._stuck),
        )

    async def _settled(self, run: PlugInRun) -> bool:
        """Wait for the call that is under way; say whether the run's thread can be asked for more."""
        call = run.caller.call
        if call is None or not run.caller.is_busy:
            return True
        if call.future.cancelled():
            return False
        if not await self._awaited(call, within_s=self._last_call_s(run) + clock.boottime() - call.begun, grace_s=1.0):
            self._abandon(run, call)
            return False
        return True

    def _last_call_s(self, run: PlugInRun) -> float:
        return min(run.job.timeout_s, _LAST_CALL_S)

    async def _tell(self, run: PlugInRun, method: str, function: Callable[[], Any], *, grace_s: float = 1.0) -> None:
        """Make a call whose failure changes nothing any more; it is logged."""
        try:
            call = run.caller.begin(method, function)
            await self._returned(run, call, within_s=self._last_call_s(run), grace_s=grace_s)
        except WorkerError as error:
            if error.__cause__ is None and not run.caller.is_busy:  # else it was said already
                log.warning("worker.lost", error=str(error), outcome=error.outcome)

    # -- the end

    async def _end(self, run: PlugInRun) -> None:
        """Have the plug-in torn down, end what is left on this machine, and give thread and folder up."""
        if not await self._settled(run) and not run.is_beginning:
            # Where it hangs nobody knows; what it holds elsewhere is given back all the same, from another thread.
            run.add_caller()
        if run.launched_at is not None and not run.is_over:
            await self._kill(run)  # a teardown may wait for what it started
        if run.was_begun and not run.caller.is_busy and not run.is_torn_down:
            run.is_torn_down = True
            await self._tell(run, "teardown", run.tear_down, grace_s=self.plug_in.teardown_grace_s)
        pids = await self._kill(run)
        await asyncio.to_thread(stray_processes.reap, pids | run.children)
        self._runs.pop(run.job.attempt_id, None)
        if run.release():
            await asyncio.to_thread(remove_tree, run.job.attempt_dir)

    async def _kill(self, run: PlugInRun) -> set[int]:
        find = partial(stray_processes.processes_of, run.job.attempt_dir, run.thread_ids, run.known)
        patience_s = _HURRIED_STOP_S if self._hurried.is_set() else _STOP_S
        pids = set(await asyncio.to_thread(stray_processes.end_all, find, patience_s=patience_s))
        run.children |= pids
        return pids


def _clear(folder: Path) -> list[int]:
    pids = stray_processes.end_all(partial(stray_processes.processes_of, folder), patience_s=0.0)
    remove_tree(folder)
    return pids


@cache
def adapted(plug_in: type[BaseWorker]) -> type[ThreadedWorker]:
    """Return the `Worker` that runs a plug-in's class."""
    model = plug_in.config_model or PlugInConfig
    return type(plug_in.__name__, (ThreadedWorker,), {"plug_in": plug_in, "config_model": model})
