"""A TCP proxy on loopback that tests cut: a network that breaks, or that swallows everything without a word."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Self

_CHUNK = 1 << 16


class Proxy:
    """Passes connections on to a port, in a thread of its own. Use it as a context manager.

    Parameters
    ----------
    target_port
        On 127.0.0.1.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._is_refusing = False
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)  # type: ignore[arg-type]

    async def _open(self) -> None:
        self._passes.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._abort()
        self._passes.set()
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self._is_refusing:
            writer.transport.abort()
            return
        await self._passes.wait()
        if writer.transport.is_closing():
            return
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(back)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Reset every connection, and each one that comes."""

        async def now() -> None:
            self._is_refusing = True
            self._abort()

        self._do(now())

    def swallow(self) -> None:
        """Let nothing through, without a word: what is sent is taken, and never arrives."""

        async def now() -> None:
            self._passes.clear()

        self._do(now())

    def mend(self, *, drop: bool = False) -> None:
        """Let everything through again.

        Parameters
        ----------
        drop
            Reset the connections of before first: a network that was gone for long has forgotten them.
        """

        async def now() -> None:
            if drop:
                self._abort()
            self._is_refusing = False
            self._passes.set()

        self._do(now())


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
