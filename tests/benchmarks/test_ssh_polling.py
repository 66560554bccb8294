"""The short form of the polling benchmark: what holds on any machine, however busy. `run.py` has the long one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks.ssh_polling import polling

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_polling_many_instances_costs_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fifth of the instances of the long form, a second apart: CPU, lag, memory, and a rival from the same run."""
    figures = polling(tmp_path, instances=40, interval_s=1.0, seconds=5.0, rival_polls=5)
    with capsys.disabled():
        print("\n" + json.dumps(figures))
    assert figures["polls"] >= 40 * 4
    assert figures["cpu_percent"] < 35 / 200 * 40 * 2  # small numbers keep the processor's caches cold
    assert figures["loop_lag_by_own_work_p99_ms"] < 20  # the rest is the machine's other work
    assert figures["memory_kb_each"] < 1024
    assert figures["times_less_cpu"] > 20
