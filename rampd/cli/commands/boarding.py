"""`rampctl board`: what is done once to a RAMP board's database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rampd.cli import options
from rampd.operations.board import set_trigger

if TYPE_CHECKING:
    from rampd.config import Settings


@click.group()
def board() -> None:
    """Let a RAMP board's database wake daemons up, or not (with --database-config)."""


@board.command("install-trigger")
@options.event
def install_trigger(settings: Settings) -> None:
    """Have the database say so when a submission is new: it starts at once, and nobody polls."""
    options.run(set_trigger(settings, installed=True))
    click.echo("installed: daemons that serve this board are woken up by new submissions, also those that run already")


@board.command("remove-trigger")
@options.event
def remove_trigger(settings: Settings) -> None:
    """Take the trigger out again: new submissions are looked for every 5 s."""
    options.run(set_trigger(settings, installed=False))
    click.echo("removed: daemons look for new submissions every 5 s")
