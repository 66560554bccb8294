"""The unit files: what systemd 252 understands, how much is open to an attacker, and what submissions need."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rampd.cli import rampd
from rampd.credentials import AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, DATABASE_PASSWORD
from rampd.exit_statuses import EX_CONFIG
from rampd.logs.pipeline import MAX_LINE_BYTES
from support.requirements import needs

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "systemd"
UNITS = ("rampd@.service", "rampd.service")
THRESHOLD = 40
"""Tenths: 4.0, where 10 is a service that hides nothing."""


def _settings(name: str) -> list[tuple[str, str]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [(key, value) for key, sep, value in (line.partition("=") for line in lines) if sep and key[:1].isalpha()]


def _value(name: str, key: str) -> str:
    (value,) = [value for found, value in _settings(name) if found == key]
    return value


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Give a folder with the units, whose program is one that there is here."""
    for name in UNITS:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("/opt/rampd/bin/rampd", sys.executable)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def _analyze(*words: str) -> subprocess.CompletedProcess[str]:
    needs("systemd-analyze", package="systemd")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_every_line(installed: Path, name: str) -> None:
    """systemd-analyze exits with 0 on a typo, and says so on stderr: nothing may stand there."""
    verified = _analyze("verify", "--man=no", str(installed / name))
    assert (verified.returncode, verified.stderr) == (0, "")


def test_a_typo_would_be_seen(installed: Path) -> None:
    """The test above is one that can fail."""
    path = installed / "rampd.service"
    path.write_text(path.read_text(encoding="utf-8").replace("WatchdogSec", "WatchdogSeconds"), encoding="utf-8")
    assert "WatchdogSeconds" in _analyze("verify", "--man=no", str(path)).stderr


@pytest.mark.parametrize("name", UNITS)
def test_little_is_open_to_an_attacker(installed: Path, name: str) -> None:
    """4.0 or better by systemd's own count."""
    judged = _analyze("security", "--offline=true", f"--threshold={THRESHOLD}", str(installed / name))
    assert judged.returncode == 0, judged.stdout[-300:]


def test_the_drop_in_fits_the_units(installed: Path) -> None:
    """It names another deployment, and systemd understands it with each of the units."""
    for name in UNITS:
        drop_in = installed / f"{name}.d" / "local.conf"
        drop_in.parent.mkdir()
        drop_in.write_bytes((FOLDER / "example.conf").read_bytes())
        verified = _analyze("verify", "--man=no", str(installed / name))
        assert (verified.returncode, verified.stderr) == (0, "")


@pytest.fixture
def board_drop_in(installed: Path) -> Path:
    """Give the drop-in of docs/board.md, word for word, in its place beside the unit that it names."""
    (text,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "board.md").read_text(encoding="utf-8"), re.DOTALL)
    text = textwrap.dedent(text)
    (named,) = re.findall(r"^# /etc/systemd/system/(\S+)$", text, re.MULTILINE)
    path = installed / str(named)
    assert path.parent.name == "rampd@.service.d"
    path.parent.mkdir()
    path.write_text(text.replace("/opt/rampd/bin/rampd", sys.executable), encoding="utf-8")
    return path


def test_the_guide_to_boards_has_a_drop_in_that_systemd_understands(installed: Path, board_drop_in: Path) -> None:
    """With it in place there is nothing to complain of; with a typo in it there is, so it was read."""
    verified = _analyze("verify", "--man=no", str(installed / "rampd@.service"))
    assert (verified.returncode, verified.stderr) == (0, "")
    text = board_drop_in.read_text(encoding="utf-8")
    board_drop_in.write_text(text.replace("After=", "Afterwards="), encoding="utf-8")
    assert "Afterwards" in _analyze("verify", "--man=no", str(installed / "rampd@.service")).stderr


def test_the_guide_to_boards_has_a_drop_in_that_takes_the_place_of_the_command(board_drop_in: Path) -> None:
    """It empties the unit's command first, serves the same event, and has no option that rampd has not."""
    lines = board_drop_in.read_text(encoding="utf-8").splitlines()
    commands = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    emptied, command = commands
    assert emptied == ""
    _, *words = command.split()
    assert " ".join(words).startswith(_value("rampd@.service", "ExecStart").partition(" ")[2])
    known = {name for parameter in rampd.main.params for name in parameter.opts}
    assert [word for word in words if word.startswith("--")] == ["--config", "--database-config", "--board-python"]
    assert {word for word in words if word.startswith("--")} <= known


def test_the_user_is_one_that_sysusers_makes() -> None:
    """User= of the units, with the deployment's folder as its home."""
    needs("systemd-sysusers", package="systemd")
    made = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(FOLDER / "rampd.sysusers.conf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (line,) = [line for line in (FOLDER / "rampd.sysusers.conf").read_text().splitlines() if line.startswith("u ")]
    assert line.split()[1] == _value("rampd@.service", "User") == _value("rampd.service", "User")
    assert "/srv/ramp" in line


def test_the_units_are_one_but_for_what_they_serve() -> None:
    """What is mended in one is mended in the other."""
    differing = {"Description", "ExecStart"}
    one, other = ([pair for pair in _settings(name) if pair[0] not in differing] for name in UNITS)
    assert one == other
    assert _value("rampd@.service", "ExecStart") == "/opt/rampd/bin/rampd --config events/%i/config.yml"
    assert _value("rampd.service", "ExecStart") == "/opt/rampd/bin/rampd --events-dir events"


def test_a_failing_daemon_is_started_again_and_a_wrong_config_is_not() -> None:
    """For ever, every 5 s; a config must be mended first."""
    expected = {
        "Type": "notify",
        "Restart": "on-failure",
        "RestartSec": "5",
        "StartLimitIntervalSec": "0",
        "RestartPreventExitStatus": str(EX_CONFIG),
        "KillMode": "mixed",
        "ExecReload": "/bin/kill -HUP $MAINPID",
    }
    assert {key: _value("rampd@.service", key) for key in expected} == expected


def test_the_default_deployment_is_one() -> None:
    """WorkingDirectory and ReadWritePaths name the same one."""
    assert _value("rampd@.service", "ReadWritePaths") == f"{_value('rampd@.service', 'WorkingDirectory')}/events"


def test_every_credential_that_is_read_is_handed_over() -> None:
    """By the names that the code looks for; without a path, so that none has to be there."""
    handed_over = {value for key, value in _settings("rampd@.service") if key == "LoadCredential"}
    assert handed_over == {AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, DATABASE_PASSWORD}


def test_journald_takes_the_whole_stream() -> None:
    """A record fits a line of the journal (48 KiB), and 100 submissions a second fit its rate."""
    assert MAX_LINE_BYTES < 48 * 1024
    seconds = int(_value("rampd@.service", "LogRateLimitIntervalSec").removesuffix("s"))
    assert int(_value("rampd@.service", "LogRateLimitBurst")) >= 100 * 8 * seconds


@pytest.mark.parametrize("name", UNITS)
def test_nothing_is_used_that_breaks_submissions_and_each_says_why(name: str) -> None:
    """Numba needs writable code, environments live in home folders, runs make namespaces with a /proc of their own."""
    breaking = {
        "MemoryDenyWriteExecute",
        "ProtectHome",
        "DynamicUser",
        "PrivateUsers",
        "ProtectProc",
        "ProcSubset",
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "PrivateDevices",
        "PrivateNetwork",
        "IPAddressDeny",
    }
    assert not breaking & {key for key, _ in _settings(name)}
    reasons = "\n".join(re.findall(r"^#   (.*:.*)$", (FOLDER / name).read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in breaking if word not in reasons} == set()
    assert {"user", "pid", "mnt"} <= set(_value(name, "RestrictNamespaces").split())
