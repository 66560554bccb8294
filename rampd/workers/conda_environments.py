"""From the name of a conda environment to its prefix: by conda's own files first, by asking conda if they do not know.

Files, in conda's order (docs.conda.io, "Using the .condarc conda configuration file", envs_dirs): CONDA_ENVS_DIRS,
CONDA_ENVS_PATH, envs_dirs of .condarc, <root>/envs, ~/.conda/envs; and ~/.conda/environments.txt.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rampd.errors import WorkerSetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

_USUAL_ROOTS = ("miniconda3", "miniforge3", "mambaforge", "anaconda3", "micromamba")
_USUAL_PLACES = ("/opt/conda", "/opt/miniconda3", "/opt/miniforge3", "/opt/anaconda3")
_ASK_AGAIN_S = 60.0
_ASK_TIMEOUT_S = 20.0
TOOLS = ("conda", "mamba", "micromamba")


class CondaEnvironments:
    """The environments of this machine, as the daemon's user sees them.

    Parameters
    ----------
    deployment_dir
        What a relative path is relative to.
    """

    def __init__(self, deployment_dir: Path) -> None:
        self._deployment_dir = deployment_dir
        self._asked_at: float | None = None
        self._told: list[Path] = []

    async def prefix_of(self, conda_env: str) -> Path:
        """Return the prefix of an environment.

        Parameters
        ----------
        conda_env
            `base`, a name, or a path: of a conda environment or of a plain virtual environment.

        Raises
        ------
        WorkerSetupError
            There is none; it names those that there are.
        """
        if is_path(conda_env):
            prefix = self._deployment_dir / _expanded(conda_env)
            if not prefix.is_dir():
                raise WorkerSetupError(f"worker.conda_env: there is no folder {prefix}", self.existing())
            return prefix
        found = self._find(conda_env)
        if found is None:
            await self._ask()
            found = self._find(conda_env)
        if found is None:
            raise WorkerSetupError(
                f"worker.conda_env: there is no conda environment named {conda_env!r} (a path serves too, of a plain "
                "virtual environment as well)",
                self.existing(),
            )
        return found

    def existing(self) -> list[str]:
        """Return the names of the environments that are known, for messages."""
        roots = list(self._roots())
        names = {"base" for root in roots if _is_environment(root)}
        names |= {prefix.name for prefix in self._prefixes() if prefix not in roots}
        return sorted(names)

    def _find(self, name: str) -> Path | None:
        if name == "base":
            return next((root for root in self._roots() if _is_environment(root)), None)
        return next((prefix for prefix in self._prefixes() if prefix.name == name), None)

    def _prefixes(self) -> Iterator[Path]:
        """Yield every environment but the bases, first those of envs_dirs, as conda looks them up."""
        roots = set(self._roots())
        for folder in self._envs_dirs():
            with suppress(OSError):
                yield from (path for path in sorted(folder.iterdir()) if _is_environment(path))
        with suppress(OSError):
            listed = Path("~/.conda/environments.txt").expanduser().read_text(encoding="utf-8", errors="replace")
            for line in listed.splitlines():
                path = Path(line.strip())
                if line.strip() and path not in roots and _is_environment(path):
                    yield path
        yield from (path for path in self._told if path not in roots and _is_environment(path))

    def _envs_dirs(self) -> Iterator[Path]:
        for variable in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"):
            yield from (_expanded(part) for part in os.environ.get(variable, "").split(os.pathsep) if part)
        roots = list(self._roots())
        for condarc in [Path("~/.condarc").expanduser(), *(root / ".condarc" for root in roots)]:
            yield from _envs_dirs_of(condarc)
        yield from (root / "envs" for root in roots)
        yield Path("~/.conda/envs").expanduser()

    def _roots(self) -> Iterator[Path]:
        """Yield the prefixes of installations of conda, each once."""
        seen: set[Path] = set()
        for root in self._candidate_roots():
            if root not in seen and _is_folder(root):
                seen.add(root)
                yield root

    def _candidate_roots(self) -> Iterator[Path]:
        if "MAMBA_ROOT_PREFIX" in os.environ:
            yield Path(os.environ["MAMBA_ROOT_PREFIX"])
        for variable in ("CONDA_EXE", "MAMBA_EXE"):
            if os.environ.get(variable):
                yield from _root_of(Path(os.environ[variable]))
        for tool in TOOLS:
            executable = shutil.which(tool)
            if executable:
                yield from _root_of(Path(executable))
        home = Path.home()
        yield from (home / name for name in _USUAL_ROOTS)
        yield from (Path(place) for place in _USUAL_PLACES)
        # conda sorts its list: the base is the one that has what a base has.
        yield from (path for path in self._told if _is_folder(path / "condabin") or _is_folder(path / "envs"))

    async def _ask(self) -> None:
        """Ask conda itself, which takes half a second or more: at most once a minute."""
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at < _ASK_AGAIN_S:
            return
        self._asked_at = now
        tool = find_tool()
        if tool is None:
            return
        try:
            process = await asyncio.create_subprocess_exec(
                tool,
                "info",
                "--envs",
                "--json",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:  # its interpreter is gone: as good as no conda
            return
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            self._told = [Path(prefix) for prefix in json.loads(output)["envs"]]


def is_path(conda_env: str) -> bool:
    """Return whether `conda_env` is a path rather than a name."""
    return "/" in conda_env or conda_env.startswith(("~", "."))


def _expanded(path: str) -> Path:
    with suppress(RuntimeError):  # nobody of that name has a home: no such folder either
        return Path(path).expanduser()
    return Path(path)


def find_tool() -> str | None:
    """Return conda, mamba or micromamba, whichever there is."""
    for variable in ("CONDA_EXE", "MAMBA_EXE"):
        executable = os.environ.get(variable)
        if executable and os.access(executable, os.X_OK):
            return executable
    for tool in TOOLS:
        executable = shutil.which(tool)
        if executable:
            return executable
    for root in _USUAL_ROOTS:
        path = Path.home() / root / "bin" / "conda"
        if os.access(path, os.X_OK):
            return str(path)
    return None


def _is_environment(path: Path) -> bool:
    with suppress(OSError):
        return (path / "conda-meta").is_dir() or (path / "bin" / "python").exists()
    return False


def _is_folder(path: Path) -> bool:
    """Return whether there is a folder. What this user may not look into (root's home, kept by `su`) is none."""
    with suppress(OSError):
        return path.is_dir()
    return False


def _root_of(executable: Path) -> Iterator[Path]:
    """Yield the installation that an executable belongs to: `<root>/bin/conda` or `<root>/condabin/conda`."""
    for path in (executable, executable.resolve()):
        if path.parent.name in ("bin", "condabin") and _is_folder(path.parent.parent / "conda-meta"):
            yield path.parent.parent


def _envs_dirs_of(condarc: Path) -> list[Path]:
    try:
        data = yaml.safe_load(condarc.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    found = data.get("envs_dirs") if isinstance(data, dict) else None
    return [_expanded(os.path.expandvars(str(folder))) for folder in found] if isinstance(found, list) else []
