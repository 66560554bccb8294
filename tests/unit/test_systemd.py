"""What is told to systemd, with a unix datagram socket in its place."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from rampd.systemd import Notifier, watch_over
from support.service_manager import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    """Give a socket in place of systemd."""
    with ServiceManager(tmp_path / "notify") as manager:
        yield manager


@pytest.fixture
def notifier(manager: ServiceManager) -> Iterator[Notifier]:
    """Give a notifier that speaks to it, with a watchdog of 0.3 s."""
    environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environment)
    yield notifier
    notifier.close()


def test_the_environment_is_read_once_and_not_passed_on() -> None:
    """What this daemon starts must not speak to systemd in its name."""
    environment = {"NOTIFY_SOCKET": "@rampd", "WATCHDOG_USEC": "2000000", "HOME": "/srv"}
    notifier = Notifier.from_environment(environment)
    assert (notifier.address, notifier.watchdog_s) == ("@rampd", 2.0)
    assert environment == {"HOME": "/srv"}


def test_a_watchdog_for_another_process_is_none_of_ours() -> None:
    """WATCHDOG_PID names whom systemd waits for."""
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid() + 1)}
    assert Notifier.from_environment(environment).watchdog_s is None


@pytest.mark.parametrize("usec", ["", "0", "-1", "soon"])
def test_a_watchdog_without_a_time_is_off(usec: str) -> None:
    """As sd_watchdog_enabled(3) has it."""
    assert Notifier.from_environment({"WATCHDOG_USEC": usec}).watchdog_s is None


def test_nobody_who_listens_is_no_error(tmp_path: Path) -> None:
    """Neither without a socket, nor with one that is gone."""
    Notifier().ready("fine")
    gone = Notifier(str(tmp_path / "gone"))
    gone.ready("fine")
    gone.close()


def test_a_socket_in_the_abstract_namespace_is_reached() -> None:
    """Its name begins with an @."""
    name = f"rampd-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        notifier = Notifier(f"@{name}")
        notifier.ping()
        assert listening.recv(100) == b"WATCHDOG=1"
        notifier.close()


def test_reloading_carries_the_monotonic_time(manager: ServiceManager, notifier: Notifier) -> None:
    """The manager tells by it which READY=1 answers which reload."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    number = manager.wait_for(lambda message: message.get("RELOADING") == "1")
    usec = int(manager.messages[number]["MONOTONIC_USEC"])
    assert before <= usec <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_each_word_is_systemds(manager: ServiceManager, notifier: Notifier) -> None:
    """READY, STOPPING, STATUS and EXTEND_TIMEOUT_USEC."""
    notifier.ready("a\nb")
    notifier.stopping("going")
    notifier.status("x" * 1000)
    notifier.extend(1.5)
    manager.wait_for(lambda message: "EXTEND_TIMEOUT_USEC" in message)
    assert manager.messages[:2] == [{"READY": "1", "STATUS": "a b"}, {"STOPPING": "1", "STATUS": "going"}]
    assert len(manager.messages[2]["STATUS"]) == 400
    assert manager.messages[3] == {"EXTEND_TIMEOUT_USEC": "1500000"}


async def _until(predicate: Callable[[], bool]) -> None:
    while not predicate():  # noqa: ASYNC110 -- the socket's thread sets no event of this loop
        await asyncio.sleep(0.01)


async def _nothing() -> None:
    """Prove at once."""


async def test_pings_come_faster_than_the_interval(manager: ServiceManager, notifier: Notifier) -> None:
    """Three within each."""
    watching = asyncio.ensure_future(watch_over(notifier, _nothing))
    await _until(lambda: manager.count("WATCHDOG") >= 6)
    watching.cancel()
    pauses = [later - earlier for earlier, later in zip(manager.times, manager.times[1:], strict=False)]
    assert sorted(pauses)[len(pauses) // 2] < 0.3


async def test_a_blocked_loop_sends_no_pings(manager: ServiceManager, notifier: Notifier) -> None:
    """For as long as it is blocked, longer than the interval, systemd hears nothing."""
    watching = asyncio.ensure_future(watch_over(notifier, _nothing))
    await _until(lambda: manager.count("WATCHDOG") > 0)
    manager.settle()
    before = manager.count("WATCHDOG")
    time.sleep(0.7)  # noqa: ASYNC251 -- a blocked loop is what is tested
    assert manager.count("WATCHDOG") == before
    await _until(lambda: manager.count("WATCHDOG") > before)
    watching.cancel()


async def test_no_proof_no_ping(manager: ServiceManager, notifier: Notifier) -> None:
    """A loop that moves is not enough: the proof has to come back, each time."""
    proven = asyncio.Event()
    asked = asyncio.Event()

    async def prove() -> None:
        asked.set()
        await proven.wait()

    watching = asyncio.ensure_future(watch_over(notifier, prove))
    await asked.wait()
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert manager.count("WATCHDOG") == 0
    proven.set()
    await _until(lambda: manager.count("WATCHDOG") > 0)
    watching.cancel()


async def test_without_a_watchdog_there_is_nothing_to_do() -> None:
    """It returns at once."""
    await watch_over(Notifier(), _nothing)
