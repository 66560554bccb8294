"""The real `rampd`, with one more task on its loop: how late a timer of 10 ms fires, written to $RAMPD_LAG_FILE."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import rampd.cli.rampd as command_line
from rampd.daemon import Limits, serve

_STEP_S = 0.01


async def _sample(late_s: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _STEP_S
        await asyncio.sleep(_STEP_S)
        late_s.append(max(0.0, loop.time() - due))


async def _serve_and_sample(what: Limits, **arguments: Any) -> int:
    late_s: list[float] = []
    sampling = asyncio.create_task(_sample(late_s))
    try:
        return await serve(what, **arguments)
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
        late_s.sort()
        count = len(late_s)
        figures = {
            "samples": count,
            "median_ms": late_s[count // 2] * 1e3,
            "p99_ms": late_s[int(count * 0.99)] * 1e3,
            "worst_ms": late_s[-1] * 1e3,
        }
        _write(json.dumps(figures))


def _write(text: str) -> None:
    Path(os.environ["RAMPD_LAG_FILE"]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    vars(command_line)["serve"] = _serve_and_sample
    sys.exit(command_line.main())
