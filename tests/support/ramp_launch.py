"""The original dispatcher on a board under test: `ramp-launch dispatcher` of ramp-engine 0.10.1, with its own files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import yaml

from support.board import EVENT, python
from support.daemon import processes_marked, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.board import Board

_PATIENCE_S = 60.0
_PRESSES_AGAIN_S = 5.0
_CONDA = """#!/bin/sh
echo '{"envs": ["ROOT", "ROOT/envs/ramp-iris"]}'
"""

_BEGINS = "submission=$folder/$name\n"
_OBEYS = "until [ -e ORDERS/$name ]; do sleep 0.02; done\n. ORDERS/$name\n"


def order(board: Board, name: str, script: str) -> None:
    """Say what a submission does: its run waits for it, for ramp_database's are there before their names are known."""
    path = board.root / "orders" / name
    fresh = path.with_suffix(".new")
    fresh.write_text(script, encoding="utf-8")
    fresh.rename(path)


def write_deployment(board: Board, *, n_workers: int = 2) -> Mapping[str, str]:
    """Write the files of a server as ramp-engine wants them; return the environment variables for its dispatchers.

    The kit's environment is called by its name: a `conda` of the test's own, first on PATH, knows where it is.
    """
    deployment = board.deployment
    deployment.make_stub_environment()
    conda = board.root / "conda" / "bin" / "conda"
    conda.parent.mkdir(parents=True)
    conda.write_text(_CONDA.replace("ROOT", str(board.root / "conda")), encoding="utf-8")
    conda.chmod(0o755)
    orders = board.root / "orders"
    orders.mkdir()
    ramp_test = deployment.environment / "bin" / "ramp-test"
    text = ramp_test.read_text(encoding="utf-8")
    assert _BEGINS in text
    ramp_test.write_text(text.replace(_BEGINS, _BEGINS + _OBEYS.replace("ORDERS", str(orders))), encoding="utf-8")
    environment = board.root / "conda" / "envs" / "ramp-iris"
    environment.parent.mkdir()
    deployment.environment.rename(environment)
    (environment / "conda-meta").mkdir()
    (environment / "conda-meta" / "history").touch()
    sections = {
        "ramp": {"problem_name": "iris", "event_name": EVENT, "event_title": "Iris", "event_is_public": True},
        # The last key is rampd's own: the original does not mind it.
        "dispatcher": {"hunger_policy": None, "n_workers": n_workers, "n_threads": 1, "shutdown_grace": 0.2},
        "worker": {"worker_type": "conda", "conda_env": "ramp-iris", "timeout": 60},
    }
    deployment.config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return {**os.environ, "PATH": f"{conda.parent}:{os.environ.get('PATH', os.defpath)}"}


class RampLaunch:
    """A dispatcher under test. Use it as a context manager: whatever happens, nothing of it is left."""

    def __init__(self, board: Board, environment: Mapping[str, str]) -> None:
        self._board = board
        self._environment = environment
        self._log = board.root / "ramp-launch.log"

    def __enter__(self) -> Self:
        command = [
            *(str(python()), "-I", "-c", "from ramp_engine.cli import main; main()", "dispatcher"),
            *("--config", str(self._board.config), "--event-config", str(self._board.deployment.config)),
        ]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self._board.root,  # it opens its log file where it is
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals) -> None:
        """End it, and then what it had running, as `systemctl stop` does: all that is in the unit's control group."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.process.poll() is None:
            # A KeyboardInterrupt that falls into a weak reference's callback or a __del__, as SQLAlchemy's pool has
            # them, is printed and gone: whoever sits at the terminal presses Ctrl-C again.
            assert time.monotonic() < deadline, f"lives on after {number.name}: {self._said()}"
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_PRESSES_AGAIN_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        wait_until(lambda: not processes_marked(str(self._board.root)), timeout_s=_PATIENCE_S, what="the end of all")

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def wait_for(self, states: Mapping[int, str]) -> None:
        """Wait until these submissions are in these states."""

        def are_there() -> bool:
            assert self.process.poll() is None, self._said()
            found = self._board.states()
            return all(found[number] == state for number, state in states.items())

        wait_until(are_there, timeout_s=_PATIENCE_S, what=f"{states}; there is {self._board.states()}: that")
