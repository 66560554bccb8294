"""One process that polls many machines through the pool as a daemon would, and says what that cost it.

Usage: python tests/benchmarks/ssh_poller.py MACHINES KEY INTERVAL_S SECONDS, where MACHINES is what ssh_machines.py
printed. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import structlog
import uvloop

from rampd.remote import detached_run as detached
from rampd.remote.ssh import SshHost, SshPool

if TYPE_CHECKING:
    from collections.abc import Sequence

_RUN = detached.DetachedRun("5f" * 16, "first", "/home/ubuntu/ramp-kits/iris")
_TICK_S = 0.01


class Lag:
    """How late the loop is, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self.own_s: list[float] = []
        """What of it this thread can have caused: no more than the processor time that it used meanwhile."""

    async def watch(self) -> NoReturn:
        """Look, for ever."""
        while True:
            due, used = time.perf_counter() + _TICK_S, time.thread_time()
            await asyncio.sleep(_TICK_S)
            late_s = max(0.0, time.perf_counter() - due)
            self.late_s.append(late_s)
            self.own_s.append(min(late_s, time.thread_time() - used))


def percentile_ms(values_s: Sequence[float], percent: int) -> float:
    """Return a percentile in milliseconds."""
    return round(sorted(values_s)[len(values_s) * percent // 100] * 1000, 2)


async def poll_until(pool: SshPool, host: SshHost, interval_s: float, end: float, took_s: list[float]) -> None:
    """Poll one machine at its own phase of the interval."""
    await asyncio.sleep(random.uniform(0, interval_s))
    while time.monotonic() < end:
        begun = time.monotonic()
        answer = await pool.run(host, detached.poll(_RUN, 0, 65536), timeout_s=30, max_output_bytes=1 << 17)
        status, text = detached.parse(_RUN, answer)
        took_s.append(time.monotonic() - begun)
        if status.state is not detached.RunState.RUNNING or not text:
            raise RuntimeError(f"{host.key} answered {answer.stdout!r}")
        await asyncio.sleep(begun + interval_s - time.monotonic())


async def main(machines: dict[str, Any], key: Path, interval_s: float, seconds: float) -> dict[str, Any]:
    """Connect to all, poll them for so long, and return the figures."""
    hosts = [
        SshHost(f"i-{number:05d}", address, machines["port"], "ubuntu", machines["host_key"])
        for number, address in enumerate(machines["addresses"])
    ]
    process = psutil.Process()
    async with AsyncExitStack() as stack:
        pool = SshPool(key, connect_timeout_s=60)
        await pool.open(stack)
        await pool.connect(hosts[0])  # what the first one loads is not the others' memory
        gc.collect()
        before_bytes, begun, cpu = process.memory_info().rss, time.monotonic(), time.process_time()
        await _all(pool.connect(host) for host in hosts)
        connected_s, connecting_cpu_s = time.monotonic() - begun, time.process_time() - cpu
        took_s: list[float] = []
        idle = Lag()  # what the machine's other work costs by itself
        watching = asyncio.create_task(idle.watch(), name="lag of an idle loop")
        begun, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(2)
        idle_percent = round((time.process_time() - cpu) / (time.monotonic() - begun) * 100, 1)
        watching.cancel()
        lag = Lag()
        watching = asyncio.create_task(lag.watch(), name="lag")
        begun, cpu = time.monotonic(), time.process_time()
        await _all(poll_until(pool, host, interval_s, begun + seconds, took_s) for host in hosts)
        polled_s, polling_cpu_s = time.monotonic() - begun, time.process_time() - cpu
        watching.cancel()
        gc.collect()
        grown_bytes = process.memory_info().rss - before_bytes
    took_s.sort()
    return {
        "instances": len(hosts),
        "interval_s": interval_s,
        "polls": len(took_s),
        "connect_all_s": round(connected_s, 2),
        "connect_cpu_ms_each": round(connecting_cpu_s / len(hosts) * 1000, 2),
        "idle_cpu_percent": idle_percent,
        "cpu_percent": round(polling_cpu_s / polled_s * 100, 1),
        "poll_cpu_ms": round(polling_cpu_s / len(took_s) * 1000, 3),
        "poll_median_ms": round(took_s[len(took_s) // 2] * 1000, 1),
        "loop_lag_p99_ms": percentile_ms(lag.late_s, 99),
        "loop_lag_by_own_work_p99_ms": percentile_ms(lag.own_s, 99),
        "idle_loop_lag_p99_ms": percentile_ms(idle.late_s, 99),
        "memory_kb_each": round(grown_bytes / len(hosts) / 1024, 1),
        "rss_mb": round(process.memory_info().rss / 1e6, 1),
    }


async def _all(coroutines: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


def run(arguments: Sequence[str]) -> None:
    """Run as the daemon runs: on uvloop, its records going to the stream's end of nowhere."""
    machines, key, interval_s, seconds = arguments
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    structlog.configure(processors=[_drop])
    print(json.dumps(uvloop.run(main(json.loads(machines), Path(key), float(interval_s), float(seconds)))))


def _drop(*_: object) -> NoReturn:
    raise structlog.DropEvent


if __name__ == "__main__":
    run(sys.argv[1:])
