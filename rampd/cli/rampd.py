"""``rampd``: the daemon's command line."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

import rampd
from rampd import logs
from rampd.daemon import serve
from rampd.errors import ConfigError, LockedError
from rampd.event import load_settings
from rampd.exit_statuses import EX_CONFIG, EX_FAILED, EX_TEMPFAIL
from rampd.operations.doctor import first_start

if TYPE_CHECKING:
    from rampd.logs import LogStream


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "configs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="FILE",
    help="An event's config.yml. May be given several times.",
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
@click.option("--check", is_flag=True, help="Validate, print the resolved settings with secrets masked, and exit.")
@click.version_option(rampd.__version__, prog_name="rampd")
def main(
    configs: tuple[Path, ...], deployment_dir: Path | None, log_format: str, log_level: str, *, check: bool
) -> None:
    r"""Serve RAMP events: train and evaluate what participants submit.

    Runs in the foreground and writes one JSON object a line to stdout.

    \b
    Example:
      rampd --config events/iris/config.yml
    """
    if check:
        sys.exit(_check(configs, deployment_dir))
    run = secrets.token_hex(6)
    stream = logs.LogStream(logs.take_stdout())
    stream.start()
    logs.configure(stream, format="console" if log_format == "console" else "json", level=log_level, run=run)
    status = _serve(configs, deployment_dir, run, stream)
    sys.exit(status)


def _check(configs: tuple[Path, ...], deployment_dir: Path | None) -> int:
    status = 0
    for config in configs:
        try:
            settings = load_settings(config, deployment_dir=deployment_dir)
        except ConfigError as error:
            _print_problems(error)
            status = EX_CONFIG
            continue
        for warning in settings.warnings:
            click.echo(f"{config}: warning: {warning}", err=True)
        if adopted := first_start(settings):
            click.echo(f"{config}: note: {adopted}", err=True)
        click.echo(json.dumps(settings.masked(), indent=2, ensure_ascii=False, default=str))
    return status


def _serve(configs: tuple[Path, ...], deployment_dir: Path | None, run: str, stream: LogStream) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(configs, deployment_dir=deployment_dir, run=run))
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
