"""Where a test's log stream goes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from rampd.logs import LogStream
from support.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def written(tmp_path: Path) -> Iterator[LogFile]:
    """Give a stream; what it does to logging and warnings is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with (tmp_path / "log").open("wb") as file:
        stream = LogStream(file.fileno())
        stream.start()
        yield LogFile(tmp_path / "log", stream)
        stream.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def logged(written: LogFile) -> LogFile:
    """Give a stream that is configured for JSON, at the lowest level."""
    written.configure()
    return written
