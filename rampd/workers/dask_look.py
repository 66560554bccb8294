"""What there is on a Dask worker's host: the environment, the kit, the data, the user that submissions run as.

Runs inside the Dask worker, sent as source: it needs nothing but the standard library, on any Python that Dask has.
The places where an environment's name is looked up are conda's own (docs.conda.io, "Using the .condarc conda
configuration file", envs_dirs); `rampd.workers.conda_environments` has the same list for this machine.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import sys

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself is not needed there
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_USUAL_ROOTS = ("miniconda3", "miniforge3", "mambaforge", "anaconda3", "micromamba")
_USUAL_PLACES = ("/opt/conda", "/opt/miniconda3", "/opt/miniforge3", "/opt/anaconda3")
_SHOWN = 20


class Missing(Exception):  # noqa: N818 -- named for what it says, and that is what it is for
    """Something that every submission needs is not on this host. `existing` is what there is instead."""

    def __init__(self, missing: str, existing: list[str] | None = None) -> None:
        super().__init__(missing)
        self.missing = missing
        self.existing = existing or []


def look(wanted: dict[str, Any]) -> dict[str, Any]:
    """Look for everything that a submission needs.

    Parameters
    ----------
    wanted
        conda_env, kit_dir, data_dir, run_as (a user's name, or None) and temporary (a folder, or None).

    Returns
    -------
    dict
        prefix, python (of the Dask worker) and user.

    Raises
    ------
    Missing
        The first thing that is not there.
    """
    prefix = prefix_of(wanted["conda_env"])
    if not os.access(f"{prefix}/bin/ramp-test", os.X_OK):
        raise Missing(f"worker.conda_env: {prefix} has no bin/ramp-test; install ramp-workflow into it", existing())
    kit, data = wanted["kit_dir"], wanted["data_dir"]
    if not os.path.isfile(f"{kit}/problem.py"):
        raise Missing(f"{wanted['kit_key']}: there is no {kit}/problem.py", _folders_beside(kit))
    if not os.path.isdir(data):
        raise Missing(f"{wanted['data_key']}: there is no folder {data}", _folders_beside(data))
    identity = identity_of(wanted["run_as"])
    user = wanted["run_as"] if identity else _user_name()
    return {"prefix": prefix, "python": sys.version.split()[0], "user": user}


def prefix_of(conda_env: str) -> str:
    """Return the prefix of an environment: by `base`, a name, or a path (of a plain virtual environment as well).

    Raises
    ------
    Missing
        There is none; it names those that there are.
    """
    if "/" in conda_env or conda_env.startswith(("~", ".")):
        prefix = os.path.abspath(os.path.expanduser(conda_env))
        if not os.path.isdir(prefix):
            raise Missing(f"worker.conda_env: there is no folder {prefix}", existing())
        return prefix
    for name, prefix in _environments():
        if name == conda_env:
            return prefix
    raise Missing(f"worker.conda_env: there is no conda environment named {conda_env!r}", existing())


def existing() -> list[str]:
    """Return the names of the environments that are known here, for messages."""
    return sorted({name for name, _ in _environments()})[:_SHOWN]


def _environments() -> Iterator[tuple[str, str]]:
    roots = list(_roots())
    for root in roots:
        if _is_environment(root):
            yield "base", root
    for folder in _envs_dirs(roots):
        for name in _listed(folder):
            if _is_environment(f"{folder}/{name}"):
                yield name, f"{folder}/{name}"
    for line in _lines(os.path.expanduser("~/.conda/environments.txt")):
        prefix = line.strip()
        if prefix and prefix not in roots and _is_environment(prefix):
            yield os.path.basename(prefix), prefix


def _roots() -> Iterator[str]:
    candidates = [os.environ.get("MAMBA_ROOT_PREFIX", "")]
    executables = [os.environ.get(variable, "") for variable in ("CONDA_EXE", "MAMBA_EXE")]
    candidates += [os.path.dirname(os.path.dirname(executable)) for executable in executables]
    candidates += [os.path.dirname(folder) for folder in os.environ.get("PATH", "").split(":") if "conda" in folder]
    # The Dask worker may run in an environment of the same installation.
    candidates += [sys.prefix] if os.path.isdir(f"{sys.prefix}/condabin") else []
    if os.path.basename(os.path.dirname(sys.prefix)) == "envs":
        candidates.append(os.path.dirname(os.path.dirname(sys.prefix)))
    candidates += [os.path.expanduser(f"~/{name}") for name in _USUAL_ROOTS]
    seen = set()
    for root in (*candidates, *_USUAL_PLACES):
        if root and root not in seen and (os.path.isdir(f"{root}/conda-meta") or os.path.isdir(f"{root}/envs")):
            seen.add(root)
            yield root


def _envs_dirs(roots: list[str]) -> Iterator[str]:
    for variable in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"):
        yield from (part for part in os.environ.get(variable, "").split(":") if part)
    for condarc in [os.path.expanduser("~/.condarc"), *(f"{root}/.condarc" for root in roots)]:
        inside = False
        for line in _lines(condarc):
            # The one list that matters, without a YAML parser.
            if inside and (item := re.match(r"\s*-\s*(\S.*?)\s*$", line)):
                yield os.path.expandvars(os.path.expanduser(item[1].strip("'\"")))
            elif line.strip() and not line.lstrip().startswith("#"):
                inside = line.rstrip() == "envs_dirs:"
    yield from (f"{root}/envs" for root in roots)
    yield os.path.expanduser("~/.conda/envs")


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20).splitlines()
    except OSError:
        return []


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _is_environment(path: str) -> bool:
    return os.path.isdir(f"{path}/conda-meta") or os.path.exists(f"{path}/bin/python")


def _folders_beside(path: str) -> list[str]:
    parent = os.path.dirname(path)
    return [name for name in _listed(parent) if os.path.isdir(f"{parent}/{name}")][:_SHOWN]


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # containers run as users that no file knows
        return str(os.geteuid())


def identity_of(user: str | None) -> tuple[int, int, list[int]] | None:
    """Return uid, gid and groups of the user that submissions run as; None for the Dask worker's own.

    Raises
    ------
    Missing
        There is no such user here, or the Dask worker is not root.
    """
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise Missing(f"worker.run_as: there is no user {user!r}") from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise Missing(f"worker.run_as: {user!r} needs Dask workers that were started as root")
    groups = {group.gr_gid for group in grp.getgrall() if user in group.gr_mem} | {entry.pw_gid}
    return entry.pw_uid, entry.pw_gid, sorted(groups)
