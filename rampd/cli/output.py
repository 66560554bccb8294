"""How command lines show things: tables with rich on a terminal, plain text where it is piped, JSON when asked for."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import textwrap
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEPT = "\n\t"


def escaped(text: str, *, keep: str = "") -> str:
    """Return a text that cannot steer a terminal: control characters and what is no Unicode are escaped.

    Parameters
    ----------
    text
        What a participant may have written.
    keep
        Control characters that stay.
    """
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii") for char in plain
    )


def escaped_lines(text: str) -> str:
    """Return a text of several lines, escaped; newlines and tabs stay."""
    return escaped(text.replace("\r\n", "\n"), keep=_KEPT)


def to_json(value: object) -> str:
    """Return JSON: NaN and infinities are null, paths and enums are texts."""
    return json.dumps(_plain(value), ensure_ascii=not has_unicode(), indent=2, allow_nan=False)


def has_unicode() -> bool:
    """Say whether stdout's encoding has every character; JSON in another one has to be ASCII."""
    return sys.stdout.encoding.lower().startswith("utf")


def _plain(value: Any) -> Any:  # noqa: PLR0911 -- one a type
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def print_json(value: object) -> None:
    """Print JSON on stdout."""
    click.echo(to_json(value))


def timestamp(seconds: float | None) -> str | None:
    """Return RFC 3339 (UTC) of seconds since the epoch; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def figure(value: float | None, digits: int = 3) -> str:
    """Return a score for a table."""
    return "" if value is None else f"{value:.{digits}f}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print rows of plain texts under their columns.

    Parameters
    ----------
    columns
        Their names; the last one may be cut to fit a terminal, no other is.
    rows
        Texts, not yet escaped.
    numbers
        The columns that are aligned to the right.
    """
    shown = [[escaped(text) for text in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, shown, numbers)
        return
    widths = [max(len(name), *(len(row[at]) for row in shown), 0) for at, name in enumerate(columns)]
    for row in [[name.upper() for name in columns], *shown]:
        cells = [
            text.rjust(width) if name in numbers else text.ljust(width)
            for name, text, width in zip(columns, row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


_GAP = 2
_SHORTEST_COLUMN = 8


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 -- a pipe never pays for it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    width = shutil.get_terminal_size().columns
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for name, column_width in zip(columns, _widths(columns, rows, width), strict=True):
        table.add_column(
            name.upper(),
            justify="right" if name in numbers else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=column_width,
        )
    for row in rows:
        table.add_row(*(Text(text, style=_style(text)) for text in row))
    Console(width=width).print(table)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return how wide each column is: what does not fit is cut from the last one first, then from names."""
    widths = [max(len(name), *(len(row[at]) for row in rows), 0) for at, name in enumerate(columns)]
    room = width - _GAP * (len(columns) - 1)
    for at, shortest in ((len(columns) - 1, _SHORTEST_COLUMN), (_name_column(columns), _SHORTEST_COLUMN)):
        excess = sum(widths) - room
        if excess > 0:
            widths[at] = max(min(widths[at], shortest), widths[at] - excess)
    return widths


def _name_column(columns: Sequence[str]) -> int:
    return columns.index("name") if "name" in columns else 0


def paragraph(text: str, *, indent: int = 0) -> str:
    """Return a line for a person: wrapped between words on a terminal, as it is where it is piped."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


_STYLES: Mapping[str, str] = {
    "scored": "green",
    "training_error": "red",
    "checking_error": "magenta",
    "training": "cyan",
    "ok": "green",
    "FAIL": "bold red",
    "note": "yellow",
}


def _style(text: str) -> str:
    return _STYLES.get(text, "")


def warn(message: str) -> None:
    """Say something on stderr."""
    click.echo(f"rampctl: {escaped(message)}", err=True)
