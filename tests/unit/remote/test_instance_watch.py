"""Looks at all instances that everybody shares."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from rampd.errors import WorkerUnavailableError
from rampd.remote.instance_watch import InstanceWatch
from rampd.remote.instances import Instance


class Ec2:
    """Counts the looks; each takes a second."""

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.fails = False

    async def look(self) -> dict[str, Instance]:
        """Return a state that says which look it was."""
        self.looks.append(asyncio.get_running_loop().time())
        number = len(self.looks)
        await asyncio.sleep(1.0)
        if self.fails:
            raise WorkerUnavailableError("busy")
        return {"i-1": Instance("i-1", f"look {number}", "t2.micro", False, None, None, None, 0.0)}


pytestmark = pytest.mark.looptime(start=0)


async def test_who_waits_together_shares_a_look() -> None:
    """Ten thousand ask, one look is made."""
    ec2 = Ec2()
    watch = InstanceWatch(ec2.look, interval_s=5.0)
    seen = await asyncio.gather(*(watch.seen() for _ in range(10_000)))
    assert ec2.looks == [0.0]
    assert {one["i-1"].state for one in seen} == {"look 1"}


async def test_a_look_begins_after_it_was_asked_for() -> None:
    """Who asks while a look is under way gets the next one, an interval later: what is seen is never older."""
    ec2 = Ec2()
    watch = InstanceWatch(ec2.look, interval_s=5.0)
    first = asyncio.create_task(watch.seen())
    await asyncio.sleep(0.5)
    assert (await watch.seen())["i-1"].state == "look 2"
    assert (await first)["i-1"].state == "look 1"
    assert ec2.looks == [0.0, 5.0]


async def test_a_failure_is_everybodys_and_the_next_look_is_made() -> None:
    """Who waited is told; the interval holds all the same."""
    ec2 = Ec2()
    watch = InstanceWatch(ec2.look, interval_s=5.0)
    ec2.fails = True
    found = await asyncio.gather(watch.seen(), watch.seen(), return_exceptions=True)
    assert [type(one) for one in found] == [WorkerUnavailableError] * 2
    ec2.fails = False
    assert (await watch.seen())["i-1"].state == "look 2"
    assert ec2.looks == [0.0, 5.0]


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    """A cancelled wait leaves the look to those who wait still."""
    ec2 = Ec2()
    watch = InstanceWatch(ec2.look, interval_s=5.0)
    leaves, stays = asyncio.create_task(watch.seen()), asyncio.create_task(watch.seen())
    await asyncio.sleep(0.5)
    leaves.cancel()
    assert (await stays)["i-1"].state == "look 1"
    assert leaves.cancelled()


async def test_closing_ends_what_is_under_way() -> None:
    """No task outlives the worker."""
    ec2 = Ec2()
    async with AsyncExitStack() as stack:
        watch = InstanceWatch(ec2.look, interval_s=5.0)
        await watch.open(stack)
        waiting = asyncio.create_task(watch.seen())
        await asyncio.sleep(0.5)
    with pytest.raises(asyncio.CancelledError):
        await waiting
