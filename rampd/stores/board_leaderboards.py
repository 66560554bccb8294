"""Leaderboards: ramp_database's own functions build them, in a process of their own, when enough has changed.

rampd cannot import ramp_database (it wants SQLAlchemy < 2.1 and numpy < 2), and would not want to: a build takes
seconds. At most one build runs and at most one waits; builds are as nice as can be, and never use more than half of
the time. A build that fails is tried again, and costs no submission.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from rampd import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rampd.board_config import SqlalchemySection

log = structlog.get_logger("rampd.stores.rampboard")

_PROGRAM: Final = Path(__file__).with_name("board_leaderboards_program.py")
_GATHER_S = 1.0
"""How long a build waits for more changes that it can take with it."""
_PAUSE_S = 5.0
"""How long at least there is no build after one."""
_BUILD_S = 600.0
_LAST_BUILD_S = 30.0
"""How long a daemon that ends waits for the pages of what it did last."""
_FIRST_RETRY_S = 10.0
_LONGEST_RETRY_S = 300.0
_PROBE_S = 30.0
_TAIL_BYTES: Final = 4096
"""So much of what a child said last is kept: a library that warns in a loop must not fill the daemon's memory."""
_NICE = "nice"


class Leaderboards:
    """Has one event's pages built.

    Parameters
    ----------
    section
        Where the board's database is; handed to ramp_database as it stands in the deployment's file.
    event_name
        The event's name.
    python
        An interpreter that can import ramp_database; None for the first of this one and python3 on PATH that can.
    """

    def __init__(self, section: SqlalchemySection, *, event_name: str, python: Path | None = None) -> None:
        self._section = section
        self._event_name = event_name
        self._given = python
        self._python: Path | None = None
        self._wanted: bool | None = None
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_unavailable = False

    def ask_for(self, *, final: bool) -> None:
        """Ask for a build, soon.

        Parameters
        ----------
        final
            Whether a submission came to its end; else only the pages of those that wait are built.
        """
        if self._is_unavailable:
            return
        self._wanted = bool(self._wanted) or final
        self._asked.set()
        if self._task is None:
            self._task = asyncio.create_task(self._build_on(), name=f"{self._event_name}:board/leaderboards")

    async def close(self, *, build: bool = True) -> None:
        """End what is being built, and `build` once more what is still wanted, for half a minute at most."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        self._task = None
        if build and self._wanted is not None:
            with suppress(TimeoutError, _BuildError):
                async with asyncio.timeout(_LAST_BUILD_S):
                    await self._build()

    async def _build_on(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            await self._asked.wait()
            await asyncio.sleep(_GATHER_S)
            began = clock.boottime()
            try:
                await self._build()
            except _BuildError as error:
                if self._is_unavailable:
                    log.warning("leaderboards.unavailable", error=str(error))
                    return
                log.error("leaderboards.failed", error=str(error), delay_s=retry_s)  # noqa: TRY400 -- the message says it all
                self._asked.set()
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
            else:
                retry_s = _FIRST_RETRY_S
                await asyncio.sleep(max(_PAUSE_S, clock.boottime() - began))

    async def _build(self) -> None:
        """Build what is wanted; it stays wanted where that fails.

        Raises
        ------
        _BuildError
            It failed, or there is nothing to build with.
        """
        if self._python is None:
            try:
                self._python = await find_python(self._given)
            except LookupError as error:
                self._is_unavailable = True
                self._wanted = None
                raise _BuildError(str(error)) from error
        final, self._wanted = bool(self._wanted), None
        self._asked.clear()
        began = clock.boottime()
        try:
            await self._run(self._python, final=final)
        except BaseException:
            self._wanted = bool(self._wanted) or final
            raise
        log.info("leaderboards.built", took_s=clock.boottime() - began, new_only=not final)

    async def _run(self, python: Path, *, final: bool) -> None:
        section = self._section
        database = {
            **section.model_dump(mode="json", exclude={"password", "query"}),
            # ramp_database's own driver, whatever name the file has for it.
            "drivername": "postgresql" if section.drivername == "postgresql+psycopg" else section.drivername,
            "password": section.password.get_secret_value() if section.password else None,
            "query": dict(section.query),
        }
        asked = json.dumps({"database": database, "event_name": self._event_name, "final": final})
        await _ask_child([_NICE, "-n", "19", str(python), "-I", str(_PROGRAM)], asked.encode(), timeout_s=_BUILD_S)


class _BuildError(Exception):
    """A build that failed, with what it said last."""


async def find_python(given: Path | None) -> Path:
    """Return an interpreter that can import ramp_database.

    Parameters
    ----------
    given
        The only one to look at; None for this one and python3 on PATH.

    Raises
    ------
    LookupError
        None can; the message says which were asked.
    """
    on_path = shutil.which("python3")
    candidates = [given] if given is not None else [Path(sys.executable), *([Path(on_path)] if on_path else [])]
    for candidate in candidates:
        question = "from importlib.util import find_spec; raise SystemExit(find_spec('ramp_database') is None)"
        with suppress(_BuildError):
            await _ask_child([str(candidate), "-I", "-c", question], b"", timeout_s=_PROBE_S)
            return candidate
    raise LookupError(
        f"{' and '.join(map(str, candidates))} cannot import ramp_database; "
        f"name the interpreter of ramp-frontend's environment with --board-python"
    )


async def _ask_child(command: Sequence[str], said: bytes, *, timeout_s: float) -> None:
    """Run a program to its end.

    Raises
    ------
    _BuildError
        It failed, could not be started, or took too long.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise _BuildError(f"{command[0]}: {error.strerror}") from error
    if child.stdin is None or child.stderr is None:
        raise RuntimeError("a child has its pipes, for they were asked for")
    # Less than a pipe holds: nobody waits for a child that does not read.
    child.stdin.write(said)
    child.stdin.close()
    try:
        async with asyncio.timeout(timeout_s):
            stderr = await _heard_out(child, child.stderr)
    except TimeoutError as error:
        raise _BuildError(f"not done after {timeout_s:g} s") from error
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            # What is still in the pipe has to be read, or asyncio never comes to see its end, and waits for it.
            await asyncio.shield(_heard_out(child, child.stderr))
    if child.returncode != 0:
        lines = stderr.decode(errors="replace").strip().splitlines()
        raise _BuildError(lines[-1][:500] if lines else f"status {child.returncode}, and nothing said")


async def _heard_out(child: asyncio.subprocess.Process, stderr: asyncio.StreamReader) -> bytes:
    """Read what a child says as fast as it does, and return the last of it once it has ended."""
    tail = b""
    while said := await stderr.read(1 << 16):
        tail = (tail + said)[-_TAIL_BYTES:]
    await child.wait()
    return tail
