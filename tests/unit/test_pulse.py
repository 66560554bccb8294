"""Whether a loop moves."""

from __future__ import annotations

import asyncio

from rampd.pulse import Pulse


def _nothing() -> None:
    """Poke nobody."""


async def test_a_beat_after_the_poke_is_felt() -> None:
    """One before it proves nothing."""
    pulse = Pulse()
    pulse.beat()
    feeling = asyncio.ensure_future(pulse.felt(_nothing))
    await asyncio.sleep(0.01)
    assert not feeling.done()
    pulse.beat()
    await feeling


async def test_the_poke_wakes_the_loop() -> None:
    """It is called once it matters, so that the beat that follows is an answer."""
    pulse = Pulse()
    await asyncio.wait_for(pulse.felt(pulse.beat), 1)


async def test_a_loop_that_rests_rightly_is_well() -> None:
    """It has nothing to do, and says how one sees that."""
    pulse = Pulse()
    with pulse.resting(lambda: True):
        await asyncio.wait_for(pulse.felt(_nothing), 1)


async def test_a_loop_that_rests_although_there_is_something_to_do_is_stuck() -> None:
    """A lost wake-up: it must not pass for rest."""
    pulse = Pulse()
    with pulse.resting(lambda: False):
        feeling = asyncio.ensure_future(pulse.felt(_nothing))
        await asyncio.sleep(0.01)
        assert not feeling.done()
    feeling.cancel()
    await asyncio.wait({feeling})


async def test_beginning_to_rest_is_a_beat() -> None:
    """Whoever waits need not wait for the end of the rest."""
    pulse = Pulse()
    feeling = asyncio.ensure_future(pulse.felt(_nothing))
    await asyncio.sleep(0)
    with pulse.resting(lambda: True):
        await asyncio.wait_for(feeling, 1)
