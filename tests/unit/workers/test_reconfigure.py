"""A reload reaches every part of the workers that have parts: live keys are obeyed, not merely accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from rampd.errors import WorkerError
from rampd.remote.hosts import Completed, SshHost
from rampd.testing import make_job
from rampd.workers.aws import AwsWorker
from rampd.workers.aws_allocation import AwsAllocation
from rampd.workers.aws_config import AwsConfig
from rampd.workers.base import WorkerContext
from rampd.workers.dask import DaskWorker
from rampd.workers.dask_config import DaskConfig
from rampd.workers.dask_requests import Requests
from rampd.workers.dask_seats import Seats

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.remote.ssh import SshPool

AWS = {
    "worker_type": "aws",
    "ami_image_name": "iris",
    "ami_user_name": "ubuntu",
    "instance_type": "a",
    "key_name": "iris",
    "key_path": "iris.pem",
    "security_group": "rampd",
    "remote_ramp_kit_folder": "/kit",
    "timeout": 600,
}
DASK = {"worker_type": "dask", "dask_scheduler": "tcp://127.0.0.1:8786"}


def _context(root: Path) -> WorkerContext:
    return WorkerContext("event", root, root, root, root / "state", 1.0)


class FakePool:
    """Keeps what it is told to run, and lets it end well."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    async def run(self, _: SshHost, command: str, **__: Any) -> Completed:
        """Run nothing."""
        self.commands.append(command)
        return Completed(0, b"", b"")


async def test_the_parts_of_the_aws_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead-man's switch follows the timeout, what is sent its bounds, and looks at EC2 their interval."""
    worker = AwsWorker(AwsConfig.model_validate(AWS), _context(tmp_path))
    pool = FakePool()

    async def open_pool() -> SshPool:
        return cast("SshPool", pool)

    monkeypatch.setattr(worker._shell, "_pool", open_pool)
    job = make_job(tmp_path)
    job.attempt_dir.mkdir(parents=True)
    allocation = AwsAllocation.of(job, worker.config).model_copy(update={"instance_id": "i-1", "address": "127.0.0.1"})
    changed = {"timeout": 6000, "max_output_bytes": 1, "max_log_bytes": 7}
    worker.reconfigure(AwsConfig.model_validate(AWS | changed), replace(worker.context, time_between_collection_s=0.25))
    await worker._shell.set_deadman(allocation)
    assert pool.commands == ["sudo -n shutdown -h +160"]
    with pytest.raises(WorkerError, match="too large"):
        worker._shell._pack(job, tmp_path / "packed")
    assert worker._shell.config.max_log_bytes == worker._launcher.config.max_log_bytes == 7
    assert worker._watch.interval_s == worker._launcher.context.time_between_collection_s == 0.25


async def test_the_parts_of_the_dask_worker(tmp_path: Path) -> None:
    """What a run is handed over with has the environment and the bounds of the day."""
    worker = DaskWorker(DaskConfig.model_validate(DASK), _context(tmp_path))
    worker._requests = Requests(worker.config, worker.context, "owner")
    worker._seats = Seats(cast("Any", None), {}, worker.context.time_between_collection_s)
    changed = {"env": {"OWN": "text"}, "max_log_bytes": 7, "max_output_bytes": 8, "max_output_files": 9}
    worker.reconfigure(
        DaskConfig.model_validate(DASK | changed), replace(worker.context, time_between_collection_s=0.25)
    )
    request = worker._requests.to_run(make_job(tmp_path), b"", grace_s=0.0)
    assert request["environment"]["OWN"] == "text"
    assert (request["max_log_bytes"], request["max_bytes"], request["max_files"]) == (7, 8, 9)
    assert worker._seats.interval_s == 0.25
