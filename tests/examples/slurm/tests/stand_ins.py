"""Stand-ins for sbatch, squeue, sacct and scancel: a cluster in a folder, whose jobs are processes of this machine.

Run as a script it is one of the commands; imported, it is the cluster's other side, with its faults.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NAMES = ("sbatch", "squeue", "sacct", "scancel")


class Cluster:
    """The cluster's state below `root`: a file a job, and one that says which faults there are.

    Faults: `sbatch` refuse | invalid | silent | silent_but_runs, `squeue` down, `sacct` down | lag (it says that what
    has ended runs), `hold` (jobs stay PENDING), `ends_as` (the state that every job ends in, without its script).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self._jobs = root / "jobs"
        self._faults = root / "faults.json"

    def install(self) -> None:
        """Write the four commands."""
        for folder in (self.bin, self._jobs):
            folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            command = self.bin / name
            here = Path(__file__).resolve()
            command.write_text(
                f'#!/bin/sh\nexec {sys.executable} -IS {here} {name} {self.root} "$@"\n', encoding="utf-8"
            )
            command.chmod(0o755)

    # -- what a test asks and does

    def fault(self, **faults: str) -> None:
        """Have these faults from now on, and no others."""
        _write(self._faults, faults)

    @property
    def faults(self) -> dict[str, str]:
        """The faults that there are."""
        return _read(self._faults) or {}

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Return every job that there ever was, by id."""
        return {path.stem: job for path in sorted(self._jobs.glob("*.json")) if (job := _read(path))}

    def is_alive(self, job_id: str | None) -> bool:
        """Return whether a job's processes are there."""
        job = self.jobs().get(str(job_id))
        return job is not None and job.get("pid") is not None and _is_alive(job["pid"])

    def end(self, job_id: str, state: str) -> None:
        """End a job as the cluster does, without asking it."""
        self._update(job_id, state=state, code="0:0")
        _kill(self.jobs()[job_id].get("pid"))

    def forget(self, job_id: str, *, by_sacct: bool = True) -> None:
        """Have squeue forget a job, and sacct as well unless it is told not to."""
        self._update(job_id, forgotten=True, unaccounted=by_sacct)

    def release(self) -> None:
        """Start what waits."""
        self.fault()
        for job_id, job in self.jobs().items():
            if job["state"] == "PENDING":
                self._start(job_id)

    def close(self) -> None:
        """End every job, and wait for that."""
        for job_id, job in self.jobs().items():
            self._update(job_id, state="CANCELLED" if job["state"] in {"PENDING", "RUNNING"} else job["state"])
            _kill(job.get("pid"))
            _wait_for(job.get("runner"))

    # -- the commands

    def sbatch(self, words: list[str]) -> int:
        """Take a job."""
        fault = self.faults.get("sbatch")
        if fault == "refuse":
            return _complain("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
        if fault == "invalid":
            return _complain("sbatch: error: invalid partition specified: shrot")
        if fault == "silent":
            time.sleep(60)
        options = dict(word.removeprefix("--").partition("=")[::2] for word in words[:-1])
        job_id = str(len(self.jobs()) + 1)
        job = {"name": options["job-name"], "script": words[-1], "output": options["output"], "options": words[:-1]}
        _write(self._jobs / f"{job_id}.json", {**job, "state": "PENDING", "code": "0:0"})
        if ends_as := self.faults.get("ends_as"):
            self._update(job_id, state=ends_as)
        elif "hold" not in self.faults:
            self._start(job_id)
        if fault == "silent_but_runs":
            time.sleep(60)
        sys.stdout.write(f"{job_id}\n")
        return 0

    def _start(self, job_id: str) -> None:
        words = [sys.executable, "-IS", __file__, "run", str(self.root), job_id]
        null = subprocess.DEVNULL
        with subprocess.Popen(words, stdin=null, stdout=subprocess.PIPE, stderr=null, start_new_session=True) as runner:
            assert runner.stdout is not None
            runner.stdout.readline()  # it runs
            runner.returncode = 0  # and goes on without us

    def run(self, words: list[str]) -> int:
        """Be the node that runs a job."""
        job = self.jobs()[words[0]]
        with Path(job["output"]).open("wb") as output:
            process = subprocess.Popen([job["script"]], stdout=output, stderr=output, env={}, start_new_session=True)
        self._update(words[0], state="RUNNING", pid=process.pid, runner=os.getpid())
        sys.stdout.write("runs\n")
        sys.stdout.close()
        status = process.wait()
        if self.jobs()[words[0]]["state"] == "RUNNING":
            code = f"0:{-status}" if status < 0 else f"{status}:0"
            self._update(words[0], state="FAILED" if status else "COMPLETED", code=code)
        return 0

    def squeue(self, words: list[str]) -> int:
        """List jobs."""
        if self.faults.get("squeue") == "down":
            return _complain("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
        assert "--format=%A|%T|%j" in words
        for job_id, job in self.jobs().items():
            if not job.get("forgotten"):
                sys.stdout.write(f"{job_id}|{job['state']}|{job['name']}\n")
        return 0

    def sacct(self, words: list[str]) -> int:
        """Say how a job ended."""
        if self.faults.get("sacct") == "down":
            return _complain("sacct: error: Slurm accounting storage is disabled")
        job = self.jobs().get(next(word for word in words if word.startswith("--jobs=")).removeprefix("--jobs="))
        if job is not None and not job.get("unaccounted"):
            if self.faults.get("sacct") == "lag":
                sys.stdout.write("RUNNING|0:0\n")
            else:
                state = "CANCELLED by 0" if job["state"] == "CANCELLED" else job["state"]
                sys.stdout.write(f"{state}|{job['code']}\n")
        return 0

    def scancel(self, words: list[str]) -> int:
        """End jobs."""
        for job_id in words:
            job = self.jobs()[job_id]
            if job["state"] in {"PENDING", "RUNNING"}:
                self._update(job_id, state="CANCELLED", code="0:15")
                _kill(job.get("pid"))
                _wait_for(job.get("runner"))
        return 0

    def _update(self, job_id: str, **fields: Any) -> None:
        path = self._jobs / f"{job_id}.json"
        _write(path, {**(_read(path) or {}), **fields})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found


def _write(path: Path, data: dict[str, Any]) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(data), encoding="utf-8")
    new.replace(path)


def _complain(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _wait_for(pid: int | None) -> None:
    while pid is not None and _is_alive(pid):
        time.sleep(0.005)


if __name__ == "__main__":
    cluster = Cluster(Path(sys.argv[2]))
    sys.exit(getattr(cluster, sys.argv[1])(sys.argv[3:]))
