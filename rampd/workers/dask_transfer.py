"""What travels between the daemon and a run on a Dask worker's host: the submission there; log and results back.

Everything goes in pieces of at most a megabyte, few at a time over all runs, so that neither the daemon's memory nor
its loop feels how much it is; files are read and written off the loop.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from rampd.copying import UnsafeTreeError
from rampd.errors import ResultsError, WorkerError, WorkerLostError, WorkerUnavailableError
from rampd.remote.archive import largest_archive_bytes, pack_submission, unpack
from rampd.workers.dask_run import INLINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rampd.models import Job
    from rampd.workers.dask_allocation import DaskAllocation
    from rampd.workers.dask_cluster import Cluster

log = structlog.get_logger("rampd.workers.dask")

PIECE_BYTES = 1 << 20
_AT_ONCE = 4
"""Pieces on their way at any moment, over all runs."""
_LOG_MARGIN_BYTES = 4096
"""For the last line that says that a log was cut, beyond what is kept of it."""
_TRIES = 5
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a run left."""

    training_output: Path | None
    refused: str
    run_dir: str


class Transfer:
    """Moves bytes for one event.

    Parameters
    ----------
    cluster
        Over which they go.
    request
        Makes a request of the remote part: its name, and what it is asked with.
    """

    def __init__(self, cluster: Cluster, request: Callable[..., dict[str, Any]]) -> None:
        self._cluster = cluster
        self._request = request
        self._pieces = asyncio.Semaphore(_AT_ONCE)
        self._heads: dict[str, Mapping[str, Any]] = {}
        """What is known of the results of runs that have ended, by attempt."""

    async def ask(self, allocation: DaskAllocation, do: str, **more: Any) -> tuple[Mapping[str, Any], bytes]:
        """Have the run's Dask worker answer.

        Raises
        ------
        WorkerUnavailableError
            It does not.
        """
        address = allocation.dask_worker
        answers = await self._cluster.ask([address], self._request(do, attempt=allocation.attempt_id, **more))
        if address not in answers:
            raise WorkerUnavailableError(f"the Dask worker {address} does not answer")
        head, payload = split(answers[address])
        if "error" in head:
            raise WorkerError(f"{head['error']} on {allocation.host} (Dask worker {address})")
        return head, payload

    def pack(self, job: Job, *, max_bytes: int, max_files: int) -> None:
        """Make the archive of a submission, beside where it will be collected. Blocking.

        Raises
        ------
        UnsafeTreeError, ResultsError, OSError
        """
        with _archive_of(job.attempt_dir).open("wb") as archive:
            pack_submission(
                job.submission_dir,
                archive,
                name=job.submission,
                scratch=job.attempt_dir / "scratch",
                max_bytes=max_bytes,
                max_files=max_files,
            )

    async def send(self, allocation: DaskAllocation) -> bytes | None:
        """Send a submission's archive ahead of its task; return it where it is small enough to travel with that."""
        path = _archive_of(Path(allocation.attempt_dir))
        size, small = await asyncio.to_thread(_size_or_all_of, path)
        if small is not None:
            return small
        for offset in range(0, size, PIECE_BYTES):
            async with self._pieces:
                piece = await asyncio.to_thread(_read_at, path, offset, PIECE_BYTES)
                await self.ask(allocation, "put", offset=offset, piece=piece)
        return None

    async def follow_log(self, allocation: DaskAllocation, *, every_s: float, max_bytes: int) -> None:
        """Let the local log grow with the run's, until it is cancelled.

        The bound is kept over there as well; but a submission may be able to write to its log itself.

        Raises
        ------
        ResultsError
            It cannot be written here.
        """
        while True:
            await asyncio.sleep(every_s)
            try:
                while await self._fetch_log_piece(allocation, max_bytes + _LOG_MARGIN_BYTES):
                    pass
            except WorkerError as error:
                if isinstance(error, ResultsError):
                    raise
                # The run goes on all the same, and the log comes with its end.

    async def _fetch_log_piece(self, allocation: DaskAllocation, most: int) -> bool:
        path = Path(allocation.log_path)
        offset = await asyncio.to_thread(_size_of, path)
        size = min(PIECE_BYTES, most - offset)
        if size <= 0:
            return False
        async with self._pieces:
            _, piece = await self.ask(allocation, "read", file="log", offset=offset, size=size)
            # At its offset: should this be cancelled, and somebody else write the same piece, it is the same log.
            await asyncio.to_thread(_write_at, path, offset, piece[:size])
        return len(piece) == PIECE_BYTES

    async def keep(self, allocation: DaskAllocation, head: Mapping[str, Any], payload: bytes) -> None:
        """Keep what came with the end of a run."""
        self._heads[allocation.attempt_id] = head
        if not head.get("inline"):
            return
        log_bytes = int(head["kept_log_bytes"])
        log_path, results = Path(allocation.log_path), _results_of(allocation)

        def write() -> None:
            _write_at(log_path, 0, payload[:log_bytes])
            if head["results_bytes"] is not None:
                _write_at(results, 0, payload[log_bytes:])

        await asyncio.to_thread(write)

    async def fetch(self, allocation: DaskAllocation, *, max_bytes: int, max_files: int, max_log_bytes: int) -> Fetched:
        """Fetch what has not come yet, and unpack training_output into the attempt's folder.

        Raises
        ------
        WorkerLostError
            It is not there any more.
        ResultsError
            It cannot be written here.
        """
        head = self._heads.get(allocation.attempt_id)
        if head is None:
            raise WorkerLostError("the run's end is not known")
        size = int(head["results_bytes"] or 0)
        if size > largest_archive_bytes(max_bytes=max_bytes, max_files=max_files):
            return Fetched(None, "it is too large", str(head["folder"]))
        if not head["inline"]:
            log_bytes = min(int(head["kept_log_bytes"]), max_log_bytes + _LOG_MARGIN_BYTES)
            await self._fetch_file(allocation, "log", Path(allocation.log_path), log_bytes)
            if size:
                await self._fetch_file(allocation, "results", _results_of(allocation), size)
        if not size:
            return Fetched(None, str(head["refused"]), str(head["folder"]))
        output = Path(allocation.attempt_dir) / "training_output"
        try:
            await asyncio.to_thread(_unpack, _results_of(allocation), output, max_bytes, max_files)
        except UnsafeTreeError as error:
            return Fetched(None, str(error), str(head["folder"]))
        return Fetched(output, "", str(head["folder"]))

    async def _fetch_file(self, allocation: DaskAllocation, file: str, path: Path, size: int) -> None:
        offset = await asyncio.to_thread(_size_of, path)
        tries = 0
        while offset < size:
            try:
                async with self._pieces:
                    wanted = min(PIECE_BYTES, size - offset)
                    head, piece = await self.ask(allocation, "read", file=file, offset=offset, size=wanted)
                    if not head.get("is_there") or not piece or len(piece) > wanted:
                        raise WorkerLostError(f"the {file} of the run is gone from {allocation.host}")
                    await asyncio.to_thread(_write_at, path, offset, piece)
            except WorkerUnavailableError as error:
                tries += 1
                if tries == _TRIES or allocation.dask_worker not in await self._cluster.workers():
                    raise WorkerLostError(f"the {file} of the run cannot be fetched: {error}") from error
                await asyncio.sleep(_AGAIN_S)
                continue
            offset += len(piece)
            tries = 0

    def has_come_whole(self, attempt_id: str) -> bool:
        """Return whether all of a run came with its end, so that its host has removed it already."""
        return bool(self._heads.get(attempt_id, {}).get("inline"))

    def forget(self, attempt_id: str) -> None:
        """Let go of what was kept for an attempt."""
        self._heads.pop(attempt_id, None)


def split(answer: bytes) -> tuple[Mapping[str, Any], bytes]:
    """Take an answer of the remote part apart: what it says, and what belongs to it.

    Raises
    ------
    WorkerError
        It is not an answer of ours.
    """
    line, _, payload = answer.partition(b"\n")
    try:
        head = json.loads(line)
    except ValueError as error:
        raise WorkerError("the Dask worker answered something that is not ours") from error
    if not isinstance(head, dict):
        raise WorkerError("the Dask worker answered something that is not ours")
    return head, payload


def _archive_of(attempt_dir: Path) -> Path:
    return attempt_dir / "submission.tar"


def _results_of(allocation: DaskAllocation) -> Path:
    return Path(allocation.attempt_dir) / "results.tar"


def _unpack(archive: Path, output: Path, max_bytes: int, max_files: int) -> None:
    if output.exists():
        return
    with archive.open("rb") as file:
        unpack(file, output, max_bytes=max_bytes, max_files=max_files)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _size_or_all_of(path: Path) -> tuple[int, bytes | None]:
    size = path.stat().st_size
    return size, path.read_bytes() if size <= INLINE_BYTES else None


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _write_at(path: Path, offset: int, piece: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.seek(offset)
            left = memoryview(piece)
            while left:
                left = left[file.write(left) or 0 :]
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
