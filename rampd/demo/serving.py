"""The real `rampd` as a child process, followed through its log stream."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Record = dict[str, Any]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LINE_LIMIT_BYTES = 128 * 1024
"""Four times the longest line of the stream."""
_STOP_S = 45.0
"""Longer than the daemon's own grace."""


@dataclass(frozen=True, slots=True)
class Served:
    """How the daemon ended."""

    status: int
    """Its exit status; negative for a signal."""
    interrupted: bool
    """Whether somebody asked the demo to stop (Ctrl-C, SIGTERM)."""
    timed_out: bool
    """Whether it had to be stopped because it took too long."""


async def serve(config: Path, *, stream: Path, timeout_s: float, on_record: Callable[[Record], None]) -> Served:
    """Run the daemon until it ends by itself, and stop it as systemd would when it must.

    Parameters
    ----------
    config
        The event's config file.
    stream
        Takes a copy of the log stream; what the daemon says on stderr goes beside it, with the suffix `.stderr`.
    timeout_s
        When to stop it if it does not end.
    on_record
        Called with every record, as it comes.
    """
    with stream.open("wb") as copy, stream.with_suffix(".stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rampd", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=_LINE_LIMIT_BYTES,
            start_new_session=True,  # Ctrl-C comes to us alone, and is handed on once
        )
        interrupted = timed_out = False

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            _terminate(process)

        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt)
        following = asyncio.create_task(_follow(process, copy.write, on_record), name="log stream")
        try:
            done, _ = await asyncio.wait({following}, timeout=timeout_s)
            if not done:
                timed_out = True
                _terminate(process)
                await asyncio.wait({following}, timeout=_STOP_S)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            if process.returncode is None:
                process.kill()
            status = await following
    return Served(status, interrupted, timed_out)


def _terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()


async def _follow(
    process: asyncio.subprocess.Process, keep: Callable[[bytes], object], on_record: Callable[[Record], None]
) -> int:
    assert process.stdout is not None  # noqa: S101 -- it was asked for
    async for line in process.stdout:
        keep(line)
        if line.endswith(b"\n"):  # after a kill the last line may be unfinished
            on_record(json.loads(line))
    return await process.wait()
