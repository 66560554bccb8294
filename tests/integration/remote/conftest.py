"""What the remote floor's tests share: a machine with a real sshd, a pool, and a run on the machine."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from rampd.remote.detached_run import DetachedRun
from rampd.remote.ssh import SshHost, SshPool
from support.conda import warm_up_uvloop
from support.far import Far
from support.requirements import needs
from support.sshd import Sshd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Sshd]:
    """Give a machine that can be logged in to; it is terminated afterwards."""
    with Sshd(tmp_path / "machine") as machine:
        yield machine


@pytest.fixture
def host(machine: Sshd) -> SshHost:
    """Give the machine as the pool knows it, with its host key not known yet."""
    return SshHost("i-0a", machine.address, machine.port, machine.user, None)


@pytest.fixture
async def pool(machine: Sshd) -> AsyncIterator[SshPool]:
    """Give an open pool with the machine's client key."""
    async with AsyncExitStack() as stack:
        pool = SshPool(machine.client_key, connect_timeout_s=20.0)
        await pool.open(stack)
        yield pool


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest, machine: Sshd) -> str:
    """Have the machine's `sh` be dash (Debian, Ubuntu), then bash (Amazon Linux)."""
    name: str = request.param
    needs(name)
    machine.use_shell(name)
    return name


@pytest.fixture
def far(machine: Sshd, host: SshHost, pool: SshPool, tmp_path: Path) -> Far:
    """Give a run on the machine, of which nothing is there yet."""
    return Far(pool, host, machine, DetachedRun("5f" * 16, "first", str(machine.kit)), tmp_path)
