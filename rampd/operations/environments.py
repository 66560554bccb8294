"""Making and updating an event's conda environment from its kit's environment.yml, with whatever tool there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.errors import RampdError
from rampd.workers.conda import CondaConfig
from rampd.workers.conda_environments import TOOLS, CondaEnvironments, find_tool, is_path

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.config import Settings

ENVIRONMENT_FILES = ("environment.yml", "environment.yaml")


@dataclass(frozen=True, slots=True)
class Plan:
    """A command line that makes or updates an environment."""

    argv: list[str]
    tool: str
    """conda, mamba or micromamba."""
    file: Path
    target: str
    """The environment's name or path."""


async def plan(settings: Settings, *, update: bool) -> Plan:
    """Return what has to be run to make (or update) the event's environment.

    Raises
    ------
    RampdError
        It is no conda event, or there is no environment.yml, no tool, or (to update) no environment; the message says
        what to do.
    """
    config = settings.worker
    if not isinstance(config, CondaConfig):
        raise RampdError(f"worker_type {config.worker_type} has no environment on this machine")
    kit = settings.ramp.kit_dir
    file = next((kit / name for name in ENVIRONMENT_FILES if (kit / name).is_file()), None)
    if file is None:
        raise RampdError(f"{kit} has no environment.yml, which says what the environment is made of")
    executable = find_tool()
    if executable is None:
        raise RampdError(f"none of {', '.join(TOOLS)} is on PATH; install one of them, miniforge for example")
    tool = next((name for name in TOOLS if executable.endswith(f"/{name}")), "conda")
    target = config.conda_env
    if is_path(target):
        prefix = settings.deployment_dir / target
        if prefix.is_dir() and not (prefix / "conda-meta").is_dir():
            raise RampdError(f"{prefix} is no conda environment (a plain virtual environment is kept with its own pip)")
        where = ["--prefix", str(prefix)]
        exists = prefix.is_dir()
    else:
        where = ["--name", target]
        exists = target in CondaEnvironments(settings.deployment_dir).existing()
    if update and not exists:
        raise RampdError(f"there is no environment {target!r} yet; make it with: rampctl env create")
    if not update and exists:
        raise RampdError(f"there is an environment {target!r} already; bring it up to date with: rampctl env update")
    return Plan([executable, *_words(tool, where, file, update=update)], tool, file, target)


def _words(tool: str, where: list[str], file: Path, *, update: bool) -> list[str]:
    verb = "update" if update else "create"
    prune = ["--prune"] if update else []
    if tool == "micromamba":
        return [verb, "--yes", *prune, *where, "--file", str(file)]
    return ["env", verb, *prune, *where, "--file", str(file)]
