"""`rampctl demo`: an event from nothing to a leaderboard, with the real daemon, in one command."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import click

from rampd.cli import output
from rampd.demo import DemoError, deployment, environment, serving
from rampd.event import load_settings
from rampd.exit_statuses import EX_FAILED, EX_OK
from rampd.operations.results import leaderboard
from rampd.operations.status import look_at_submission

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.config import Settings

    Record = dict[str, Any]

_PATIENCE_S = 300.0
"""On top of the five submissions' time."""
_EXPLAINED = {
    "ok": "scored",
    "participant_error": "failed by its own fault",
    "timeout": "ran out of time",
}


def demonstrate(directory: Path, *, prefix: Path | None, fresh: bool, timeout_s: float, as_json: bool) -> int:
    """Run the demo.

    Parameters
    ----------
    directory
        Where everything is made: an environment beside the deployment's folders.
    prefix
        An environment that exists; None to make one.
    fresh
        Make the environment anew.
    timeout_s
        How long a submission may run, in seconds; one of the five runs for ever.
    as_json
        Whether stdout gets JSON at the end instead of tables; progress goes to stderr in any case.

    Returns
    -------
    int
        0 where every submission ended as it should.

    Raises
    ------
    DemoError
        It cannot go on; the message says what to do.
    """
    if not timeout_s > 0:
        raise DemoError("--timeout must be more than 0 seconds")
    deployment.claim(directory)
    _step("1/3  an environment for submissions" + ("" if prefix else " (the first time takes a minute or two)"))
    prefix = prefix or _make_environment(directory / "environment", fresh=fresh)
    _step("2/3  a deployment: a kit, its data, a config and five submissions")
    config = deployment.write(directory, environment=prefix, timeout_s=timeout_s)
    _detail(str(config))
    _step("3/3  the daemon: rampd --config " + str(config))
    finished: dict[str, Record] = {}
    stream = config.parent / "rampd.jsonl"
    patience_s = _PATIENCE_S + len(deployment.EXPECTED) * timeout_s
    served = asyncio.run(serving.serve(config, stream=stream, timeout_s=patience_s, on_record=_Progress(finished)))
    settings = load_settings(config)
    is_as_expected = served.status == 0 and {name: record["outcome"] for name, record in finished.items()} == dict(
        deployment.EXPECTED
    )
    if as_json:
        board = asyncio.run(leaderboard(settings, by="acc", step="test", ascending=False))
        output.print_json(
            {"ok": is_as_expected, "config": config, "finished": list(finished.values()), "leaderboard": board}
        )
    else:
        asyncio.run(_show(settings, finished, stream, prefix))
    if not is_as_expected:
        output.warn(f"the demo did not end as it should; the log stream is {stream}")
    return EX_OK if is_as_expected else EX_FAILED


def _make_environment(prefix: Path, *, fresh: bool) -> Path:
    if fresh:
        shutil.rmtree(prefix, ignore_errors=True)
    environment.build(prefix, say=_detail)
    return prefix


def _step(text: str) -> None:
    click.echo(click.style(text, bold=True), err=True)


def _detail(text: str) -> None:
    click.echo(f"     {output.escaped(text)}", err=True)


class _Progress:
    """Says in a line what each record of the stream means, and collects the canonical ones."""

    def __init__(self, finished: dict[str, Record]) -> None:
        self._finished = finished
        self._began = time.monotonic()

    def __call__(self, record: Record) -> None:
        match record["event"]:
            case "daemon.ready":
                self._say("the daemon is ready")
            case "submission.started":
                self._say(f"{record['submission']} started (pid {record['pid']})")
            case "submission.timed_out":
                self._say(f"{record['submission']} is over its {record['timeout_s']:g} s and is being ended")
            case "submission.finished":
                self._finished[record["submission"]] = record
                run_s = record["run_s"] or 0.0
                self._say(
                    f"{record['submission']} {_EXPLAINED.get(record['outcome'], record['outcome'])}, {run_s:.1f} s"
                )
            case "event.held":
                self._say(f"held: {record['missing']}")
            case "daemon.failed":
                self._say(f"the daemon failed: {record['error']}")

    def _say(self, text: str) -> None:
        click.echo(f"     {time.monotonic() - self._began:5.1f} s  {output.escaped(text)}", err=True)


async def _show(settings: Settings, finished: dict[str, Record], stream: Path, prefix: Path) -> None:
    click.echo("\nWhat became of each submission\n")
    rows = []
    for name in finished:
        details = await look_at_submission(settings, name)
        said = details.status.error_msg.strip().rpartition("\n")[2]
        rows.append((name, finished[name]["state"], finished[name]["outcome"], said))
    output.print_table(("name", "state", "outcome", "what the participant reads, at its end"), rows)
    board = await leaderboard(settings, by="acc", step="test", ascending=False)
    click.echo("\nLeaderboard (acc: accuracy, higher is better; nll: log loss, lower is better)\n")
    columns = [f"{score} {step}" for score in board.scores for step in board.steps]
    output.print_table(
        ("rank", "name", *columns),
        [
            (
                str(entry.rank),
                entry.name,
                *(output.figure(entry.figure(score, step)) for score in board.scores for step in board.steps),
            )
            for entry in board.entries
        ],
        numbers=("rank", *columns),
    )
    ramp = settings.ramp
    click.echo(
        "\nWhere everything lies\n\n"
        f"  config       {settings.path}\n"
        f"  kit          {ramp.kit_dir}\n"
        f"  submissions  {ramp.submissions_dir}\n"
        f"  logs         {ramp.logs_dir}\n"
        f"  predictions  {ramp.predictions_dir}\n"
        f"  log stream   {stream}\n"
        f"  environment  {prefix}\n"
        f"\nNext: rampctl status --config {settings.path}"
    )
