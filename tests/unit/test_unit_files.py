from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.requirements import needs

UNIT = Path(__file__).parent.parent.parent / "systemd" / "rampd@.service"


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    """systemd-analyze exits with 0 on a typo, and says so on stderr: nothing may stand there."""
    needs("systemd-analyze", package="systemd")
    text = UNIT.read_text(encoding="utf-8").replace("/opt/rampd/bin/rampd", sys.executable)
    (tmp_path / UNIT.name).write_text(text, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_starts_what_is_installed() -> None:
    """ExecStart is the console script with an event's config; a wrong config does not make a restart loop."""
    text = UNIT.read_text(encoding="utf-8")
    assert "ExecStart=/opt/rampd/bin/rampd --config events/%i/config.yml\n" in text
    assert "RestartPreventExitStatus=78\n" in text


def test_the_unit_uses_no_hardening_that_breaks_submissions() -> None:
    """Numba needs writable code, environments live in home folders, runs make namespaces."""
    settings = {line.partition("=")[0] for line in UNIT.read_text(encoding="utf-8").splitlines() if "=" in line}
    assert not settings & {"MemoryDenyWriteExecute", "ProtectHome", "DynamicUser", "RestrictNamespaces", "PrivateUsers"}
