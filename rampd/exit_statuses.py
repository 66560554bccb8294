"""Exit statuses of the command lines (sysexits.h where it has one)."""

from __future__ import annotations

import os
from typing import Final

EX_OK: Final = 0
EX_FAILED: Final = 1
EX_USAGE: Final = 2
EX_TEMPFAIL: Final = os.EX_TEMPFAIL
EX_CONFIG: Final = os.EX_CONFIG
EX_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""
