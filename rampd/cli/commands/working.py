"""`rampctl run`, `check`, `env`, `schema`, `demo`: what works without a daemon."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog

from rampd import logs as log_stream
from rampd.cli import options, output
from rampd.exit_statuses import EX_FAILED
from rampd.foreground import run_one
from rampd.operations import doctor, environments
from rampd.operations.status import look_at_submission
from rampd.orders import Order
from rampd.states import SubmissionState

if TYPE_CHECKING:
    from rampd.config import Settings
    from rampd.models import Submission
    from rampd.orders import Orders


@click.command()
@click.argument("submission")
@options.as_json
@options.event
def run(settings: Settings, submission: str, *, as_json: bool) -> None:
    """Run one submission here and now, without a daemon; progress goes to stderr."""
    structlog.configure(processors=[_tell], cache_logger_on_first_use=False)
    ended = options.run(_run(settings, submission))
    details = options.run(look_at_submission(settings, submission))
    if as_json:
        output.print_json(
            {"name": ended.name, "state": ended.state, "error_msg": ended.error_msg, "scores": details.scores}
        )
    else:
        click.echo(f"{output.escaped(ended.name)}: {ended.state}")
        for score, steps in details.scores.items():
            for step, figures in steps.items():
                bagged = "" if figures.bagged is None else f", bagged {output.figure(figures.bagged)}"
                mean = f"{output.figure(figures.mean)} ± {output.figure(figures.std)}"
                click.echo(f"  {output.escaped(score)} {step}: {mean}{bagged}")
        if ended.error_msg:
            click.echo(output.escaped_lines(ended.error_msg))
    if ended.state is not SubmissionState.SCORED:
        sys.exit(EX_FAILED)


async def _run(settings: Settings, name: str) -> Submission:
    loop = asyncio.get_running_loop()

    def heed(orders: Orders) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, orders.give, Order.INTERRUPT)

    return await run_one(settings, name, on_orders=heed)


def _tell(_: object, __: str, fields: Any) -> str:
    """Say on stderr what the log stream would have said."""
    record = dict(fields)
    on_written = record.pop("on_written", None)
    event = record.pop("event")
    facts = " ".join(
        f"{key}={value}"
        for key, value in record.items()
        if key in ("pid", "state", "outcome", "exit_status", "run_s", "error", "reason", "missing", "message", "what")
        and value not in (None, "")
    )
    click.echo(output.escaped(f"{event} {facts}".rstrip()), err=True)
    if on_written is not None:
        on_written()
    raise structlog.DropEvent


@click.command()
@options.as_json
@options.event
def check(settings: Settings, *, as_json: bool) -> None:
    """Look at everything that the event needs: config, folders, environment, ramp-test, kit."""
    findings = options.run(doctor.examine(settings))
    is_ok = all(finding.is_ok for finding in findings)
    if as_json:
        output.print_json({"event": settings.ramp.event_name, "ok": is_ok, "findings": findings})
    else:
        for finding in findings:
            mark = ("note" if finding.is_warning else "ok") if finding.is_ok else "FAIL"
            colour = {"ok": "green", "note": "yellow", "FAIL": "red"}[mark]
            line = output.paragraph(f"{mark:4}  {finding.name}: {output.escaped(finding.detail)}", indent=6)
            click.echo(click.style(mark, fg=colour) + line[len(mark) :])
    if not is_ok:
        sys.exit(EX_FAILED)


@click.group()
def env() -> None:
    """Make or update the event's conda environment from its kit's environment.yml."""


@env.command()
@options.as_json
@options.event
def create(settings: Settings, *, as_json: bool) -> None:
    """Make the environment that `worker.conda_env` names."""
    _manage(settings, update=False, as_json=as_json)


@env.command()
@options.as_json
@options.event
def update(settings: Settings, *, as_json: bool) -> None:
    """Bring the environment up to date with environment.yml; what it no longer names is removed."""
    _manage(settings, update=True, as_json=as_json)


def _manage(settings: Settings, *, update: bool, as_json: bool) -> None:
    planned = options.run(environments.plan(settings, update=update))
    click.echo(f"runs: {' '.join(planned.argv)}", err=True)
    # The tool's own progress belongs to the person; stdout is kept for our answer.
    ended = subprocess.run(planned.argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False)
    done = ended.returncode == 0
    if as_json:
        output.print_json({"environment": planned.target, "tool": planned.tool, "status": ended.returncode})
    elif done:
        click.echo(f"{planned.target}: {'updated' if update else 'made'} from {planned.file}")
    if not done:
        output.warn(f"{planned.tool} failed with status {ended.returncode}")
        sys.exit(EX_FAILED)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="It is JSON in any case.")
def schema(*, as_json: bool) -> None:
    """Print the JSON Schema of the log stream."""
    del as_json
    output.print_json(log_stream.json_schema())


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("rampd-demo"),
    show_default=True,
    metavar="DIR",
    help="Where the demo's deployment and environment are made.",
)
@click.option(
    "--environment",
    "prefix",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="PREFIX",
    help="An environment that has ramp-workflow and scikit-learn already. [default: one is made]",
)
@click.option("--fresh", is_flag=True, help="Make the environment anew.")
@click.option(
    "--timeout", "timeout_s", type=float, default=20.0, show_default=True, help="Seconds a submission may run."
)
@options.as_json
def demo(directory: Path, *, prefix: Path | None, fresh: bool, timeout_s: float, as_json: bool) -> None:
    """Set a small iris event up, serve it with the real rampd, and show what comes of five submissions."""
    from rampd.cli.commands import demonstrating  # noqa: PLC0415 -- rich's progress, which nothing else needs

    given = prefix.absolute() if prefix else None
    sys.exit(
        demonstrating.demonstrate(directory.absolute(), prefix=given, fresh=fresh, timeout_s=timeout_s, as_json=as_json)
    )
