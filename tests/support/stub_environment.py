"""An environment below a test's folder whose ramp-test is a few lines of sh or Python."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

BY_NAME: Final = """#!/bin/sh
while [ $# -gt 0 ]; do
  if [ "$1" = --submission ]; then name=$2; fi
  shift
done
echo "$name runs"
case "$name" in
  good) exit 0 ;;
  bad) exit 1 ;;
  hangs) setsid sleep 1000 & sleep 1000 ;;
esac
exit 99
"""
"""A ramp-test that does what the submission is called. Has a child of its own while it hangs, and one in a session of
its own: they count as the run's."""


@dataclass(frozen=True, slots=True)
class StubEnvironment:
    """The environment of an event whose folders are below `root`."""

    root: Path

    @property
    def prefix(self) -> Path:
        """The environment."""
        return self.root / "environment"

    def ramp_test(self, script: str, *, interpreter: str = "/bin/sh") -> Path:
        """Write ramp-test; ``$2`` is the submission's name and ``$8`` the folder of the private copy's folder."""
        path = self.prefix / "bin" / "ramp-test"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{interpreter}\n{script}", encoding="utf-8")
        path.chmod(0o755)
        return path

    def python(self, script: str) -> Path:
        """Write a ramp-test in Python; it does not look at where it is, nor for anybody's packages."""
        return self.ramp_test(script, interpreter=f"{sys.executable} -I")
