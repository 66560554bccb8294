"""The real `rampd`, which writes what it holds to $RAMPD_COUNTS_FILE at every SIGUSR1, as JSON.

How many tasks its loop has, how many blocks of memory its objects take once the garbage is collected, and how many
names were given to `sys.intern` since it began: not a sum of what it holds, but what the interpreter never forgets
(rampd.memory).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rampd.cli.rampd as command_line
from rampd.daemon import serve

if TYPE_CHECKING:
    from rampd.daemon import Limits


_interned = 0


def _count_interned() -> None:
    intern = sys.intern

    def counting(text: str) -> str:
        global _interned  # noqa: PLW0603 -- a process's own count
        _interned += 1
        return intern(text)

    vars(sys)["intern"] = counting


def _write() -> None:
    path = Path(os.environ["RAMPD_COUNTS_FILE"])
    temporary = path.with_suffix(".new")
    gc.collect()
    counts = {"tasks": len(asyncio.all_tasks()), "blocks": sys.getallocatedblocks(), "interned": _interned}
    temporary.write_text(json.dumps(counts), encoding="ascii")
    temporary.rename(path)


async def _serve_and_count(what: Limits, **arguments: Any) -> int:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _write)
    return await serve(what, **arguments)


if __name__ == "__main__":
    _count_interned()
    vars(command_line)["serve"] = _serve_and_count
    sys.exit(command_line.main())
