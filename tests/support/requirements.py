"""What a test needs of the machine: missing, it is skipped on a laptop and fails where CI=true."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def needs(*commands: str, package: str | None = None) -> None:
    """Go on only where these commands are installed.

    Parameters
    ----------
    commands
        Names to look for on PATH, and where Debian keeps daemons.
    package
        The Debian package that has them; None where it is called like the first.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [command for command in commands if shutil.which(command, path=path) is None]
    if missing:
        give_up(f"needs {', '.join(missing)} (apt-get install {package or missing[0]})")


def needs_root() -> None:
    """Go on only as root."""
    if os.geteuid() != 0:
        give_up("needs root")


def give_up(reason: str) -> NoReturn:
    """Skip the test; fail where CI=true, so that nothing goes untested unnoticed."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI=true", pytrace=False)
    pytest.skip(reason)
