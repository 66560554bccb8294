"""What the workers' tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.aws import AwsRoom
from support.conda import warm_up_uvloop
from support.event import hurry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsRoom]:
    """Give an event on a cloud, of which no instance, attempt or process may be left in the end."""
    hurry(monkeypatch)
    with AwsRoom(tmp_path / "cloud") as room:
        yield room
        assert room.cloud.alive() == []
        attempts = room.folder / "state" / "attempts"
        assert not attempts.exists() or list(attempts.iterdir()) == []
