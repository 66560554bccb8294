"""``rampctl``: the operator's command line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
import structlog

import rampd
from rampd.cli import options

_COMMANDS = {
    "status": "watching",
    "submit": "asking",
    "cancel": "asking",
    "retry": "asking",
    "logs": "watching",
    "scores": "watching",
    "run": "working",
    "check": "working",
    "env": "working",
    "board": "boarding",
    "schema": "working",
    "demo": "working",
    "drain": "asking",
    "resume": "asking",
}


class _Commands(click.Group):
    """Imports a command's module when it is asked for: `rampctl status` answers in half the time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"rampd.cli.commands.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise options.ReaderGoneError from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: rampctl status --config events/iris/config.yml",
)
@click.version_option(rampd.__version__, prog_name="rampctl")
def cli() -> None:
    """Operate RAMP events that rampd serves. Works whether the daemon is up or down."""
    # What the daemon would log is not for the operator's eyes; commands say themselves what they do.
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)


def _drop(_: object, __: str, ___: Any) -> str:
    raise structlog.DropEvent


def main() -> None:
    """Run the command line; the entry point of the console script."""
    options.reported(cli)


if __name__ == "__main__":
    main()
