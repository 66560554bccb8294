"""What answers at an instance's address and is no SSH server, or one that means ill."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import asyncssh
import pytest

from rampd.remote.ssh import SshConnectionError, SshHost, SshPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SshPool]:
    """Give a pool that waits for two seconds."""
    key = tmp_path / "key"
    key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh"))
    key.chmod(0o400)
    async with AsyncExitStack() as stack:
        pool = SshPool(key, connect_timeout_s=2.0)
        await pool.open(stack)
        yield pool


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-\x1b[31mred\x07\r\n" + b"\x00" * 64,
        b"SSH-2.0-x\r\n\xff\xff\xff\xff" + b"A" * 4096,
        b"\x00" * 100_000,
        pytest.param(None, id="endless"),
    ],
)
async def test_what_is_no_ssh_server_is_an_error_in_one_printable_line(pool: SshPool, said: bytes | None) -> None:
    """Closed, or given up in time, whatever it says and however much; nothing of it gets into a terminal."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            if said is not None:
                writer.write(said)
            while said is None:
                writer.write(b"not yet\r\n" * 1000)
                await writer.drain()
            await writer.drain()
            if not said:
                writer.close()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(SshConnectionError) as caught:
            await pool.connect(SshHost("i-0a", "127.0.0.1", port, "ubuntu", None))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    finally:
        server.close()
        await server.wait_closed()


async def test_a_server_that_lets_us_in_and_throws_us_out_is_not_connected_to(pool: SshPool) -> None:
    """Its words are escaped, and the command's caller hears of it."""

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection = conn

        def session_requested(self) -> bool:
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, "go\x1b[31m away\n" + "x" * 5000)
            return False

    server = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")]
    )
    try:
        host = SshHost("i-0a", "127.0.0.1", server.get_port(), "ubuntu", None)
        with pytest.raises(SshConnectionError) as caught:
            await pool.run(host, "true", timeout_s=20, max_output_bytes=10)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    finally:
        await pool.disconnect("i-0a")
        server.close()
        await server.wait_closed()
