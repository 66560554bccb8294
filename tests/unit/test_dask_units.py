"""What docs/dask.md and the units of a cluster's hosts promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rampd.workers.dask_config import DaskConfig
from support.requirements import needs

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "dask.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dask-scheduler.service", "dask-worker.service"])
def test_the_units_are_such_that_systemd_understands(tmp_path: Path, name: str) -> None:
    """systemd-analyze exits with 0 on a typo, and says so on stderr: nothing may stand there."""
    needs("systemd-analyze", package="systemd")
    text = (ROOT / "systemd" / name).read_text(encoding="utf-8").replace("/opt/dask/bin/dask", sys.executable)
    (tmp_path / name).write_text(text, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("name", ["dask-scheduler.service", "dask-worker.service"])
def test_the_units_start_again_whatever_the_status(name: str) -> None:
    """Workers exit with status 0 when their scheduler goes; both refuse what is not encrypted."""
    text = (ROOT / "systemd" / name).read_text(encoding="utf-8")
    assert "\nRestart=always\n" in text
    assert "\nEnvironment=DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True\n" in text
    settings = {line.partition("=")[0] for line in text.splitlines()}
    assert "MemoryDenyWriteExecute" not in settings
    assert name == "dask-scheduler.service" or "ProtectHome" not in settings


@pytest.mark.parametrize("command", ["scheduler", "worker"])
def test_the_commands_have_the_options_that_we_show(command: str) -> None:
    """Guide and units use today's words: each option is one that `dask --help` knows."""
    units = "".join((ROOT / "systemd" / f"dask-{one}.service").read_text(encoding="utf-8") for one in (command,))
    shown = re.findall(rf"bin/dask {command} ((?:[^\n&]|\\\n)*)", GUIDE + units)
    options = {option for line in shown for option in re.findall(r"--[a-z-]+", line)}
    answer = subprocess.run(
        [sys.executable, "-m", "dask", command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert options
    assert not {option for option in options if option not in answer.stdout}


def test_the_section_that_is_shown_is_valid() -> None:
    """Who copies it has a valid `worker` section."""
    for text in (GUIDE, (ROOT / "README.md").read_text(encoding="utf-8")):
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        (section,) = (yaml.safe_load(block)["worker"] for block in blocks if "worker_type: dask" in block)
        assert DaskConfig.model_validate(section).n_workers == 4


def test_the_shell_that_is_shown_is_shell(tmp_path: Path) -> None:
    """Each block parses."""
    needs("shellcheck")
    for number, block in enumerate(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)):
        script = tmp_path / f"{number}.sh"
        script.write_text(f"#!/bin/bash\n{block}", encoding="utf-8")
        checked = subprocess.run(
            ["shellcheck", "-e", "SC2034,SC2164,SC2103", str(script)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout


def test_the_certificates_that_are_shown_are_made(tmp_path: Path) -> None:
    """The guide's own lines make an authority and a certificate for each address that openssl verifies."""
    needs("openssl")
    block = next(one for one in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) if "openssl req" in one)
    subprocess.run(["bash", "-euc", block], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    for address in ("10.0.0.1", "10.0.0.2"):
        certificate = str(tmp_path / "ca" / f"cert-{address}.pem")
        verify = ["openssl", "verify", "-CAfile", str(tmp_path / "ca" / "ca.pem"), "-verify_ip", address, certificate]
        subprocess.run(verify, check=True, capture_output=True)
