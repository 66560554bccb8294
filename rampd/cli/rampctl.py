"""``rampctl``: the operator's command line."""

from __future__ import annotations

from typing import Any

import click
import structlog

import rampd
from rampd.cli import options
from rampd.cli.commands import asking, watching, working


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rampd.__version__, prog_name="rampctl")
def cli() -> None:
    r"""Operate RAMP events that rampd serves. Works whether the daemon is up or down.

    \b
    Example:
      rampctl status --config events/iris/config.yml
    """
    # What the daemon would log is not for the operator's eyes; commands say themselves what they do.
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)


def _drop(_: object, __: str, ___: Any) -> str:
    raise structlog.DropEvent


for _command in (
    watching.status,
    asking.submit,
    asking.cancel,
    asking.retry,
    watching.logs,
    watching.scores,
    working.run,
    working.check,
    working.env,
    working.schema,
    working.demo,
    asking.drain,
    asking.resume,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the entry point of the console script."""
    options.reported(cli)


if __name__ == "__main__":
    main()
