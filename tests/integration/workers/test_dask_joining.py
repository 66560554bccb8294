"""Dask workers that join while a daemon connects, and two daemons that choose the same one: a cluster to each test."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client

from rampd.errors import WorkerUnavailableError
from support.dask import DaskCluster
from support.dask_room import DaskRoom, until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def room(tmp_path: Path, dask_is_warm: None) -> Iterator[DaskRoom]:
    """Give an event, and a scheduler without workers."""
    with DaskCluster(tmp_path / "cluster") as cluster:
        cluster.scheduler()
        yield DaskRoom(tmp_path, cluster)


async def test_a_dask_worker_that_joins_while_we_subscribe_is_known(
    room: DaskRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler reads a subscription later than it answers a question: nobody may slip through in between."""
    subscribe = Client.subscribe_topic
    later: list[asyncio.Task[None]] = []

    async def join_first(client: Client, topic: str, heard: Any) -> None:
        await client.wait_for_workers(1)
        subscribe(client, topic, heard)

    def subscribe_late(client: Client, topic: str, heard: Any) -> None:
        if not later:
            room.cluster.worker("127.0.0.2")
        later.append(asyncio.ensure_future(join_first(client, topic, heard)))

    monkeypatch.setattr(Client, "subscribe_topic", subscribe_late)
    room.ramp_test("exit 3")
    worker = room.worker()
    async with AsyncExitStack() as stack:
        await worker.open(stack)
        await until_ready(worker)
        assert (await room.run(worker, room.job()))[0].status == 3


async def test_two_daemons_that_choose_the_same_dask_worker_at_once(
    room: DaskRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one's task never begins: it is withdrawn, costs a retry, and leaves the earlier one's run alone."""
    other_room = DaskRoom(tmp_path / "other", room.cluster)
    for one in (room, other_room):
        one.ramp_test(f"echo x >> {tmp_path}/starts-{one.root.name}; sleep 1000")
    # Attempts of different daemons have different ids: both hear of every start.
    job, other_job = room.job(attempt=1), other_room.job(attempt=2)
    room.cluster.worker("127.0.0.2")
    async with room.opened() as worker, other_room.opened() as other:
        allocation = await worker.setup(job)
        taken_as_well = await other.setup(other_job)
        assert taken_as_well.dask_worker == allocation.dask_worker  # neither could see the other's
        allocation = await worker.launch_submission(job, allocation)
        with monkeypatch.context() as patch:
            patch.setattr("rampd.workers.dask._SEATED_S", 0.3)
            with pytest.raises(WorkerUnavailableError, match="was taken by another client"):
                await other.launch_submission(other_job, taken_as_well)
        await other.teardown(taken_as_well)
        assert not (tmp_path / "starts-other").exists()
        assert not await worker.is_submission_finished(allocation)
        room.cluster.worker("127.0.0.3")
        again = other_room.job(attempt=3)
        async with other_room.launched(other, again) as elsewhere:  # by now the other's run is seen
            assert elsewhere.host == "127.0.0.3"
        assert (await worker.stop(allocation)).signal == 15
        await worker.teardown(allocation)
