"""What the Dask worker asks of its remote part, and the names under which its runs are known in a cluster."""

from __future__ import annotations

import dataclasses
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rampd import ramp_test
from rampd.errors import WorkerError
from rampd.workers import containment
from rampd.workers.dask_bundle import keeper_sources
from rampd.workers.dask_run import SUBMISSIONS

if TYPE_CHECKING:
    from rampd.models import Job
    from rampd.workers.base import WorkerContext
    from rampd.workers.dask_config import DaskConfig

OWNER_FILE = "dask_owner"


class Requests:
    """Makes requests for one event.

    Parameters
    ----------
    config, context
        The worker's.
    owner
        The event's name in the cluster; see `owner_of`.
    """

    def __init__(self, config: DaskConfig, context: WorkerContext, owner: str) -> None:
        self.config = config
        self.context = context
        self.owner = owner

    def key_of(self, attempt_id: str) -> str:
        """Return the key of an attempt's task."""
        return f"rampd-{self.owner}-{attempt_id}"

    def to(self, do: str, **more: Any) -> dict[str, Any]:
        """Return a request, by the name of what is to be done."""
        config, context = self.config, self.context
        return {
            "do": do,
            "owner": self.owner,
            "temporary": config.remote_scratch_dir,
            "conda_env": config.conda_env,
            "kit_dir": config.remote_kit_dir or str(context.kit_dir),
            "kit_key": "worker.remote_kit_dir" if config.remote_kit_dir else "ramp.kit_dir",
            "data_dir": config.remote_data_dir or str(context.data_dir),
            "data_key": "worker.remote_data_dir" if config.remote_data_dir else "ramp.data_dir",
            "run_as": config.run_as,
            **more,
        }

    def to_run(self, job: Job, archive: bytes | None, *, grace_s: float) -> dict[str, Any]:
        """Return the request to run a submission, which its host ends `grace_s` after its timeout."""
        there = self.to("run")
        remote_job = dataclasses.replace(job, kit_dir=Path(there["kit_dir"]), data_dir=Path(there["data_dir"]))
        return there | {
            "attempt": job.attempt_id,
            "submission": job.submission,
            "archive": archive,
            "arguments": ramp_test.argv(Path("/"), remote_job, Path(SUBMISSIONS))[1:],
            "environment": self._environment(job),
            "deadline_s": job.timeout_s + grace_s,
            "max_log_bytes": int(self.config.max_log_bytes),
            "max_bytes": int(self.config.max_output_bytes),
            "max_files": self.config.max_output_files,
            "keeper": keeper_sources(),
        }

    def _environment(self, job: Job) -> dict[str, str]:
        environment = containment.thread_limits(job.n_threads)
        for name, text in self.config.env.items():
            value = os.environ.get(name) if text is None else text
            if value is not None and not (containment.is_withheld(name) and text is None):
                environment[name] = value
        return environment


def owner_of(state_dir: Path) -> str:
    """Return the name under which this event's runs are known in the cluster: random, and kept in state_dir."""
    path = state_dir / OWNER_FILE
    with suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    owner = secrets.token_hex(8)
    if state_dir.is_dir():  # `rampctl check` asks before there is one, and writes nothing
        try:
            path.write_text(f"{owner}\n", encoding="ascii")
        except OSError as error:
            raise WorkerError(f"{path}: cannot be written: {error.strerror}") from error
    return owner
