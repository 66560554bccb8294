"""`rampctl status`, `scores`, `logs`: looking at an event. They change nothing."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from rampd.cli import options, output
from rampd.errors import RampdError
from rampd.operations.headline import duration
from rampd.operations.results import leaderboard
from rampd.operations.status import look_at_event, look_at_submission, states_of
from rampd.states import SubmissionState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rampd.config import Settings
    from rampd.models import Attempt, Scores
    from rampd.operations.status import EventStatus, SubmissionDetails, SubmissionStatus

_SHOWN = 15
_FOLLOW_S = 0.2
_CHUNK = 1 << 16
_TIMES = ("started", "queued", "changed", "next_try")


@click.command()
@click.argument("submission", required=False)
@click.option("--all", "everything", is_flag=True, help=f"List all, not only {_SHOWN} waiting and {_SHOWN} ended ones.")
@options.as_json
@options.event
def status(settings: Settings, submission: str | None, *, everything: bool, as_json: bool) -> None:
    """Show what runs, what waits, and why nothing runs if nothing does."""
    if submission is not None:
        _show_submission(options.run(look_at_submission(settings, submission)), as_json=as_json)
        return
    found = options.run(look_at_event(settings))
    if as_json:
        output.print_json(_event_data(found))
        return
    click.echo(output.paragraph(f"{found.event}: {output.escaped(found.head)}", indent=2))
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    click.echo(counts or "no submissions")
    chosen, left_out = (list(found.submissions), "") if everything else _choose(found.submissions)
    if chosen:
        click.echo()
        _print_statuses(chosen)
        _print_instances(chosen)
    if left_out:
        click.echo(f"\n{left_out} not shown; --all shows everything")


def _event_data(found: EventStatus) -> dict[str, Any]:
    data = {field.name: getattr(found, field.name) for field in fields(found)}
    data["submissions"] = [_submission_data(one) for one in found.submissions]
    for name in ("daemon", "held", "drained", "settling", "no_capacity"):
        data[name] = _with_timestamps(data[name])
    return data


def _with_timestamps(fact: Any) -> Any:
    if not isinstance(fact, dict):
        return fact
    times = ("since", "next_try", "started_at")
    return {key: output.timestamp(value) if key in times else value for key, value in fact.items()}


def _submission_data(one: SubmissionStatus) -> dict[str, Any]:
    data = {field.name: getattr(one, field.name) for field in fields(one)}
    return data | {name: output.timestamp(data[name]) for name in _TIMES}


def _choose(submissions: Sequence[SubmissionStatus]) -> tuple[list[SubmissionStatus], str]:
    """Return what fits a screen: everything that runs, the next ones, and those that ended last."""
    running = [one for one in submissions if one.is_running]
    waiting = [one for one in submissions if one.state is SubmissionState.NEW]
    ended = sorted((one for one in submissions if one.state.is_final), key=lambda one: one.changed or 0.0)
    left_out = [
        f"{len(group) - _SHOWN} {word}"
        for group, word in ((waiting, "waiting"), (ended, "ended"))
        if len(group) > _SHOWN
    ]
    return [*ended[-_SHOWN:], *running, *waiting[:_SHOWN]], ", ".join(left_out)


def _print_statuses(chosen: Sequence[SubmissionStatus]) -> None:
    cells = {
        "name": [one.name for one in chosen],
        "state": [str(one.state) for one in chosen],
        "try": [str(one.attempt or "") for one in chosen],
        "place": [str(one.position or "") for one in chosen],
        "since": ["" if one.age_s is None else duration(one.age_s, units=1) for one in chosen],
        "note": [_note(one) for one in chosen],
    }
    if not any(cells["place"]):
        del cells["place"]
    output.print_table(list(cells), list(zip(*cells.values(), strict=True)), numbers=("try", "place", "since"))


def _note(one: SubmissionStatus) -> str:
    if one.state is SubmissionState.NEW:
        return one.reason or "" if one.attempt else ""
    if one.where:
        return "" if _is_instance(one) else _place(one.where)
    if one.outcome == "timeout":
        return "timeout"
    last_line = one.error_msg.strip().rpartition("\n")[2]
    return last_line or ("" if one.state is SubmissionState.SCORED else one.reason or "")


def _is_instance(one: SubmissionStatus) -> bool:
    return one.where.get("instance_id") is not None


def _print_instances(chosen: Sequence[SubmissionStatus]) -> None:
    """Show what runs on instances of its own, and for how many seconds each has been paid for."""
    rows = [
        (
            one.name,
            str(one.where["instance_id"]),
            str(one.where.get("instance_type") or ""),
            "yes" if one.where.get("spot") else "no",
            "" if one.where.get("instance_s") is None else f"{one.where['instance_s']:.0f}",
            str(one.where.get("host") or ""),
        )
        for one in chosen
        if _is_instance(one)
    ]
    if rows:
        click.echo()
        output.print_table(("name", "instance", "type", "spot", "paid s", "address"), rows, numbers=("paid s",))


def _place(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in where.items() if value is not None)


def _instance_in_words(where: Mapping[str, Any]) -> str:
    market = "spot" if where.get("spot") else "on-demand"
    words = [f"{where['instance_id']} ({where.get('instance_type')}, {market})"]
    if where.get("host"):
        words.append(f"at {where['host']}")
    if (cost := where.get("instance_s")) is not None:
        words.append(f"launched {duration(cost)} ago: {cost:.0f} instance seconds")
    return ", ".join(words)


def _show_submission(details: SubmissionDetails, *, as_json: bool) -> None:
    one = details.status
    if as_json:
        output.print_json(
            {
                **_submission_data(one),
                "history": [{"state": state, "at": output.timestamp(at)} for state, at in details.history],
                "attempts": [_attempt_data(attempt) for attempt in details.attempts],
                "scores": details.scores,
                "log": details.log_path,
            }
        )
        return
    place = f", place {one.position}" if one.position else ""
    click.echo(f"{output.escaped(one.name)}: {one.state}{place}")
    click.echo(f"log: {output.escaped(details.log_path)}")
    if one.where:
        words = _instance_in_words(one.where) if _is_instance(one) else _place(one.where)
        click.echo(output.paragraph(f"runs: {output.escaped(words)}", indent=2))
    if details.attempts:
        click.echo()
        output.print_table(
            ("attempt", "begun", "step", "outcome", "status", "reason"),
            [
                (
                    str(attempt.number),
                    (output.timestamp(attempt.opened_at) or "")[:19],
                    attempt.step,
                    attempt.outcome or "",
                    _exit_status(attempt),
                    attempt.verdict.reason if attempt.verdict else "",
                )
                for attempt in details.attempts
            ],
            numbers=("attempt", "status"),
        )
    if details.history:
        click.echo()
        output.print_table(("state", "at"), [(state, (output.timestamp(at) or "")) for state, at in details.history])
    if details.scores:
        click.echo()
        _print_scores(details.scores)
    if one.error_msg:
        click.echo(f"\n{output.escaped_lines(one.error_msg)}")


def _exit_status(attempt: Attempt) -> str:
    status = attempt.verdict.exit_status if attempt.verdict else None
    return "" if status is None else str(status)


def _attempt_data(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "worker": attempt.worker_type,
        "step": attempt.step,
        "opened": output.timestamp(attempt.opened_at),
        "started": output.timestamp(attempt.launched_at),
        "outcome": attempt.outcome,
        "final": attempt.final,
        "exit_status": attempt.verdict.exit_status if attempt.verdict else None,
        "reason": attempt.verdict.reason or None if attempt.verdict else None,
    }


def _print_scores(scores: Scores) -> None:
    output.print_table(
        ("score", "step", "mean", "std", "bagged"),
        [
            (score, step, output.figure(figures.mean), output.figure(figures.std), output.figure(figures.bagged))
            for score, steps in scores.items()
            for step, figures in steps.items()
        ],
        numbers=("mean", "std", "bagged"),
    )


@click.command()
@click.option("--by", metavar="SCORE", help="The score to rank by. [default: the first one]")
@click.option(
    "--step",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
    show_default=True,
    help="The step to rank by; valid where there is no test set.",
)
@click.option("--ascending", is_flag=True, help="Rank the lowest first, as for errors and losses.")
@options.as_json
@options.event
def scores(settings: Settings, *, by: str | None, step: str, ascending: bool, as_json: bool) -> None:
    """Show the leaderboard: bagged scores of everything that is scored."""
    board = options.run(leaderboard(settings, by=by, step=step, ascending=ascending))
    if as_json:
        output.print_json(board)
        return
    if not board.entries:
        click.echo(f"{board.event}: nothing is scored yet")
        return
    click.echo(f"{board.event}: ranked by {board.step} {output.escaped(board.by or '')}, bagged")
    columns = [f"{score} {name}" for score in board.scores for name in board.steps]
    output.print_table(
        ("rank", "name", *columns),
        [
            (
                str(entry.rank),
                entry.name,
                *(output.figure(entry.figure(score, name)) for score in board.scores for name in board.steps),
            )
            for entry in board.entries
        ],
        numbers=("rank", *columns),
    )


@click.command()
@click.argument("submission")
@click.option("-f", "--follow", is_flag=True, help="Go on until the submission has ended.")
@options.as_json
@options.event
def logs(settings: Settings, submission: str, *, follow: bool, as_json: bool) -> None:
    """Print what a submission printed, control characters escaped."""
    options.run(_print_log(settings, submission, follow=follow, as_json=as_json))


async def _print_log(settings: Settings, name: str, *, follow: bool, as_json: bool) -> None:
    details = await look_at_submission(settings, name)
    path = settings.ramp.logs_dir / name / "log"
    if not follow:
        if not path.is_file():
            raise RampdError(f"{name!r} has no log yet: it is {details.status.state}")
        if as_json:
            text = path.read_bytes().decode("utf-8", "backslashreplace")
            output.print_json({"name": name, "path": path, "bytes": path.stat().st_size, "text": text})
            return
    shown = _Shown(path, as_json=as_json)
    if follow:
        async with aclosing(states_of(settings, name)) as states:
            async for state in states:
                if state.is_final:
                    break
                shown.go_on()
                await asyncio.sleep(_FOLLOW_S)
    shown.go_on()
    shown.end()


class _Shown:
    """How much of a log was shown. A new attempt begins it anew."""

    def __init__(self, path: Path, *, as_json: bool) -> None:
        self._path = path
        self._as_json = as_json
        self._at = 0
        self._rest: list[bytes] = []
        """The pieces of a line that has no end yet; a progress bar's may have many."""

    def go_on(self) -> None:
        """Show the whole lines that are new."""
        if not self._path.is_file():  # not there yet; or a fifo, whose opening would wait for ever
            return
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._at:
                    self._at, self._rest = 0, []
                file.seek(self._at)
                while chunk := file.read(_CHUNK):
                    self._at += len(chunk)
                    piece, *pieces = chunk.split(b"\n")
                    self._rest.append(piece)
                    for piece in pieces:
                        self._show(b"".join(self._rest))
                        self._rest = [piece]
        except FileNotFoundError:
            return

    def end(self) -> None:
        """Show the last line, which may lack its end."""
        if last := b"".join(self._rest):
            self._show(last)

    def _show(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        if self._as_json:
            click.echo(output.to_json({"line": text}).replace("\n", " "))
        else:
            click.echo(output.escaped(text.rstrip("\r"), keep="\t"))
