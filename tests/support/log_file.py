"""A log stream that goes to a file, to be read line by line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rampd.logs import LogStream, configure
from rampd.logs.pipeline import MAX_LINE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    Record = dict[str, Any]


@dataclass
class LogFile:
    """A log stream that goes to a file."""

    path: Path
    stream: LogStream

    def configure(
        self,
        *,
        format: Literal["json", "console"] = "json",  # noqa: A002 -- as `configure` calls it
        level: str = "debug",
        run: str | None = "r1",
    ) -> None:
        """Send the records of this process there."""
        configure(self.stream, format=format, level=level, run=run)

    def raw(self) -> bytes:
        """Return what was written; nothing follows."""
        self.stream.close()
        return self.path.read_bytes()

    def records(self) -> list[Record]:
        """Return what was written, record by record: one a line, none too long."""
        lines = self.raw().split(b"\n")
        assert lines.pop() == b""
        assert all(len(line) < MAX_LINE_BYTES for line in lines)
        return [json.loads(line) for line in lines]

    def record(self) -> Record:
        """Return the only record."""
        (record,) = self.records()
        assert isinstance(record, dict)
        return record
