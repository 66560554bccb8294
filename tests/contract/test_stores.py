"""Every store keeps the contract."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from rampd.stores.directory import DirectoryStore
from rampd.testing import InMemoryStore, StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rampd.stores.base import SubmissionStore


class TestInMemoryStore(StoreContract):
    """The fake that dispatcher tests lean on is as strict as the real one."""

    @asynccontextmanager
    async def open_store(self, root: Path) -> AsyncIterator[SubmissionStore]:
        """Give one whose folders are made as submissions are added."""
        yield InMemoryStore(root / "submissions")

    async def add(self, store: SubmissionStore, name: str) -> None:
        """Tell it."""
        assert isinstance(store, InMemoryStore)
        store.add(name)


class TestDirectoryStore(StoreContract):
    """The embedded store, on a file of its own."""

    @asynccontextmanager
    async def open_store(self, root: Path) -> AsyncIterator[SubmissionStore]:
        """Give one that takes a folder as soon as it sees it."""
        self.submissions_dir = root / "submissions"
        self.submissions_dir.mkdir()
        store = DirectoryStore(
            root / "submissions.sqlite3",
            submissions_dir=self.submissions_dir,
            predictions_dir=root / "predictions",
            logs_dir=root / "logs",
            settle_time_s=0.0,
        )
        async with AsyncExitStack() as stack:
            await store.open(stack)
            yield store

    async def add(self, store: SubmissionStore, name: str) -> None:
        """Make its folder, and have it found."""
        folder = self.submissions_dir / name
        folder.mkdir()
        (folder / "estimator.py").touch()
        await store.scan()
