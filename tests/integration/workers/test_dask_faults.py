"""A cluster that breaks under running submissions: each ends in the right state, and nothing is left anywhere."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.daemon import RampdProcess, processes_marked, wait_until
from support.dask import DaskCluster, DaskProcess, dask_section, free_port
from support.deployment import Deployment
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(180)

_PATIENCE_S = 90.0
# Five minutes in a few seconds; distributed refuses a TCP timeout below 11 s.
_FAST = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",
}
# Says that it runs, once a line and a start; has a child in a session of its own; ends well when it is told to.
_WAITS = """
echo started >> ROOT/starts
setsid sleep 1000 &
while [ ! -e ROOT/go ]; do sleep 0.05; done
pkill -P $$ 2>/dev/null
"""


@dataclass
class Room:
    """A cluster and an event that uses it."""

    cluster: DaskCluster
    event: Deployment
    proxy: Proxy | None = None

    @property
    def root(self) -> Path:
        """Where everything is."""
        return self.event.root

    def submit(self, name: str = "one") -> None:
        """Hand in a submission that runs until `go`."""
        self.event.submit(name, _WAITS.replace("ROOT", str(self.root)))

    def starts(self) -> int:
        """Return how often a submission was started, on whatever host."""
        path = self.root / "starts"
        return path.read_text(encoding="utf-8").count("started") if path.exists() else 0

    def go(self) -> None:
        """Let submissions end."""
        (self.root / "go").touch()

    def use(self, **worker: Any) -> None:
        """Write the event's config."""
        self.event.worker = dask_section(
            self.cluster, conda_env=str(self.event.environment), **{"timeout": 300, **worker}
        )
        self.event.dispatcher |= {"n_workers": 2, "shutdown_grace": 0, "time_between_collection": 0.1}
        self.event.write_config()

    def daemon(self) -> RampdProcess:
        """Return a daemon to be started."""
        return RampdProcess(self.event.config, environment={**os.environ, **_FAST})

    def is_clean(self) -> bool:
        """Return whether no process and no folder of a run is left on any host."""
        left = [path for folder in self.cluster.root.glob("scratch-*") for path in folder.glob("rampd-*")]
        return not left and not self.runs()

    def runs(self) -> list[int]:
        """Return the pids of everything that runs for a submission on any host, its keeper included."""
        return processes_marked(f"RAMPD_ATTEMPT={self.cluster.root}/")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    """Give a scheduler without workers; hold the test to leaving nothing on any host."""
    event = Deployment(tmp_path / "deployment")
    event.make_stub_environment()
    with DaskCluster(tmp_path / "cluster", settings=_FAST) as cluster:
        cluster.scheduler()
        room = Room(cluster, event)
        room.use()
        yield room


def _ends_well(daemon: RampdProcess, room: Room, *, attempts: int, name: str = "one") -> None:
    finished = daemon.wait_for("submission.finished", submission=name, timeout_s=_PATIENCE_S)
    assert (finished["outcome"], finished["attempts"]) == ("ok", attempts), finished
    wait_until(room.is_clean, timeout_s=_PATIENCE_S, what="nothing left on the hosts")
    assert daemon.stop() == 0


def _is_empty(folder: Path, pattern: str) -> bool:
    try:
        return not any(folder.glob(pattern))
    except FileNotFoundError:  # gone between the list and the look
        return False


def test_a_worker_that_is_killed(room: Room) -> None:
    """Its run dies with it, folder and all, and the submission is tried again on another host."""
    first = room.cluster.worker("127.0.0.2", "--no-nanny")
    with room.daemon() as daemon:
        room.submit()
        started = daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        assert started["host"] == "127.0.0.2"
        wait_until(lambda: room.starts() == 1, timeout_s=_PATIENCE_S, what="the start")
        first.send(signal.SIGKILL)
        room.cluster.worker("127.0.0.3")
        retried = daemon.wait_for("submission.retried", outcome="lost_host", timeout_s=_PATIENCE_S)
        assert "Dask worker" in retried["reason"]
        again = daemon.wait_for("submission.started", count=2, timeout_s=_PATIENCE_S)
        assert again["host"] == "127.0.0.3"
        scratch = room.cluster.scratch("127.0.0.2")
        wait_until(lambda: _is_empty(scratch, "rampd-*/attempts/*"), what="the folder of the first run gone")
        # Whoever comes back on that host finds the fence, which is all that was left, and takes it away.
        room.cluster.worker("127.0.0.2")
        wait_until(lambda: _is_empty(scratch, "rampd-*/*"), timeout_s=_PATIENCE_S, what="the fence gone")
        wait_until(lambda: room.starts() == 2, timeout_s=_PATIENCE_S, what="the second start")
        room.go()
        _ends_well(daemon, room, attempts=2)


@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "unwatched"])
def test_a_worker_process_that_its_nanny_starts_again(room: Room, *, is_watched: bool) -> None:
    """Dask gives a worker that is back at its address the task again, and the fence refuses it, daemon or no daemon.

    One attempt runs once, whatever Dask does; the submission has another one.
    """
    nanny = room.cluster.worker("127.0.0.2", "--worker-port", str(free_port("127.0.0.2")))
    with ExitStack() as stack:
        daemon = stack.enter_context(room.daemon())
        room.submit()
        daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        wait_until(lambda: room.starts() == 1, timeout_s=_PATIENCE_S, what="the start")
        if not is_watched:
            daemon.kill()
        (worker,) = nanny.workers()
        worker.kill()
        if not is_watched:
            wait_until(lambda: bool({*nanny.workers()} - {worker}), timeout_s=_PATIENCE_S, what="the next worker")
            daemon = stack.enter_context(room.daemon())
            daemon.wait_for("submission.resumed", timeout_s=_PATIENCE_S)
        daemon.wait_for("submission.retried", outcome="lost_host", timeout_s=_PATIENCE_S)
        daemon.wait_for("submission.started", count=2 if is_watched else 1, timeout_s=_PATIENCE_S)
        wait_until(lambda: room.starts() == 2, timeout_s=_PATIENCE_S, what="the second start")
        room.go()
        _ends_well(daemon, room, attempts=2)


def test_a_cluster_that_is_killed_leaves_no_semaphores(room: Room) -> None:
    """Those of a nanny's queues are files in /dev/shm, which a killed process removes itself no more."""
    nanny = room.cluster.worker("127.0.0.2")
    wait_until(lambda: bool(_semaphores(nanny)), timeout_s=_PATIENCE_S, what="the queues of a nanny and its worker")
    made = _semaphores(nanny)
    nanny.kill()
    assert not [path for path in made if path.exists()]


def _semaphores(nanny: DaskProcess) -> set[Path]:
    """Return the files of the semaphores that the workers of a nanny have open."""
    found = set()
    for worker in nanny.workers():
        with suppress(psutil.NoSuchProcess):
            found |= {Path(one.path) for one in worker.memory_maps() if one.path.startswith("/dev/shm/sem.mp-")}
    return found


def test_a_worker_that_is_terminated(room: Room) -> None:
    """A `dask worker` command that is told to end ends its run; the submission is tried again elsewhere."""
    first = room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        room.submit()
        daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        first.send(signal.SIGTERM)
        first.process.wait(_PATIENCE_S)
        wait_until(lambda: not room.runs(), timeout_s=_PATIENCE_S, what="the run's end")
        room.cluster.worker("127.0.0.2")
        daemon.wait_for("submission.started", count=2, timeout_s=_PATIENCE_S)
        room.go()
        _ends_well(daemon, room, attempts=2)


def test_a_scheduler_that_is_restarted(room: Room) -> None:
    """It has forgotten everything, and its workers end; the submission is tried again when there are new ones."""
    room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        room.submit()
        daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        room.cluster.restart_scheduler()
        room.cluster.worker("127.0.0.2")
        daemon.wait_for("dask.lost", timeout_s=_PATIENCE_S)
        daemon.wait_for("dask.connected", count=2, timeout_s=_PATIENCE_S)
        daemon.wait_for("submission.retried", outcome="lost_host", timeout_s=_PATIENCE_S)
        daemon.wait_for("submission.started", count=2, timeout_s=_PATIENCE_S)
        room.go()
        _ends_well(daemon, room, attempts=2)


@pytest.mark.parametrize("how", ["reset", "cut", "swallowed"])
def test_a_network_that_is_gone_for_a_while(room: Room, how: str) -> None:
    """The daemon finds its run again, and its log, whether connections broke or were only silent for too long.

    After a mere reset Dask's client connects again by itself, at once, and the scheduler tells it nothing any more.
    """
    room.cluster.worker("127.0.0.2")
    with Proxy(room.cluster.port) as proxy:
        room.event.worker["dask_scheduler"] = f"tcp://127.0.0.1:{proxy.port}"
        room.event.write_config()
        with room.daemon() as daemon:
            room.submit()
            daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
            if how == "reset":
                proxy.cut()
                proxy.mend()
                daemon.wait_for("dask.lost", timeout_s=_PATIENCE_S)
            elif how == "cut":
                proxy.cut()
                daemon.wait_for("dask.lost", timeout_s=_PATIENCE_S)
                proxy.mend()
            else:
                proxy.swallow()
                daemon.wait_for("dask.lost", timeout_s=_PATIENCE_S)
                proxy.mend(drop=True)
            daemon.wait_for("dask.connected", count=2, timeout_s=_PATIENCE_S)
            room.go()
            _ends_well(daemon, room, attempts=1)
    assert room.starts() == 1


def test_a_run_that_ends_while_the_network_is_gone(room: Room) -> None:
    """What it came to is fetched when the network is back."""
    room.cluster.worker("127.0.0.2")
    with Proxy(room.cluster.port) as proxy:
        room.event.worker["dask_scheduler"] = f"tcp://127.0.0.1:{proxy.port}"
        room.event.write_config()
        with room.daemon() as daemon:
            room.submit()
            daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
            proxy.cut()
            room.go()
            daemon.wait_for("dask.lost", timeout_s=_PATIENCE_S)
            wait_until(lambda: not room.runs(), timeout_s=_PATIENCE_S, what="its end")
            proxy.mend()
            _ends_well(daemon, room, attempts=1)


def test_a_network_that_stays_away_until_the_deadline(room: Room) -> None:
    """What became of the run in time is not known, so it is the platform's failure, and tried again; not a timeout."""
    room.use(timeout=8)
    room.cluster.worker("127.0.0.2")
    with Proxy(room.cluster.port) as proxy:
        room.event.worker["dask_scheduler"] = f"tcp://127.0.0.1:{proxy.port}"
        room.event.write_config()
        with room.daemon() as daemon:
            room.submit()
            daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
            proxy.cut()
            room.go()
            retried = daemon.wait_for("submission.retried", timeout_s=_PATIENCE_S)
            assert retried["outcome"] == "lost_host"
            proxy.mend()
            _ends_well(daemon, room, attempts=2)


def test_a_worker_whose_network_is_gone(room: Room) -> None:
    """A worker that cannot reach its scheduler ends its run by itself; the submission is tried again elsewhere."""
    with Proxy(room.cluster.port) as proxy:
        room.cluster.worker("127.0.0.2", "--no-nanny", address=f"tcp://127.0.0.1:{proxy.port}")
        with room.daemon() as daemon:
            room.submit()
            daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
            proxy.cut()
            daemon.wait_for("submission.retried", outcome="lost_host", timeout_s=_PATIENCE_S)
            wait_until(lambda: not room.runs(), timeout_s=_PATIENCE_S, what="the run's end")
            room.cluster.worker("127.0.0.2")
            daemon.wait_for("submission.started", count=2, timeout_s=_PATIENCE_S)
            room.go()
            _ends_well(daemon, room, attempts=2)


def test_no_workers_and_one_that_joins_later(room: Room) -> None:
    """Submissions wait and the log says why, once; the first worker that joins runs them."""
    with room.daemon() as daemon:
        room.submit()
        room.go()
        held = daemon.wait_for("event.held", timeout_s=_PATIENCE_S)
        assert "has no workers" in held["missing"]
        room.cluster.worker("127.0.0.2")
        daemon.wait_for("event.released", timeout_s=_PATIENCE_S)
        _ends_well(daemon, room, attempts=1)
    assert len(daemon.find("event.held")) == 1


def test_no_scheduler_at_the_start(room: Room) -> None:
    """The event is held, and served when the scheduler is there."""
    room.cluster.processes.pop().stop()
    with room.daemon() as daemon:
        room.submit()
        room.go()
        held = daemon.wait_for("event.held", timeout_s=_PATIENCE_S)
        assert room.cluster.address in held["missing"]
        assert len(daemon.find("dask.lost")) == 1
        room.cluster.scheduler()
        room.cluster.worker("127.0.0.2")
        _ends_well(daemon, room, attempts=1)


def test_another_worker_joins_while_all_seats_are_taken(room: Room) -> None:
    """The one that waits for a seat takes the new worker's; there need be no more workers than submissions."""
    room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        room.submit("one")
        room.submit("two")
        daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        daemon.wait_for("dask.full", timeout_s=_PATIENCE_S)
        room.cluster.worker("127.0.0.3")
        daemon.wait_for("submission.started", count=2, timeout_s=_PATIENCE_S)
        assert {record["host"] for record in daemon.find("submission.started")} == {"127.0.0.2", "127.0.0.3"}
        room.go()
        daemon.finished("one", "two", timeout_s=_PATIENCE_S)
        _ends_well(daemon, room, attempts=1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_is_restarted(room: Room, how: signal.Signals) -> None:
    """The training goes on without it, in the same process; the next daemon takes it over, log and all."""
    room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        room.submit()
        started = daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        wait_until(lambda: room.starts() == 1, what="the start")
        daemon.process.send_signal(how)
        daemon.process.wait(_PATIENCE_S)
    assert room.runs()
    with room.daemon() as daemon:
        resumed = daemon.wait_for("submission.resumed", timeout_s=_PATIENCE_S)
        assert (resumed["pid"], resumed["dask_worker"]) == (started["pid"], started["dask_worker"])
        room.go()
        _ends_well(daemon, room, attempts=1)
    assert room.starts() == 1


def test_a_run_that_ends_while_there_is_no_daemon(room: Room) -> None:
    """Its results wait with its future for the next daemon, even beyond the timeout."""
    room.use(timeout=6)
    room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        room.submit()
        launched = daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        daemon.kill()
    assert launched
    room.go()
    wait_until(lambda: not room.runs(), timeout_s=_PATIENCE_S, what="its end")
    deadline = time.monotonic() + 6.5
    wait_until(lambda: time.monotonic() > deadline, timeout_s=20, what="the timeout")
    with room.daemon() as daemon:
        _ends_well(daemon, room, attempts=1)


def test_a_scheduler_that_is_restarted_while_there_is_no_daemon(room: Room) -> None:
    """The scheduler has forgotten the run: the next daemon says so and tries the submission again."""
    worker = room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        room.submit()
        daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        daemon.kill()
    room.cluster.restart_scheduler()
    worker.process.wait(_PATIENCE_S)
    room.cluster.worker("127.0.0.2")
    with room.daemon() as daemon:
        retried = daemon.wait_for("submission.retried", outcome="lost_host", timeout_s=_PATIENCE_S)
        assert "forgotten" in retried["reason"]
        daemon.wait_for("submission.started", timeout_s=_PATIENCE_S)
        room.go()
        _ends_well(daemon, room, attempts=2)


def test_a_worker_of_another_version(room: Room) -> None:
    """It is used, and one warning names both versions and where they are."""
    room.cluster.worker("127.0.0.2", "--no-nanny", version="2024.1.0")
    with room.daemon() as daemon:
        daemon.wait_for("dask.connected", timeout_s=_PATIENCE_S)
        room.submit()
        room.go()
        warned = daemon.wait_for("dask.warned", timeout_s=_PATIENCE_S)
        assert "distributed 2024.1.0 on worker tcp://127.0.0.2:" in warned["message"]
        assert f"{version('distributed')} in this daemon" in warned["message"]
        _ends_well(daemon, room, attempts=1)
    assert len(daemon.find("dask.warned")) == 1
