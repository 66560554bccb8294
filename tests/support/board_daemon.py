"""The real `rampd` on a board under test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.board import python
from support.daemon import RampdProcess

if TYPE_CHECKING:
    from pathlib import Path

    from support.board import Board


def board_daemon(board: Board, *options: str, config: Path | None = None, pages: bool = False) -> RampdProcess:
    """Give a daemon that serves the board; with `pages`, it has leaderboards built."""
    builder = python() if pages else "/nonexistent"
    return RampdProcess(
        config or board.deployment.config,
        *("--database-config", str(board.config), "--board-python", str(builder)),
        *options,
    )


def second_host(board: Board, name: str = "second") -> Path:
    """Write the config of another daemon of the same event, with a state_dir of its own; return its path."""
    deployment = board.deployment
    there = deployment.config.with_name(f"{name}.yml")
    own: dict[str, Any] = deployment.dispatcher
    try:
        deployment.dispatcher = {**own, "state_dir": str(deployment.root / f"state-{name}")}
        deployment.write_config()
        deployment.config.rename(there)
    finally:
        deployment.dispatcher = own
        deployment.write_config()
    return there
