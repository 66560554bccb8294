"""Becoming somebody who may write to a board: a name of one's own, and the tables of leases."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from rampd.stores.board_database import RefusedError
from rampd.stores.board_holding import OWNER_FILE, Holding

if TYPE_CHECKING:
    from pathlib import Path


class _Database:
    """Has no tables of leases yet, and refuses what is said by `refuses`."""

    def __init__(self, refuses: dict[str, str] | None = None) -> None:
        self.refuses = refuses or {}

    async def fetch(self, statement: str, /, **_: Any) -> list[dict[str, Any]]:
        """Answer, or refuse."""
        for words, sqlstate in self.refuses.items():
            if words in statement:
                raise RefusedError("it is refused", sqlstate)
        return [{"there": False}]


async def _prepared(state_dir: Path, database: _Database) -> Holding:
    """Return what is prepared, and closed again."""
    holding = Holding(database, state_dir, event_name="iris")  # type: ignore[arg-type] # it answers like one
    async with AsyncExitStack() as stack:
        await holding.open(stack, 1)
        await holding.prepare()
    return holding


@pytest.mark.parametrize("left", [None, "", "\n"])
async def test_a_name_that_a_power_cut_emptied_is_made_anew(tmp_path: Path, left: str | None) -> None:
    """Two daemons without a name would be one owner, whose claims each takes for its own."""
    if left is not None:
        (tmp_path / OWNER_FILE).write_text(left, encoding="ascii")
    holding = await _prepared(tmp_path, _Database())
    assert holding.fence()["owner"]
    assert (tmp_path / OWNER_FILE).read_text(encoding="ascii").strip() == holding.fence()["owner"]
    again = await _prepared(tmp_path, _Database())
    assert again.fence()["owner"] == holding.fence()["owner"]


@pytest.mark.parametrize("sqlstate", ["23505", "42P07", "42710"])
async def test_tables_that_another_daemon_makes_at_the_same_moment_are_there(tmp_path: Path, sqlstate: str) -> None:
    """PostgreSQL's IF NOT EXISTS looks before it makes, and says in three ways that somebody was faster."""
    holding = await _prepared(tmp_path, _Database({"CREATE": sqlstate}))
    assert holding.is_leased


async def test_other_refusals_are_told(tmp_path: Path) -> None:
    """A disk that is full, say."""
    with pytest.raises(RefusedError):
        await _prepared(tmp_path, _Database({"CREATE TABLE": "53100"}))
