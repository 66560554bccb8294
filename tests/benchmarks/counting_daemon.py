"""The real `rampd`, which writes how many tasks its loop has to $RAMPD_TASKS_FILE at every SIGUSR1."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rampd.cli.rampd as command_line
from rampd.daemon import serve

if TYPE_CHECKING:
    from rampd.daemon import Limits


def _write() -> None:
    path = Path(os.environ["RAMPD_TASKS_FILE"])
    temporary = path.with_suffix(".new")
    temporary.write_text(str(len(asyncio.all_tasks())), encoding="ascii")
    temporary.rename(path)


async def _serve_and_count(what: Limits, **arguments: Any) -> int:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _write)
    return await serve(what, **arguments)


if __name__ == "__main__":
    vars(command_line)["serve"] = _serve_and_count
    sys.exit(command_line.main())
