"""`--database-config` and `--board-python`: the RAMP board instead of the embedded store, for rampd and rampctl."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rampd.board_config import GivenBoard, board_of_process

if TYPE_CHECKING:
    from collections.abc import Callable


def board(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command both options; what they say is known to whatever loads an event's settings afterwards."""

    @click.option(
        "--database-config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The deployment's config.yml: its section sqlalchemy names the RAMP board that is served.",
    )
    @click.option(
        "--board-python",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="A Python with ramp_database, for leaderboards. [default: this one or python3, if they have it]",
    )
    @functools.wraps(command)
    def wrapper(*arguments: Any, database_config: Path | None, board_python: Path | None, **options: Any) -> Any:
        if database_config is not None:
            # As RAMP's own daemon does with the events of a folder; an event that is named is served in any case.
            only_while_open = options.get("events_dir") is not None
            board_of_process.set(GivenBoard(database_config, board_python, only_while_open))
        elif board_python is not None:
            raise click.UsageError("--board-python goes with --database-config")
        return command(*arguments, **options)

    return wrapper
