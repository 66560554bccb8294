"""Connecting a socket, and waiting for the other side's first word, before any protocol has a say."""

from __future__ import annotations

import asyncio
import socket


async def connected_socket(address: str, port: int) -> socket.socket:
    """Return a socket that is connected; the caller closes it.

    Raises
    ------
    OSError
        It was refused, there is no way there, or no such name.
    """
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, where = (await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM))[0]
    connecting = socket.socket(family, kind, protocol)
    try:
        connecting.setblocking(False)
        await loop.sock_connect(connecting, where)
    except BaseException:
        connecting.close()
        raise
    return connecting


async def first_byte(connected: socket.socket) -> None:
    """Wait until the other side has said something, or has closed. Reads nothing."""
    loop = asyncio.get_running_loop()
    spoken = loop.create_future()
    loop.add_reader(connected, lambda: None if spoken.done() else spoken.set_result(None))
    try:
        await spoken
    finally:
        loop.remove_reader(connected)
