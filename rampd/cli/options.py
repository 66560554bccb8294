"""What the commands of `rampctl` share: --config, --deployment-dir, --json, and what an error's exit status is."""

from __future__ import annotations

import asyncio
import functools
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rampd.cli import output
from rampd.cli.board_options import board
from rampd.errors import ConfigError, LockedError, RampdError, SubmissionRefusedError, UnknownSubmissionError
from rampd.event import load_settings
from rampd.exit_statuses import EX_CONFIG, EX_FAILED, EX_INTERRUPTED, EX_TEMPFAIL, EX_USAGE
from rampd.stores.staging import AlreadySubmittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class ReaderGoneError(Exception):
    """Whoever read stdout has seen enough (head, say). No OSError: click would make that a failure, status 1."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def event(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one event's settings as its first argument, from --config and --deployment-dir."""

    @click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path),
        required=True,
        metavar="FILE",
        help="The event's config.yml.",
    )
    @click.option(
        "--deployment-dir",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="What relative paths in the config are relative to. [default: the folder that holds events/]",
    )
    @board
    @functools.wraps(command)
    def wrapper(*, config: Path, deployment_dir: Path | None, **arguments: Any) -> Any:
        return command(load_settings(config, deployment_dir=deployment_dir), **arguments)

    return wrapper


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(coroutine)


def reported(cli: click.Command) -> None:
    """Run a whole command line; every error becomes a sentence on stderr and an exit status, never a traceback."""
    open_streams()
    try:
        # Not standalone: click would end a Ctrl-C, the usual end of `logs -f`, with a word and a status of its own.
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RampdError as error:
        sys.exit(_report(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EX_INTERRUPTED)
    except ReaderGoneError:
        # What is still buffered would be written once more at the exit, in vain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # A file that this user may not read, a disk that is full: nothing that a traceback would help with.
        output.warn(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
        sys.exit(EX_FAILED)


def open_streams() -> None:
    """Have streams that take any text: also where the caller closed one, or its locale has no name for a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 -- for as long as we live
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _report(error: RampdError) -> int:
    """Say an error on stderr; return its exit status."""
    match error:
        case ConfigError():
            for problem in error.problems:
                click.echo(problem, err=True)
            return EX_CONFIG
        case LockedError():
            status = EX_TEMPFAIL
        case UnknownSubmissionError() | AlreadySubmittedError() | SubmissionRefusedError():
            status = EX_USAGE
        case _:
            status = EX_FAILED
    output.warn(str(error))
    return status
