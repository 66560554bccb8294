"""An event's folders for tests of the embedded store, and submissions that arrive in them."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rampd.stores.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class StoreRoom:
    """The folders of one event below `root`."""

    root: Path

    @property
    def submissions(self) -> Path:
        """Where submissions arrive."""
        return self.root / "submissions"

    @property
    def predictions(self) -> Path:
        """Where another dispatcher kept predictions."""
        return self.root / "predictions"

    @property
    def logs(self) -> Path:
        """Where another dispatcher kept logs."""
        return self.root / "logs"

    def make(self, name: str, *, mtime: float | None = None) -> Path:
        """Make a submission in place."""
        folder = self.submissions / name
        folder.mkdir(parents=True)
        (folder / "estimator.py").write_text(f"# {name!a}\n", encoding="utf-8")
        if mtime is not None:
            for path in (folder / "estimator.py", folder):
                os.utime(path, (mtime, mtime))
        return folder

    def move_in(self, name: str) -> Path:
        """Have a submission arrive by one rename."""
        staging = self.root / f"staging-{time.monotonic_ns()}"
        staging.mkdir()
        (staging / "estimator.py").write_text(f"# {name}\n", encoding="utf-8")
        self.submissions.mkdir(exist_ok=True)
        return staging.rename(self.submissions / name)

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[DirectoryStore]:
        """Give the open store; without other options it takes whatever a look finds."""
        settings = {"settle_time_s": 0.0, **options}
        store = DirectoryStore(
            self.root / "submissions.sqlite3",
            submissions_dir=self.submissions,
            predictions_dir=self.predictions,
            logs_dir=self.logs,
            **settings,
        )
        async with AsyncExitStack() as stack:
            await store.open(stack)
            yield store


@asynccontextmanager
async def running(watch: Awaitable[None], scanned: asyncio.Event) -> AsyncIterator[None]:
    """Have a watch run beside the block, which begins after the first full look."""
    task = asyncio.ensure_future(watch)
    looked = asyncio.ensure_future(scanned.wait())
    try:
        await asyncio.wait({task, looked}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert scanned.is_set()
        yield
        assert not task.done(), task
    finally:
        for one in (task, looked):
            one.cancel()
            with suppress(asyncio.CancelledError):
                await one


async def until(predicate: Callable[[], object], *, what: str = "it") -> None:
    """Look again and again until `predicate` holds.

    Raises
    ------
    AssertionError
        It did not in time.
    """
    for _ in _moments():
        if predicate():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{what} did not come true within {PATIENCE_S:g} s")


def _moments() -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        yield
