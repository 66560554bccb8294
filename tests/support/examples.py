"""The two example plug-ins, installed into a folder of their own as a user installs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
SUPPORT = Path(__file__).parent.parent


def install(target: Path, *names: str) -> Path:
    """Install examples into a folder, without asking anybody for anything; return it."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    words = [sys.executable, "-m", "pip", "install", *options, "--target", str(target)]
    said = subprocess.run(
        [*words, *(str(EXAMPLES / name) for name in names)], check=False, capture_output=True, text=True, timeout=110
    )
    assert said.returncode == 0, said.stderr
    return target


def environment(*folders: Path) -> dict[str, str]:
    """Return the environment of a process that finds what lies in these folders."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
