"""Slurm's four commands, asked without blocking: sbatch(1), squeue(1), sacct(1), scancel(1)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES: Final = ("sbatch", "squeue", "sacct", "scancel")
PATIENCE_S: Final = 60.0
"""How long a command may take; a busy controller answers within seconds."""


class SlurmError(Exception):
    """A command failed, or did not answer. The message is what it said, in a line."""


@dataclass(frozen=True, slots=True)
class JobState:
    """What squeue knows of a job."""

    job_id: str
    name: str
    state: str


@dataclass(frozen=True, slots=True)
class Accounted:
    """What sacct knows of a job."""

    state: str
    status: int
    signal: int


class Slurm:
    """The commands, found in a folder or on PATH.

    Parameters
    ----------
    folder
        Where they are; None: on PATH.
    fresh_s
        For so many seconds one look at the queue serves everybody who asks.
    """

    def __init__(self, folder: Path | None, *, fresh_s: float) -> None:
        self._folder = folder
        self._fresh_s = fresh_s
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._queue: dict[str, JobState] = {}

    def path(self, name: str) -> str:
        """Return what runs a command."""
        return str(self._folder / name) if self._folder is not None else name

    async def run(self, name: str, *words: str) -> str:
        """Run a command; return what it printed.

        Raises
        ------
        SlurmError
            It is not there, failed, or took too long; in that case it was killed.
        """
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                self.path(name), *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise SlurmError(f"{name}: {error.strerror}") from error
        try:
            async with asyncio.timeout(PATIENCE_S):
                printed, complaint = await process.communicate()
        except TimeoutError:
            raise SlurmError(f"{name} did not answer within {PATIENCE_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        if process.returncode != 0:
            raise SlurmError(f"{name}: {_last_line(complaint) or f'status {process.returncode}'}")
        return printed.decode("utf-8", "replace")

    async def queue(self, *, anew: bool = False) -> dict[str, JobState]:
        """Return our jobs by id: those that wait and run, and those that ended within the last minutes.

        Raises
        ------
        SlurmError
            squeue failed.
        """
        async with self._looking:
            if anew or time.monotonic() - self._looked_at > self._fresh_s:
                printed = await self.run("squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%j")
                rows = [line.strip().split("|", 2) for line in printed.splitlines() if line.count("|") >= 2]
                self._queue = {job_id: JobState(job_id, name, state) for job_id, state, name in rows}
                self._looked_at = time.monotonic()
            return self._queue

    async def accounted(self, job_id: str) -> Accounted | None:
        """Return what the accounting has of a job; None where it has nothing yet.

        Raises
        ------
        SlurmError
            sacct failed: a cluster may do without accounting.
        """
        words = ("--noheader", "--parsable2", "--allocations", "--format=State,ExitCode", f"--jobs={job_id}")
        for line in (await self.run("sacct", *words)).splitlines():
            state, _, code = line.strip().partition("|")
            status, _, signal = code.partition(":")
            if state and status.isdigit() and signal.isdigit():
                # `CANCELLED by 1000` is CANCELLED.
                return Accounted(state.split()[0], int(status), int(signal))
        return None

    async def named(self, name: str) -> str | None:
        """Return the id of the latest job of that name, ended ones included; None where there is none.

        Raises
        ------
        SlurmError
            squeue failed.
        """
        found = [job.job_id for job in (await self.queue(anew=True)).values() if job.name == name]
        return max(found, key=int) if found else None

    async def submit(self, words: Sequence[str]) -> str:
        """Hand a job in; return its id.

        Raises
        ------
        SlurmError
            sbatch failed. Whether there is a job now is not known where it did not answer.
        """
        printed = (await self.run("sbatch", "--parsable", *words)).strip()
        job_id = printed.partition(";")[0]  # with several clusters `id;cluster`
        if not job_id.isdigit():
            raise SlurmError(f"sbatch printed {printed[:80]!r}, which is no job's id")
        return job_id


def _last_line(raw: bytes) -> str:
    lines = raw.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
