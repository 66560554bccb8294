"""What is removed on the hosts of a cluster, and what becomes of what cannot be; cluster and tasks are fakes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from rampd.errors import ResultsError, WorkerUnavailableError
from rampd.testing import make_job
from rampd.workers import dask
from rampd.workers.base import WorkerContext
from rampd.workers.dask_allocation import DaskAllocation
from rampd.workers.dask_config import DaskConfig
from rampd.workers.dask_facts import DaskWorkerFacts
from rampd.workers.dask_sweeper import NotRemovedError, Sweeper

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

pytestmark = pytest.mark.looptime

ADDRESS = "tcp://h:1"


class FakeCluster:
    """One Dask worker, with attempts of which some never go."""

    def __init__(self, *attempts: str, stuck: Collection[str] = ()) -> None:
        self.attempts = set(attempts)
        self.stuck = stuck

    async def workers(self) -> Mapping[str, DaskWorkerFacts]:
        """Return it."""
        return {ADDRESS: DaskWorkerFacts(ADDRESS, "h", "1", 1, 1)}

    async def ask(self, _: Collection[str] | None, request: Mapping[str, Any]) -> dict[str, bytes]:
        """List, or remove."""
        if request["do"] == "list":
            said: dict[str, Any] = {"attempts": sorted(self.attempts), "active": []}
        else:
            said = {"gone": request["attempt"] not in self.stuck}
            if said["gone"]:
                self.attempts.discard(request["attempt"])
        return {ADDRESS: json.dumps(said).encode() + b"\n"}


class FakeTasks:
    """No tasks."""

    async def published(self) -> Collection[str]:
        """Return none."""
        return []

    async def forget(self, keys: Collection[str]) -> None:
        """Have nothing to forget."""


async def test_what_cannot_be_removed_keeps_nothing_else() -> None:
    """A file that nobody may remove on a host is that attempt's, and no end of the event: the next time may do."""
    cluster = FakeCluster("a", "b", "c", stuck={"b"})
    sweeper = Sweeper(
        cast("Any", cluster), cast("Any", FakeTasks()), lambda do, **more: {"do": do, **more}, lambda one: f"key-{one}"
    )
    with pytest.raises(NotRemovedError, match=r"attempt b cannot be removed on h \(Dask worker tcp://h:1\)"):
        await sweeper.reclaim({"kept"})
    assert cluster.attempts == {"b"}
    cluster.stuck = ()
    assert await sweeper.reclaim({"kept"}) == ["attempt b on h"]


class FakeParts:
    """A cluster that is up, whose reclaims end as a test says; all seats are taken."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.kept: list[frozenset[str]] = []
        self.given_back: list[str] = []

    async def wait_until_up(self, _: float) -> bool:
        """Be up."""
        return True

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End as told."""
        self.kept.append(frozenset(keep))
        if (error := self.ends.pop(0)) is not None:
            raise error
        return []

    async def remove(self, *_: object, **__: object) -> None:
        """Have nothing to remove."""

    async def take(self, _: str) -> None:
        """Have no seat."""
        raise WorkerUnavailableError("no seat")

    def give_back(self, key: str) -> None:
        """Take a seat back."""
        self.given_back.append(key)

    def key_of(self, attempt_id: str) -> str:
        """Name a task."""
        return f"key-{attempt_id}"

    def has_come_whole(self, _: str) -> bool:
        """Say that nothing has."""
        return False

    def forget(self, _: str) -> None:
        """Have nothing to forget."""

    has_ended = forget


def _worker(root: Path, parts: FakeParts) -> dask.DaskWorker:
    config = DaskConfig.model_validate({"worker_type": "dask", "dask_scheduler": "tcp://127.0.0.1:8786"})
    worker = dask.DaskWorker(config, WorkerContext("event", root, root, root, root / "state", 1.0))
    for name in ("_cluster", "_sweeper", "_seats", "_requests", "_transfer", "_tasks"):
        setattr(worker, name, parts)
    return worker


async def test_a_reclaim_that_broke_off_comes_before_the_next_run(tmp_path: Path) -> None:
    """What an earlier daemon left may still run: nothing is begun beside it until it is ended."""
    gone = WorkerUnavailableError("the connection broke")
    parts = FakeParts(gone, gone, NotRemovedError("a file"))
    worker = _worker(tmp_path, parts)
    with pytest.raises(WorkerUnavailableError, match="broke"):
        await worker.reclaim({"kept"})
    with pytest.raises(WorkerUnavailableError, match="broke"):
        await worker.setup(make_job(tmp_path))
    for _ in range(2):  # the second time it is done with
        with pytest.raises(WorkerUnavailableError, match="no seat"):
            await worker.setup(make_job(tmp_path))
    assert len(parts.kept) == 3
    assert all("kept" in keep for keep in parts.kept)


async def test_a_folder_that_cannot_be_removed_keeps_no_seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the run on its host: that is ended all the same."""
    parts = FakeParts()
    worker = _worker(tmp_path, parts)

    def fail(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(dask, "remove_tree", fail)
    allocation = DaskAllocation(attempt_id="a", attempt_dir="", log_path="", key="key-a", dask_worker=ADDRESS, host="h")
    with pytest.raises(PermissionError):
        await worker.teardown(allocation)
    assert parts.given_back == ["key-a"]
    (tmp_path / "state" / "attempts" / "a").mkdir(parents=True)
    with pytest.raises(ResultsError, match="cannot be removed"):
        await worker.reclaim(set())
