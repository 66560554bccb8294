"""``rampd``: the daemon's command line."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import uvloop

import rampd
from rampd import logs
from rampd.cli.board_options import board
from rampd.cli.options import open_streams
from rampd.cli.output import has_unicode
from rampd.config_files import ConfigFiles
from rampd.daemon import Limits, serve
from rampd.errors import ConfigError, LockedError
from rampd.event import load_settings
from rampd.exit_statuses import EX_CONFIG, EX_FAILED, EX_TEMPFAIL
from rampd.memory import keep_steady
from rampd.operations.doctor import first_start
from rampd.systemd import Notifier
from rampd.workers.calls import THREAD_PREFIX

if TYPE_CHECKING:
    from rampd.logs import LogStream


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  rampd --config events/iris/config.yml\n  rampd --events-dir events",
)
@click.option(
    "--config",
    "configs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="An event's config.yml. May be given several times.",
)
@click.option(
    "--events-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Serve every config.yml in its folders: those that are there, that appear and that change, until they go.",
)
@click.option(
    "--max-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Submissions at once over all events, which take turns. [default: what the events allow together]",
)
@click.option(
    "--deployment-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="What relative paths in a config are relative to. [default: the folder that holds events/]",
)
@click.option(
    "--log-format",
    type=click.Choice(["json", "console"]),
    default="json",
    show_default=True,
    help="One JSON object a line for programs, or text for people.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The lowest level that is written.",
)
@board
@click.option("--check", is_flag=True, help="Validate, print the resolved settings with secrets masked, and exit.")
@click.version_option(rampd.__version__, prog_name="rampd")
def main(
    *,
    configs: tuple[Path, ...],
    events_dir: Path | None,
    max_workers: int | None,
    deployment_dir: Path | None,
    log_format: str,
    log_level: str,
    check: bool,
) -> None:
    """Serve RAMP events: train and evaluate what participants submit.

    Runs in the foreground and writes one JSON object a line to stdout. SIGHUP has the configs read again.
    """
    if not configs and events_dir is None:
        raise click.UsageError("nothing to serve: give --config FILE (once or several times), or --events-dir DIR")
    what = Limits(configs, events_dir, deployment_dir, max_workers)
    if check:
        open_streams()
        try:
            sys.exit(_check(what))
        except BrokenPipeError:
            raise  # click's own
        except OSError as error:
            click.echo(f"rampd: {error.strerror}", err=True)
            sys.exit(EX_FAILED)
    # Where systemd's watchdog ends a daemon (SIGABRT), its threads' stacks go to stderr.
    faulthandler.enable()
    keep_steady()
    notifier = Notifier.from_environment(os.environ)
    run = secrets.token_hex(6)
    stream = logs.LogStream(logs.take_stdout())
    stream.start()
    logs.configure(stream, format="console" if log_format == "console" else "json", level=log_level, run=run)
    _exit(_serve(what, run, notifier, stream))


def _exit(status: int) -> NoReturn:
    """End the process, whatever a plug-in's call that never came back has under way.

    At a usual exit Python waits for what such a call may have started: the threads of an executor, a process pool.
    """
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _check(what: Limits) -> int:
    status = 0
    files = ConfigFiles(what.configs, what.events_dir)
    for config in files.look():
        try:
            settings = load_settings(config, deployment_dir=what.deployment_dir or files.deployment_of(config))
        except ConfigError as error:
            _print_problems(error)
            status = EX_CONFIG
            continue
        for warning in settings.warnings:
            click.echo(f"{config}: warning: {warning}", err=True)
        try:
            if adopted := first_start(settings):
                click.echo(f"{config}: note: {adopted}", err=True)
        except OSError as error:  # a folder that this user may not read: the settings are valid all the same
            click.echo(f"{config}: warning: {error.filename}: {error.strerror}", err=True)
        click.echo(json.dumps(settings.masked(), indent=2, ensure_ascii=not has_unicode(), default=str))
    return status


def _serve(what: Limits, run: str, notifier: Notifier, stream: LogStream) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(what, run=run, notifier=notifier))
    except ConfigError as error:
        _print_problems(error)
        return EX_CONFIG
    except LockedError as error:
        click.echo(f"rampd: {error}", err=True)
        return EX_TEMPFAIL
    except Exception as error:  # noqa: BLE001 -- the last thing a failing daemon does is to say why, in its stream
        logs.get_logger("rampd.daemon").error("daemon.failed", error=str(error) or type(error).__name__, exc_info=error)
        click.echo(f"rampd: {error}", err=True)
        return EX_FAILED
    finally:
        stream.close()


def _print_problems(error: ConfigError) -> None:
    for problem in error.problems:
        click.echo(problem, err=True)


if __name__ == "__main__":
    main()
