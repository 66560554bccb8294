"""docs/workers.md is tried, word for word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import rampd
from rampd import BaseWorker, testing
from rampd.demo import deployment as demo
from rampd.workers.base_worker import STATUSES
from support.rampctl import rampctl

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "workers.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_ten_minutes(ramp_environment: Path, tmp_path: Path) -> None:
    """In the demo's folder, the guide's file and its commands bring a submission to a score and an event to its end."""
    config = demo.write(tmp_path, environment=ramp_environment, timeout_s=20)
    hangs = config.parent / "submissions" / "never_converges"
    for file in hangs.iterdir():
        file.unlink()
    hangs.rmdir()
    (source,) = _blocks("python my_worker.py")
    (tmp_path / "my_worker.py").write_text(source, encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    said = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(_blocks("sh"))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert '"plug_in":"my_worker:MyWorker"' in said.stdout
    counts = {one["name"]: one["state"] for one in _status(config, tmp_path)}
    assert counts == {
        "logistic_regression": "scored",
        "random_forest": "scored",
        "raises_in_fit": "training_error",
        "syntax_error": "training_error",
    }


def _status(config: Path, folder: Path) -> list[dict[str, str]]:
    """Return the submissions; the plug-in is found as the guide's commands find it."""
    words = [sys.executable, "-m", "rampd.cli.rampctl", "status", "--json", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    said = subprocess.run(words, env=environment, capture_output=True, check=True, timeout=60)
    found: list[dict[str, str]] = json.loads(said.stdout)["submissions"]
    return found


def test_every_name_of_the_guide_is_public() -> None:
    """What it calls rampd's is there, and so is every status and method of its tables."""
    for name in re.findall(r"\brampd\.([A-Za-z_]+)\b(?!/)", GUIDE):
        assert name in {"testing", "workers"} or hasattr(rampd, name), name
    suites = r"`(WorkerContract|ResumableWorkerContract|StoreContract|FakeWorker|InMemoryStore|make_job)`"
    assert set(re.findall(suites, GUIDE)) <= set(testing.__all__)
    table = GUIDE[GUIDE.index("| `self.status`") : GUIDE.index("Reading `self.status`")]
    assert set(re.findall(r"`([a-z]+)`", table)) == set(STATUSES)
    methods = re.findall(r"^\| `(\w+)\(\w*(?:, a)?\)` \|", GUIDE, re.MULTILINE)
    assert {"setup", "reclaim", "check_timeout"} <= set(methods)
    for method in methods:
        assert hasattr(BaseWorker, method) or hasattr(rampd.Worker, method), method


def test_every_link_of_the_guide_leads_somewhere() -> None:
    """A link within the project names a file that exists."""
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", GUIDE)
    assert targets
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target


def test_the_errors_of_the_guide_are_what_is_said(tmp_path: Path) -> None:
    """A worker that is not there is answered as the guide shows it."""
    config = tmp_path / "events" / "iris" / "config.yml"
    config.parent.mkdir(parents=True)
    first, second = GUIDE[GUIDE.rindex("```\nevents/") :].splitlines()[1:3]
    for line, worker_type in ((first, "my_worker:MyWorker"), (second, "my-clutser")):
        ramp = "ramp: {problem_name: iris, event_name: iris}"
        config.write_text(f"{ramp}\nworker: {{worker_type: '{worker_type}'}}\n", encoding="utf-8")
        said = rampctl("status", config=config)
        assert said.status == 78
        shown = line.partition(": ")[2].replace("/opt/rampd", sys.prefix).replace("my-cluster, ", "")
        assert re.sub(r"allowed: .*, or", "allowed: …, or", said.stderr.strip().partition(": ")[2]) == re.sub(
            r"allowed: .*, or", "allowed: …, or", shown
        )
