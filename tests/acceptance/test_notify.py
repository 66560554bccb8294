"""What a real daemon tells systemd, with a socket in systemd's place."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from support.daemon import RampdProcess, wait_until
from support.deployment import Deployment
from support.service_manager import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., RampdProcess]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    """Give a socket in place of systemd."""
    with ServiceManager(tmp_path / "notify") as manager:
        yield manager


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event with a stub environment."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    return event


@pytest.fixture
def start(event: Deployment, manager: ServiceManager) -> Start:
    """Give what starts the daemon as systemd would."""

    def started(**variables: str) -> RampdProcess:
        environment = {**os.environ, "NOTIFY_SOCKET": str(manager.path), **variables}
        return RampdProcess(event.config, environment=environment)

    return started


def _says(status: str) -> Callable[[dict[str, str]], bool]:
    return lambda message: message.get("STATUS") == status


def test_a_life_from_ready_to_stopping(event: Deployment, manager: ServiceManager, start: Start) -> None:
    """READY with daemon.ready, a STATUS that counts, RELOADING and READY around a reload, STOPPING, more time."""
    event.dispatcher["n_workers"] = 1
    event.write_config()
    event.submit("first")
    with start() as daemon:
        ready = manager.wait_for(lambda message: message.get("READY") == "1")
        assert "running" in manager.messages[ready]["STATUS"]
        assert any("EXTEND_TIMEOUT_USEC" in message for message in manager.messages[:ready])
        daemon.finished("first")
        done = manager.wait_for(_says("0 running, 0 waiting, 1 done"))
        event.submit("slow", f"while ! test -e {event.root}/go; do sleep 0.02; done")
        for count, name in enumerate(("waits", "waits-too", "waits-as-well"), start=1):
            event.submit(name)
            manager.wait_for(_says(f"1 running, {count} waiting, 1 done"), after=done)
        event.config.write_text("ramp: {}\n", encoding="utf-8")
        daemon.process.send_signal(signal.SIGHUP)
        reloading = manager.wait_for(lambda message: message.get("RELOADING") == "1", after=done)
        assert manager.messages[reloading]["MONOTONIC_USEC"].isdecimal()
        again = manager.wait_for(lambda message: message.get("READY") == "1", after=reloading)
        assert (
            f"config rejected (the last good one is in force, if there was one): {event.config}"
            in (manager.messages[again]["STATUS"])
        )
        daemon.process.send_signal(signal.SIGTERM)
        stopping = manager.wait_for(lambda message: message.get("STOPPING") == "1", after=again)
        assert manager.messages[stopping]["STATUS"] == "stopping: 1 running, at most 30 s"
        manager.wait_for(lambda message: "EXTEND_TIMEOUT_USEC" in message, after=stopping)
        (event.root / "go").touch()
        assert daemon.wait() == 0


def test_what_the_daemon_starts_does_not_speak_for_it(event: Deployment, start: Start) -> None:
    """Submissions see nothing of the service manager."""
    event.worker["env"] = {"NOTIFY_SOCKET": None, "WATCHDOG_USEC": None}
    event.write_config()
    event.submit("curious", "env")
    with start(WATCHDOG_USEC="30000000") as daemon:
        daemon.finished("curious")
        assert daemon.stop() == 0
    text = (event.logs / "curious" / "log").read_text()
    assert "PATH=" in text
    assert "NOTIFY" not in text
    assert "WATCHDOG" not in text


def test_the_watchdog_hears_from_a_daemon_that_moves(event: Deployment, manager: ServiceManager, start: Start) -> None:
    """Idle, with every slot taken, and while it works."""
    event.dispatcher["n_workers"] = 1
    event.write_config()
    with start(WATCHDOG_USEC="600000") as daemon:
        daemon.wait_for("daemon.ready")
        idle = manager.count("WATCHDOG")
        manager.wait_for(lambda _: manager.count("WATCHDOG") >= idle + 3)
        event.submit("long", f"while ! test -e {event.root}/go; do sleep 0.02; done")
        event.submit("waits")
        daemon.wait_for("submission.started")
        full = manager.count("WATCHDOG")
        manager.wait_for(lambda _: manager.count("WATCHDOG") >= full + 3)
        (event.root / "go").touch()
        daemon.finished("long", "waits")
        assert daemon.stop() == 0


def test_the_watchdog_hears_nothing_from_a_daemon_that_stands_still(
    event: Deployment, manager: ServiceManager, start: Start
) -> None:
    """A process that is stopped for longer than the interval misses its pings, and sends them again afterwards."""
    with start(WATCHDOG_USEC="600000") as daemon:
        daemon.wait_for("daemon.ready")
        manager.wait_for(lambda message: "WATCHDOG" in message)
        daemon.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(daemon.pid).status() == psutil.STATUS_STOPPED, what="the stop")
        manager.settle()
        before = manager.count("WATCHDOG")
        time.sleep(1.0)  # longer than the interval
        assert manager.count("WATCHDOG") == before
        daemon.process.send_signal(signal.SIGCONT)
        manager.wait_for(lambda _: manager.count("WATCHDOG") > before)
        assert daemon.stop() == 0
