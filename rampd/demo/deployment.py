"""The demo's deployment: the folders of a RAMP server with one event, as an organizer would lay them out."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from typing import TYPE_CHECKING, Final

from rampd.demo import DemoError
from rampd.state_lock import is_held
from rampd.states import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable
    from pathlib import Path

EVENT: Final = "iris"

EXPECTED: Final[Mapping[str, Outcome]] = {
    "logistic_regression": Outcome.OK,
    "random_forest": Outcome.OK,
    "raises_in_fit": Outcome.PARTICIPANT_ERROR,
    "never_converges": Outcome.TIMEOUT,
    "syntax_error": Outcome.PARTICIPANT_ERROR,
}
"""What becomes of each submission that the demo makes."""

_MARKER = ".rampd-demo"
_PREPARE_TIMEOUT_S = 120.0

_CONFIG = """\
ramp:
  problem_name: iris
  event_name: iris
  event_title: Iris
dispatcher:
  hunger_policy: exit # end when every submission is done; an event that goes on for weeks says sleep
  n_workers: 2 # at once
worker:
  worker_type: conda
  conda_env: {environment}
  timeout: {timeout_s:.15g} # seconds a submission may run
"""


def write(directory: Path, *, environment: Path, timeout_s: float = 20.0) -> Path:
    """Write the deployment anew: kit, data, config and the five submissions. An earlier run's event is removed.

    Parameters
    ----------
    directory
        The deployment's folder: empty, missing, or an earlier call's.
    environment
        A prefix with ramp-workflow.
    timeout_s
        The event's `worker.timeout`.

    Returns
    -------
    Path
        The event's config file.

    Raises
    ------
    DemoError
        The folder is somebody else's, a daemon still serves the event, or the data could not be made.
    """
    event = directory / "events" / EVENT
    claim(directory)
    for folder in (event, kit_dir(directory), data_dir(directory)):
        shutil.rmtree(folder, ignore_errors=True)
    write_kit(kit_dir(directory), data_dir(directory), environment)
    for name in EXPECTED:
        write_submission(name, event / "submissions")
    config = event / "config.yml"
    # A JSON text is a YAML text, whatever the path is made of.
    config.write_text(
        _CONFIG.format(environment=json.dumps(str(environment.absolute())), timeout_s=timeout_s), encoding="utf-8"
    )
    return config


def claim(directory: Path) -> None:
    """Make sure that the folder is there and the demo's own, and that nobody is using it.

    Raises
    ------
    DemoError
        It is not; the message says what to do.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()) and not (directory / _MARKER).exists():
            raise DemoError(f"{directory} holds something that the demo did not make; name another with --directory")
        (directory / _MARKER).touch()
    except OSError as error:
        raise DemoError(f"{directory}: {error.strerror}; name another with --directory") from error
    if (holder := is_held(directory / "events" / EVENT / "state")) is not None:
        raise DemoError(f"rampd (pid {holder}) still serves {directory}; stop it first, or name another --directory")


def kit_dir(directory: Path) -> Path:
    """Return where the kit of a deployment lies."""
    return directory / "ramp-kits" / EVENT


def data_dir(directory: Path) -> Path:
    """Return the folder of a deployment that holds the kit's `data`."""
    return directory / "ramp-data" / EVENT


def write_kit(kit: Path, data: Path, environment: Path) -> None:
    """Write the kit, with its starting kit, and make the data with the environment's own scikit-learn.

    Raises
    ------
    DemoError
        The data could not be made.
    """
    kit.mkdir(parents=True, exist_ok=True)
    for entry in _package_data().iterdir():
        if entry.is_file():
            (kit / entry.name).write_bytes(entry.read_bytes())
    write_submission("starting_kit", kit / "submissions")
    script = kit / "prepare_data.py"
    argv: list[str | Path] = [environment / "bin" / "python", "-I", script, data]
    try:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PREPARE_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DemoError(f"{script} failed ({reason}); is {environment} complete? --fresh makes it anew") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DemoError(f"{script} failed ({error}); is {environment} complete? --fresh makes it anew") from error


def write_submission(name: str, submissions: Path) -> Path:
    """Write one of the kit's submissions, complete at once by a rename, and return its folder.

    They are kept as text: one is no Python at all, and none is for this process to import.
    """
    final = submissions / name
    staged = submissions / f".{name}"
    staged.mkdir(parents=True)
    for entry in (_package_data() / "submissions" / name).iterdir():
        (staged / entry.name.removesuffix(".txt")).write_bytes(entry.read_bytes())
    staged.rename(final)
    return final


def _package_data() -> Traversable:
    return resources.files("rampd.demo") / "kit"
