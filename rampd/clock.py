"""Clocks: which one a figure is taken from matters when machines sleep, reboot, or have their time set.

Deadlines and durations use CLOCK_BOOTTIME (it goes on while the machine is suspended and never jumps); the wall
clock only names moments for people and for the time after a reboot.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path


def boottime() -> float:
    """Return seconds since boot, time spent suspended included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Return seconds since the epoch, UTC."""
    return time.time()


@cache
def boot_id() -> str:
    """Return the kernel's random id of this boot (random(4)): `boottime` figures compare only under the same one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
