from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from rampd.workers.calls import THREAD_PREFIX, Caller, Return
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Callable

_BOUND: ContextVar[str] = ContextVar("bound", default="")


async def _called(caller: Caller, function: Callable[[], object]) -> Return:
    return await caller.begin("method", function).future


def _nothing() -> None:
    pass


async def test_every_call_is_in_one_thread_of_its_own() -> None:
    """Neither the loop's nor the executor's, named, and one for which no process waits."""
    caller = Caller("one")
    assert not caller.is_alive
    threads = {(await _called(caller, threading.current_thread)).value for _ in range(3)}
    (thread,) = threads
    assert thread.name == f"{THREAD_PREFIX}one"
    assert thread.daemon
    assert thread.native_id == caller.thread_id
    caller.close(_nothing)
    await until(lambda: not caller.is_alive)
    assert caller.thread_id is None


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(), SystemExit(1), KeyboardInterrupt()])
async def test_an_exception_is_handed_over(error: BaseException) -> None:
    """Whichever it is, it comes as data, and the thread goes on."""

    def fail() -> None:
        raise error

    caller = Caller("one")
    assert (await _called(caller, fail)).error is error
    assert await _called(caller, lambda: 3) == Return(3)
    caller.close(_nothing)


async def test_a_call_knows_what_is_bound() -> None:
    """What a plug-in logs is said of its submission."""
    caller = Caller("one")
    _BOUND.set("one")
    assert (await _called(caller, _BOUND.get)).value == "one"
    caller.close(_nothing)


async def test_a_call_that_was_abandoned() -> None:
    """Nobody hears of its end, no other is begun after it, and the last word comes after it in its own thread."""
    caller, go_on, said = Caller("one"), threading.Event(), []
    call = caller.begin("method", lambda: go_on.wait(30))
    caller.abandon()
    assert caller.is_busy
    with pytest.raises(RuntimeError, match="other was called while another call is under way"):
        caller.begin("other", _nothing)
    caller.close(lambda: said.append(threading.current_thread().name))
    assert said == []
    go_on.set()
    await until(lambda: not caller.is_alive)
    assert said == [f"{THREAD_PREFIX}one"]
    assert call.future.cancelled()


async def test_a_caller_that_was_never_used_is_closed_at_once() -> None:
    """There is no thread to end."""
    caller, said = Caller("one"), []
    caller.close(lambda: said.append(1))
    assert (caller.is_alive, said) == (False, [])


def test_a_loop_that_is_gone_disturbs_no_thread() -> None:
    """A call that comes back after the daemon's end ends its thread without a sound."""
    caller, go_on = Caller("one"), threading.Event()

    async def begin() -> None:
        caller.begin("method", lambda: go_on.wait(30))
        caller.close(_nothing)

    asyncio.run(begin())
    go_on.set()
    caller._thread.join(10)
    assert not caller.is_alive
