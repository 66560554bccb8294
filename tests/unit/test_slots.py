"""Slots: a semaphore that can shrink."""

from __future__ import annotations

import asyncio

import pytest

from rampd.slots import Slots


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_no_more_than_size_are_taken() -> None:
    """The third of two waits until one is given back."""
    slots = Slots(2)
    await slots.acquire()
    await slots.acquire()
    third = asyncio.ensure_future(slots.acquire())
    await _settle()
    assert not third.done()
    slots.release()
    await third
    assert slots.taken == 2
    slots.release()
    slots.release()


async def test_waiters_are_served_in_their_order() -> None:
    """First come, first served, also against somebody who asks while others wait."""
    slots = Slots(1)
    await slots.acquire()
    order: list[int] = []

    async def take(number: int) -> None:
        await slots.acquire()
        order.append(number)
        slots.release()

    tasks = [asyncio.ensure_future(take(number)) for number in range(5)]
    await _settle()
    slots.release()
    await asyncio.wait(tasks)
    assert order == [0, 1, 2, 3, 4]
    assert slots.taken == 0


async def test_growing_lets_waiters_in() -> None:
    """A resize to more serves those who wait already."""
    slots = Slots(1)
    await slots.acquire()
    waiting = [asyncio.ensure_future(slots.acquire()) for _ in range(3)]
    await _settle()
    slots.resize(3)
    await _settle()
    assert [task.done() for task in waiting] == [True, True, False]
    slots.resize(4)
    await asyncio.wait(waiting)
    assert slots.taken == 4


async def test_shrinking_takes_nothing_away_but_lets_nobody_in() -> None:
    """Whoever has a slot keeps it; new ones come only below the new size."""
    slots = Slots(3)
    for _ in range(3):
        await slots.acquire()
    slots.resize(1)
    waiting = asyncio.ensure_future(slots.acquire())
    slots.release()
    slots.release()
    await _settle()
    assert not waiting.done()
    slots.release()
    await waiting
    assert slots.taken == 1


@pytest.mark.parametrize("released_first", [True, False])
async def test_a_cancelled_waiter_loses_no_slot(*, released_first: bool) -> None:
    """Cancelled before or in the very step in which it got its slot, a waiter leaves the slot to others."""
    slots = Slots(1)
    await slots.acquire()
    waiting = asyncio.ensure_future(slots.acquire())
    await _settle()
    if released_first:
        slots.release()
        waiting.cancel()
    else:
        waiting.cancel()
        slots.release()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.taken == 0
    await asyncio.wait_for(slots.acquire(), timeout=1)


async def test_take_overbooks() -> None:
    """A run that goes on anyway has its slot, and new ones wait until there is room."""
    slots = Slots(1)
    slots.take()
    slots.take()
    waiting = asyncio.ensure_future(slots.acquire())
    slots.release()
    await _settle()
    assert not waiting.done()
    slots.release()
    await waiting
