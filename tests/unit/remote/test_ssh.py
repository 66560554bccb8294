"""The pool's own decisions: sharing, pacing, pins. Connections are fakes, and the clock is looptime's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rampd.remote.ssh import SshConnectionError, SshError, SshHost, SshHostKeyError, SshPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKey"
HOST = SshHost("i-1", "192.0.2.1", 22, "ubuntu", None)

pytestmark = pytest.mark.looptime(start=1000)


@dataclass(eq=False)
class FakeConnection:
    """What a connector opens."""

    host_key: str = KEY
    is_lost: bool = False
    is_closed: bool = False

    async def close(self) -> None:
        """Close it."""
        self.is_lost = self.is_closed = True


@dataclass
class FakeConnector:
    """Opens fakes, after so many seconds, or fails with the next error."""

    takes_s: float = 0.5
    errors: list[SshError] = field(default_factory=list)
    begun_at: list[float] = field(default_factory=list)
    pins: list[str | None] = field(default_factory=list)
    opened: list[FakeConnection] = field(default_factory=list)
    on_lost: Callable[[str], None] | None = None

    async def open(self, host: SshHost, *, pinned: str | None, on_lost: Callable[[str], None]) -> FakeConnection:
        """Open one."""
        self.begun_at.append(asyncio.get_running_loop().time())
        self.pins.append(pinned)
        self.on_lost = on_lost
        await asyncio.sleep(self.takes_s)
        if self.errors:
            raise self.errors.pop(0)
        self.opened.append(FakeConnection())
        return self.opened[-1]


@pytest.fixture
def connector() -> FakeConnector:
    """Give what opens connections."""
    return FakeConnector()


@pytest.fixture
async def pool(connector: FakeConnector) -> AsyncIterator[SshPool]:
    """Give an open pool with it."""
    pool = SshPool(Path("key"), connect_timeout_s=10)
    pool._connector = connector  # type: ignore[assignment]
    yield pool
    await pool._close()


async def test_callers_share_one_opening(pool: SshPool, connector: FakeConnector) -> None:
    """However many ask, and again later."""
    keys = await asyncio.gather(*(pool.connect(HOST) for _ in range(20)))
    assert await pool.connect(HOST) == KEY
    assert set(keys) == {KEY}
    assert len(connector.opened) == 1


async def test_callers_share_one_failure(pool: SshPool, connector: FakeConnector) -> None:
    """Nobody queues up to fail once more by itself."""
    connector.errors.append(SshConnectionError("i-1", "refused"))
    errors = await asyncio.gather(*(pool.connect(HOST) for _ in range(20)), return_exceptions=True)
    assert {str(error) for error in errors} == {"i-1: refused"}
    assert len(connector.begun_at) == 1


async def test_failures_are_followed_by_a_wait_that_grows_and_ends(pool: SshPool, connector: FakeConnector) -> None:
    """Half a second and twice as much each time, up to 15 s, less up to a half by chance; a success forgets it."""
    connector.takes_s = 0.0
    connector.errors = [SshConnectionError("i-1", "refused") for _ in range(9)]
    for _ in range(9):
        with pytest.raises(SshConnectionError):
            await pool.connect(HOST)
    await pool.connect(HOST)
    waits = [later - before for before, later in zip(connector.begun_at, connector.begun_at[1:], strict=False)]
    for number, wait in enumerate(waits):
        longest = min(15.0, 0.5 * 2**number)
        assert longest / 2 - 0.001 <= wait <= longest + 0.001
    assert len({round(wait / min(15.0, 0.5 * 2**number), 3) for number, wait in enumerate(waits)}) > 3
    connector.opened[0].is_lost = True
    before = asyncio.get_running_loop().time()
    await pool.connect(HOST)
    assert connector.begun_at[-1] == before


async def test_the_wait_is_one_hosts_own(pool: SshPool, connector: FakeConnector) -> None:
    """A host that fails slows no other down."""
    connector.errors = [SshConnectionError("i-1", "refused") for _ in range(5)]
    for _ in range(5):
        with pytest.raises(SshConnectionError):
            await pool.connect(HOST)
    begun = asyncio.get_running_loop().time()
    await pool.connect(replace(HOST, key="i-2"))
    assert connector.begun_at[-1] == begun


async def test_what_was_shown_first_is_pinned(pool: SshPool, connector: FakeConnector) -> None:
    """The first opening accepts, each later one insists."""
    await pool.connect(HOST)
    connector.opened[0].is_lost = True
    await pool.connect(HOST)
    assert connector.pins == [None, KEY]


async def test_a_pin_of_the_callers_counts_from_the_start(pool: SshPool, connector: FakeConnector) -> None:
    """Without its comment."""
    await pool.connect(replace(HOST, host_key=f"{KEY} root@ip-10-0-0-1"))
    assert connector.pins == [KEY]


async def test_a_kept_connection_does_not_satisfy_another_pin(pool: SshPool, connector: FakeConnector) -> None:
    """The caller's journal knows better than what was accepted at first use."""
    await pool.connect(HOST)
    with pytest.raises(SshHostKeyError, match="not the pinned one"):
        await pool.connect(replace(HOST, host_key="ssh-ed25519 AAAAother"))


async def test_a_disconnected_host_is_closed_and_forgotten(pool: SshPool, connector: FakeConnector) -> None:
    """Its pin too; nothing is kept of what has gone."""
    await pool.connect(HOST)
    await pool.disconnect("i-1")
    assert connector.opened[0].is_closed
    assert pool._entries == {}
    await pool.connect(HOST)
    assert connector.pins == [None, None]


async def test_disconnecting_ends_an_opening(pool: SshPool, connector: FakeConnector) -> None:
    """Whoever waited for it is told at once."""
    connector.takes_s = 3600
    waiting = asyncio.create_task(pool.connect(HOST))
    await asyncio.sleep(1)
    await pool.disconnect("i-1")
    with pytest.raises(SshConnectionError, match="disconnected"):
        await waiting
    assert asyncio.get_running_loop().time() < 1010


async def test_a_call_waits_for_an_opening_no_longer_than_it_was_given(pool: SshPool, connector: FakeConnector) -> None:
    """The opening goes on for the others."""
    connector.takes_s = 8
    with pytest.raises(SshConnectionError, match=r"no connection within 2 s"):
        await pool.run(HOST, "true", timeout_s=2, max_output_bytes=1)
    assert asyncio.get_running_loop().time() == pytest.approx(1002, abs=0.1)
    await pool.connect(HOST)
    assert len(connector.begun_at) == 1


async def test_who_still_waits_for_a_disconnected_host_opens_nothing(pool: SshPool, connector: FakeConnector) -> None:
    """A command that had no channel yet does not bring a connection back that nobody would close."""
    await pool.connect(HOST)
    entry = pool._entries["i-1"]
    for _ in range(5):
        await entry.channels.acquire()
    waiting = asyncio.create_task(pool.run(HOST, "true", timeout_s=60, max_output_bytes=1))
    await asyncio.sleep(1)
    await pool.disconnect("i-1")
    entry.channels.release()
    with pytest.raises(SshConnectionError, match="disconnected"):
        await waiting
    assert len(connector.begun_at) == 1


async def test_an_error_that_nobody_waited_for_is_nobodys_later(pool: SshPool, connector: FakeConnector) -> None:
    """Once all callers of an opening were cancelled, the next caller gets an opening of its own."""
    connector.errors.append(SshConnectionError("i-1", "refused"))
    waiting = asyncio.create_task(pool.connect(HOST))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.sleep(3)
    assert await pool.connect(HOST) == KEY
    assert len(connector.begun_at) == 2


async def test_a_closed_pool_opens_nothing(pool: SshPool, connector: FakeConnector) -> None:
    """Whoever is late is told."""
    await pool._close()
    with pytest.raises(SshConnectionError, match="closed"):
        await pool.connect(HOST)
    assert connector.begun_at == []


async def test_closing_the_pool_closes_everything(pool: SshPool, connector: FakeConnector) -> None:
    """What is open and what is being opened."""
    await pool.connect(HOST)
    connector.takes_s = 3600
    opening = asyncio.create_task(pool.connect(replace(HOST, key="i-2")))
    await asyncio.sleep(1)
    await pool._close()
    with pytest.raises(SshConnectionError):
        await opening
    assert connector.opened[0].is_closed


async def test_a_loss_is_a_record(pool: SshPool, connector: FakeConnector, log_records: list[dict[str, Any]]) -> None:
    """With the address and the id, for whoever reads the stream."""
    await pool.connect(HOST)
    assert connector.on_lost is not None
    connector.on_lost("Connection reset by peer")
    opened, lost = log_records
    assert (opened["event"], opened["host"], opened["instance_id"]) == ("ssh.connected", "192.0.2.1", "i-1")
    assert opened["connect_s"] == pytest.approx(0.5, abs=0.01)
    assert (lost["event"], lost["error"]) == ("ssh.lost", "Connection reset by peer")


def test_the_library_is_not_loaded_with_the_pool() -> None:
    """Who only names a host or an error does not pay for asyncssh; nor does a daemon without such workers."""
    program = "import sys, rampd.remote.ssh, rampd.remote.detached_run, rampd.daemon; print('asyncssh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
