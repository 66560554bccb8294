"""What the commands of `rampctl` share: --config, --deployment-dir, --json, and what an error's exit status is."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rampd.cli import output
from rampd.errors import ConfigError, LockedError, RampdError, SubmissionRefusedError, UnknownSubmissionError
from rampd.event import load_settings
from rampd.exit_statuses import EX_CONFIG, EX_FAILED, EX_INTERRUPTED, EX_TEMPFAIL, EX_USAGE
from rampd.stores.staging import AlreadySubmittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_USAGE_ERRORS = (UnknownSubmissionError, AlreadySubmittedError, SubmissionRefusedError)

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
    @functools.wraps(command)
    def wrapper(*, config: Path, deployment_dir: Path | None, **arguments: Any) -> Any:
        return command(load_settings(config, deployment_dir=deployment_dir), **arguments)

    return wrapper


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(coroutine)


def reported(main: Callable[[], None]) -> None:
    """Run the whole command line; every error becomes a sentence on stderr and an exit status, never a traceback."""
    try:
        main()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(EX_CONFIG)
    except LockedError as error:
        output.warn(str(error))
        sys.exit(EX_TEMPFAIL)
    except _USAGE_ERRORS as error:
        output.warn(str(error))
        sys.exit(EX_USAGE)
    except RampdError as error:
        output.warn(str(error))
        sys.exit(EX_FAILED)
    except KeyboardInterrupt:
        sys.exit(EX_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe (head, say) has seen enough.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # A file that this user may not read, a disk that is full: nothing that a traceback would help with.
        output.warn(f"{error.filename or 'rampctl'}: {error.strerror or error}")
        sys.exit(EX_FAILED)
