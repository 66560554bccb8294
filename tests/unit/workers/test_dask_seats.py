"""Which Dask worker gets the next submission; the cluster is a fake that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from rampd.errors import WorkerSetupError
from rampd.workers.dask_facts import DaskWorkerFacts
from rampd.workers.dask_seats import Seats

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

pytestmark = pytest.mark.looptime


class FakeCluster:
    """Says what it is told to of workers, tasks and hosts."""

    address = "tcp://127.0.0.1:8786"

    def __init__(self, *facts: DaskWorkerFacts) -> None:
        self.facts = {one.address: one for one in facts}
        self.tasks: dict[str, list[str]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.looks: list[list[str]] = []
        self.changed = asyncio.Event()

    async def workers(self) -> Mapping[str, DaskWorkerFacts]:
        """Return those that there are."""
        return self.facts

    def known_workers(self) -> Collection[DaskWorkerFacts]:
        """Return the same."""
        return self.facts.values()

    async def processing(self) -> Mapping[str, Collection[str]]:
        """Return their tasks."""
        return self.tasks

    async def ask(self, addresses: Collection[str], request: object) -> dict[str, bytes]:
        """Answer what a look finds: everything, unless told otherwise."""
        self.looks.append(sorted(addresses))
        found = {address: self.answers.get(address, {"prefix": "/env"}) for address in addresses}
        return {address: json.dumps(head).encode() + b"\n" for address, head in found.items()}

    def joins(self, one: DaskWorkerFacts) -> None:
        """Have a worker come."""
        self.facts[one.address] = one
        self.changed.set()
        self.changed.clear()


def worker(name: str, *, host: str = "h1", slots: int = 1, nthreads: int = 1) -> DaskWorkerFacts:
    """Return a Dask worker."""
    return DaskWorkerFacts(f"tcp://{host}:{name}", host, name, nthreads, slots)


def seats(cluster: FakeCluster) -> Seats:
    """Return the seats of a fake."""
    return Seats(cluster, {"do": "look"}, 1.0)  # type: ignore[arg-type] # as much of a cluster as is asked


@pytest.mark.parametrize(
    ("slots", "nthreads", "expected"), [(0, 1, 1), (0, 8, 1), (1, 1, 1), (1, 4, 1), (4, 4, 4), (4, 2, 2)]
)
def test_seats_of_a_worker(slots: int, nthreads: int, expected: int) -> None:
    """One, unless it declares more slots and has a thread for each."""
    assert worker("1", slots=slots, nthreads=nthreads).seats == expected


async def test_hosts_are_filled_evenly() -> None:
    """The next one goes to the host that has least to do."""
    taking = seats(FakeCluster(*(worker(str(n), host=host) for host in ("h1", "h2") for n in range(2))))
    hosts = [(await taking.take(f"rampd-{n}")).host for n in range(4)]
    assert sorted(hosts[:2]) == sorted(hosts[2:]) == ["h1", "h2"]


async def test_what_others_run_takes_seats() -> None:
    """A task of another daemon's rampd is a submission: its Dask worker is not free."""
    cluster = FakeCluster(worker("1"), worker("2"))
    cluster.tasks = {"tcp://h1:1": ["rampd-another-daemons"]}
    assert (await seats(cluster).take("rampd-ours")).name == "2"


async def test_a_worker_that_does_nothing_else_is_preferred() -> None:
    """Tasks of other kinds take no seat, but there are better places."""
    cluster = FakeCluster(worker("1"), worker("2"))
    cluster.tasks = {"tcp://h1:1": ["sum-abc"]}
    assert (await seats(cluster).take("rampd-ours")).name == "2"


async def test_a_seat_that_is_given_back_is_taken_by_who_waits(log_records: list[dict[str, Any]]) -> None:
    """At once, even while the scheduler still counts the old task; that all were taken is said once."""
    cluster = FakeCluster(worker("1"))
    taking = seats(cluster)
    await taking.take("rampd-1")
    cluster.tasks = {"tcp://h1:1": ["rampd-1"]}
    waiting = asyncio.create_task(taking.take("rampd-2"))
    await asyncio.sleep(10)
    assert not waiting.done()
    begun = asyncio.get_running_loop().time()
    taking.give_back("rampd-1")
    assert (await waiting).name == "1"
    assert asyncio.get_running_loop().time() - begun < 0.1
    assert [record["event"] for record in log_records] == ["dask.full"]


async def test_a_worker_that_joins_is_taken_by_who_waits() -> None:
    """At once as well."""
    cluster = FakeCluster(worker("1"))
    taking = seats(cluster)
    await taking.take("rampd-1")
    waiting = asyncio.create_task(taking.take("rampd-2"))
    await asyncio.sleep(0.1)
    begun = asyncio.get_running_loop().time()
    cluster.joins(worker("2"))
    assert (await waiting).name == "2"
    assert asyncio.get_running_loop().time() - begun < 0.1


async def test_a_cancelled_wait_takes_no_seat() -> None:
    """Nor does it keep others from waiting."""
    taking = seats(FakeCluster(worker("1")))
    await taking.take("rampd-1")
    waiting = asyncio.create_task(taking.take("rampd-2"))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    taking.give_back("rampd-1")
    assert (await taking.take("rampd-3")).name == "1"
    assert set(taking.taken) == {"rampd-3"}


async def test_no_workers_at_all() -> None:
    """The sentence says how to start one."""
    with pytest.raises(WorkerSetupError, match=r"has no workers; start one with `dask worker tcp://127"):
        await seats(FakeCluster()).check()


async def test_a_host_that_lacks_something_is_left_out(log_records: list[dict[str, Any]]) -> None:
    """With one warning that names it and what it has; the others run on."""
    cluster = FakeCluster(worker("1", host="h1"), worker("2", host="h2"))
    cluster.answers = {"tcp://h1:1": {"missing": "no environment 'iris'", "existing": ["base", "irs"]}}
    taking = seats(cluster)
    assert (await taking.take("rampd-1")).host == "h2"
    await taking.check()
    (warning,) = log_records
    assert warning["event"] == "dask.warned"
    assert "no environment 'iris' on h1 (Dask worker tcp://h1:1); there is: base, irs" in warning["message"]
    assert taking.warnings() == [warning["message"]]


async def test_what_every_host_lacks_holds_the_event() -> None:
    """The error names a host and what it has."""
    cluster = FakeCluster(worker("1"))
    cluster.answers = {"tcp://h1:1": {"missing": "no environment 'iris'", "existing": ["base"]}}
    with pytest.raises(WorkerSetupError, match="on h1") as caught:
        await seats(cluster).check()
    assert caught.value.existing == ("base",)


async def test_hosts_are_looked_at_once_a_minute() -> None:
    """Not for every submission; one that lacks something at every look."""
    cluster = FakeCluster(worker("1"), worker("2", host="h2"))
    cluster.answers = {"tcp://h2:2": {"missing": "x"}}
    taking = seats(cluster)
    for _ in range(3):
        await taking.check()
    assert cluster.looks == [["tcp://h1:1", "tcp://h2:2"], ["tcp://h2:2"], ["tcp://h2:2"]]
    taking.look_again()
    await taking.check()
    assert cluster.looks[-1] == ["tcp://h1:1", "tcp://h2:2"]


async def test_workers_without_slots_are_warned_of_once(log_records: list[dict[str, Any]]) -> None:
    """They are used all the same, one submission at a time."""
    taking = seats(FakeCluster(worker("1", slots=0, nthreads=4)))
    await taking.take("rampd-1")
    await taking.check()
    waiting = asyncio.create_task(taking.take("rampd-2"))
    await asyncio.sleep(5)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})
    warnings = [record for record in log_records if record["event"] == "dask.warned"]
    assert len(warnings) == 1
    assert "--resources slot=1" in warnings[0]["message"]
