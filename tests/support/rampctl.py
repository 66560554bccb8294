"""The real `rampctl` as a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Said:
    """What a command said."""

    status: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """Its JSON."""
        return json.loads(self.stdout)


def rampctl(
    *words: str,
    config: Path | None = None,
    timeout_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
) -> Said:
    """Run a command to its end."""
    argv = [sys.executable, "-m", "rampd.cli.rampctl", *words, *(["--config", str(config)] if config else [])]
    ended = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, env=environment
    )
    return Said(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
