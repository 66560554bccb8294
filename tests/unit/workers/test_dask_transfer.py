"""What is fetched of a run on a Dask worker's host is bounded here, whatever is there; the cluster is a fake."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from rampd.workers.dask_allocation import DaskAllocation
from rampd.workers.dask_transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

pytestmark = pytest.mark.looptime

ADDRESS = "tcp://h:1"
LIMIT, MARGIN = 100_000, 4096


class EndlessLog:
    """A host whose log has as much as anybody asks for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def ask(self, addresses: Collection[str], request: Mapping[str, Any]) -> dict[str, bytes]:
        """Return a piece of the size that is asked for."""
        self.sizes.append(request["size"])
        head = json.dumps({"is_there": True}).encode() + b"\n"
        return dict.fromkeys(addresses, head + b"x" * request["size"])


def _allocation(root: Path) -> DaskAllocation:
    return DaskAllocation(
        attempt_id="a", attempt_dir=str(root), log_path=str(root / "log"), key="key-a", dask_worker=ADDRESS, host="h"
    )


def _transfer(cluster: EndlessLog) -> Transfer:
    return Transfer(cast("Any", cluster), lambda do, **more: {"do": do, **more})


async def test_a_log_that_is_followed(tmp_path: Path) -> None:
    """A submission that writes to its log itself fills no disk but its host's."""
    transfer, allocation = _transfer(EndlessLog()), _allocation(tmp_path)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(20.5):
            await transfer.follow_log(allocation, every_s=1.0, max_bytes=LIMIT)
    assert (tmp_path / "log").stat().st_size == LIMIT + MARGIN


async def test_a_log_that_is_fetched(tmp_path: Path) -> None:
    """At the end as well."""
    transfer, allocation = _transfer(EndlessLog()), _allocation(tmp_path)
    ended = {"inline": False, "kept_log_bytes": 1 << 30, "results_bytes": None, "refused": "", "folder": "/a"}
    await transfer.keep(allocation, ended, b"")
    await transfer.fetch(allocation, max_bytes=10, max_files=1, max_log_bytes=LIMIT)
    assert (tmp_path / "log").stat().st_size == LIMIT + MARGIN
