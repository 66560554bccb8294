"""Orders: how a step ends when an attempt is told to."""

from __future__ import annotations

import asyncio

import pytest

from rampd.orders import Order, OrderedError, Orders


async def test_a_step_without_orders_returns_its_result() -> None:
    """Nothing comes between a step and its result."""

    async def step() -> int:
        await asyncio.sleep(0)
        return 7

    assert await Orders().obeyed(step()) == 7


async def test_a_step_without_orders_raises_its_error() -> None:
    """An error of the step is its caller's."""

    async def step() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await Orders().obeyed(step())


async def test_an_order_cancels_the_step_and_waits_for_its_cleanup() -> None:
    """What a step holds is released before anything follows."""
    orders, cleaned = Orders(), []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    obeying = asyncio.ensure_future(orders.obeyed(step()))
    await asyncio.sleep(0)
    orders.give(Order.INTERRUPT)
    with pytest.raises(OrderedError) as caught:
        await obeying
    assert caught.value.order is Order.INTERRUPT
    assert cleaned == [True]


async def test_no_step_begins_after_an_order() -> None:
    """An order that came between two steps is obeyed before the second."""
    orders = Orders()
    orders.give(Order.CANCEL)
    begun = []

    async def step() -> None:
        begun.append(True)

    with pytest.raises(OrderedError):
        await orders.obeyed(step())
    assert begun == []


async def test_a_result_that_beats_its_cancellation_is_kept() -> None:
    """A step that finished anyway has made something: its result must not be lost."""
    orders = Orders()

    async def step() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "made"
        return "never"

    obeying = asyncio.ensure_future(orders.obeyed(step()))
    await asyncio.sleep(0)
    orders.give(Order.INTERRUPT)
    assert await obeying == "made"


@pytest.mark.parametrize("given", [(Order.CANCEL, Order.INTERRUPT), (Order.INTERRUPT, Order.CANCEL)])
async def test_a_cancel_wins(given: tuple[Order, Order]) -> None:
    """The organizers' word stands, whether the daemon's stop comes before or after it."""
    orders = Orders()
    for order in given:
        orders.give(order)
    assert orders.order is Order.CANCEL


async def test_cancelling_the_caller_cancels_the_step() -> None:
    """A daemon that exits at once leaves no step behind."""
    ended = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    obeying = asyncio.ensure_future(Orders().obeyed(step()))
    await asyncio.sleep(0)
    obeying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await obeying
    assert ended == [True]
