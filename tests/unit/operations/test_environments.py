from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rampd.errors import RampdError
from rampd.event import load_settings
from rampd.operations.environments import plan
from support.rampctl import rampctl

_CONFIG = "ramp: {{problem_name: iris, event_name: iris}}\nworker: {{worker_type: conda, conda_env: {environment}}}\n"


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("CONDA_EXE", "MAMBA_EXE", "MAMBA_ROOT_PREFIX", "CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"):
        monkeypatch.delenv(variable, raising=False)


def _event(tmp_path: Path, environment: str = "ramp-iris", *, with_file: bool = True) -> Path:
    kit = tmp_path / "ramp-kits" / "iris"
    kit.mkdir(parents=True)
    if with_file:
        (kit / "environment.yml").write_text("dependencies: [python]\n", encoding="utf-8")
    config = tmp_path / "config.yml"
    config.write_text(_CONFIG.format(environment=environment), encoding="utf-8")
    return config


def _install(tmp_path: Path, tool: str, *, status: int = 0) -> None:
    """Install a tool that says what it was told, and makes the environment it was asked for."""
    path = tmp_path / "bin" / tool
    path.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/told\n[ "$1" = info ] && echo \'{{"envs": []}}\'\nexit {status}\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("tool", "update", "words"),
    [
        ("conda", False, "env create --name ramp-iris --file"),
        ("mamba", False, "env create --name ramp-iris --file"),
        ("micromamba", False, "create --yes --name ramp-iris --file"),
        ("conda", True, "env update --prune --name ramp-iris --file"),
        ("micromamba", True, "update --yes --prune --name ramp-iris --file"),
    ],
)
async def test_the_tool_that_is_there_is_used(tmp_path: Path, tool: str, update: bool, words: str) -> None:
    """conda, mamba and micromamba have words of their own."""
    config = _event(tmp_path)
    _install(tmp_path, tool)
    if update:
        (tmp_path / ".conda" / "envs" / "ramp-iris" / "conda-meta").mkdir(parents=True)
    planned = await plan(load_settings(config), update=update)
    assert planned.tool == tool
    assert " ".join(planned.argv[1:]) == f"{words} {tmp_path}/ramp-kits/iris/environment.yml"


async def test_a_path_is_a_prefix(tmp_path: Path) -> None:
    """Relative to the deployment, as everywhere in a config."""
    config = _event(tmp_path, "./environments/iris")
    _install(tmp_path, "conda")
    planned = await plan(load_settings(config), update=False)
    assert planned.argv[3:5] == ["--prefix", str(tmp_path / "environments" / "iris")]


async def test_without_a_tool_the_message_names_all_three(tmp_path: Path) -> None:
    """Nobody has to guess what to install."""
    config = _event(tmp_path)
    with pytest.raises(RampdError, match="none of conda, mamba, micromamba"):
        await plan(load_settings(config), update=False)


async def test_without_an_environment_file_there_is_nothing_to_make(tmp_path: Path) -> None:
    """The message names the kit."""
    config = _event(tmp_path, with_file=False)
    _install(tmp_path, "conda")
    with pytest.raises(RampdError, match=r"ramp-kits/iris has no environment\.yml"):
        await plan(load_settings(config), update=False)


async def test_what_exists_is_not_made_again(tmp_path: Path) -> None:
    """And what does not exist is not updated."""
    config = _event(tmp_path)
    _install(tmp_path, "conda")
    with pytest.raises(RampdError, match="rampctl env create"):
        await plan(load_settings(config), update=True)
    (tmp_path / ".conda" / "envs" / "ramp-iris" / "conda-meta").mkdir(parents=True)
    with pytest.raises(RampdError, match="rampctl env update"):
        await plan(load_settings(config), update=False)


async def test_a_plain_virtual_environment_is_left_to_pip(tmp_path: Path) -> None:
    """Conda would make a mess of it."""
    config = _event(tmp_path, "./venv")
    _install(tmp_path, "conda")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    with pytest.raises(RampdError, match="plain virtual environment"):
        await plan(load_settings(config), update=True)


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (3, 1)])
def test_the_commands_status_is_the_tools(tmp_path: Path, status: int, expected: int) -> None:
    """A tool that fails is status 1, with its own status in the message."""
    config = _event(tmp_path)
    _install(tmp_path, "conda", status=status)
    said = rampctl("env", "create", config=config)
    assert said.status == expected
    assert "env create --name ramp-iris" in (tmp_path / "told").read_text(encoding="utf-8")
    assert "made from" in said.stdout if expected == 0 else "failed with status 3" in said.stderr
