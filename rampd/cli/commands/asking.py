"""`rampctl submit`, `cancel`, `retry`, `drain`, `resume`: telling an event's daemon what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rampd.cli import options, output
from rampd.exit_statuses import EX_FAILED
from rampd.operations import asking
from rampd.states import RequestKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rampd.config import Settings


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="N", help="The submission's name. [default: the folder's]")
@click.option("--replace", is_flag=True, help="Take the place of a submission of that name; one that ended runs again.")
@options.as_json
@options.event
def submit(settings: Settings, folder: Path, *, name: str | None, replace: bool, as_json: bool) -> None:
    """Hand a folder in as a submission: copied, then put in place at once."""
    chosen = name if name is not None else os.path.basename(os.path.realpath(folder))  # noqa: PTH119 -- resolve() raises at a loop of links
    done = options.run(asking.submit(settings, folder, chosen, replace=replace))
    if as_json:
        output.print_json(done)
    else:
        verb = "replaced" if done.is_replacement else "submitted"
        click.echo(f"{verb} {done.name}" + (f": {done.answer.message}" if done.answer else ""))
    if done.answer is not None and done.answer.accepted is False:
        sys.exit(EX_FAILED)


@click.command()
@click.argument("submissions", nargs=-1, required=True)
@options.as_json
@options.event
def cancel(settings: Settings, submissions: tuple[str, ...], *, as_json: bool) -> None:
    """End submissions that run, and take waiting ones out of the queue."""
    _ask(settings, RequestKind.CANCEL, submissions, as_json=as_json)


@click.command()
@click.argument("submissions", nargs=-1, required=True)
@options.as_json
@options.event
def retry(settings: Settings, submissions: tuple[str, ...], *, as_json: bool) -> None:
    """Run submissions that have ended once more, with all their attempts."""
    _ask(settings, RequestKind.RETRY, submissions, as_json=as_json)


def _ask(settings: Settings, kind: RequestKind, names: Sequence[str], *, as_json: bool) -> None:
    answers = options.run(asking.ask(settings, kind, names))
    if as_json:
        output.print_json(answers)
    else:
        for answer in answers:
            said = "refused: " if answer.accepted is False else ""
            click.echo(f"{output.escaped(answer.name)}: {said}{output.escaped(answer.message)}")
    if any(answer.accepted is False for answer in answers):
        sys.exit(EX_FAILED)


@click.command()
@options.as_json
@options.event
def drain(settings: Settings, *, as_json: bool) -> None:
    """Claim no more submissions; those that run go on to their end."""
    _set_drained(settings, drained=True, as_json=as_json)


@click.command()
@options.as_json
@options.event
def resume(settings: Settings, *, as_json: bool) -> None:
    """Claim submissions again after `rampctl drain`."""
    _set_drained(settings, drained=False, as_json=as_json)


def _set_drained(settings: Settings, *, drained: bool, as_json: bool) -> None:
    is_served = options.run(asking.set_drained(settings, drained=drained))
    event = settings.ramp.event_name
    if as_json:
        output.print_json({"event": event, "drained": drained, "served": is_served})
        return
    what = "drained: nothing more is claimed" if drained else "resumed: submissions are claimed again"
    click.echo(f"{event}: {what}{'' if is_served else ' (once a daemon serves it)'}")
