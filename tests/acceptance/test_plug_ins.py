"""Plug-ins as a third party ships them, with the real `rampd`: installed, found, run, killed and stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from rampd.demo import deployment as demo
from support.daemon import RampdProcess, processes_marked, wait_until
from support.deployment import Deployment
from support.examples import EXAMPLES, SUPPORT, environment, install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GOOD = (demo._package_data() / "submissions" / "logistic_regression" / "estimator.py.txt").read_text(encoding="utf-8")
_RAISES = (demo._package_data() / "submissions" / "raises_in_fit" / "estimator.py.txt").read_text(encoding="utf-8")

# From RAMP's documentation, "Create your own worker", `collect_results`.
_PAGE = """
            log_output = stdout + b'\\n\\n' + stderr
            log_dir = os.path.join(self.config['logs_dir'],
                                   self.submission)
            if not os.path.exists(log_dir):
                os.makedirs(log_dir)
            with open(os.path.join(log_dir, 'log'), 'wb+') as f:
                f.write(log_output)
            pred_dir = os.path.join(self.config['predictions_dir'],
                                    self.submission)
            output_training_dir = os.path.join(
                self.config['submissions_dir'], self.submission,
                'training_output')
            if os.path.exists(pred_dir):
                shutil.rmtree(pred_dir)
            shutil.copytree(output_training_dir, pred_dir)
            self.status = 'collected'
            logger.info(repr(self))
            return (self._proc.returncode, error_msg)
"""

_NEVER_BACK = """
import time
from rampd import BaseWorker

class {method}(BaseWorker):
    def setup(self):
        super().setup()
    def launch_submission(self):
        super().launch_submission()
    def _is_submission_finished(self):
        return True
    def collect_results(self):
        super().collect_results()
        return 1, ""
    def {method}(self):
        open({entered!r}, "w").close()
        # an executor's thread, for which Python waits at its end, and a call that never returns
        from concurrent.futures import ThreadPoolExecutor
        ThreadPoolExecutor(1).submit(time.sleep, 1000)
        time.sleep(1000)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both examples in it."""
    return install(tmp_path_factory.mktemp("installed"), "conda_like", "slurm")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return mypy's cache, which both examples share."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["conda_like", "slurm"])
def test_its_own_tests_pass(installed: Path, name: str) -> None:
    """An example's tests, the contract suite among them, pass against the installed package."""
    words = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    said = subprocess.run(
        words, cwd=EXAMPLES / name, env=environment(installed), capture_output=True, text=True, timeout=280, check=False
    )
    assert said.returncode == 0, said.stdout
    assert " passed" in said.stdout
    assert "skipped" not in said.stdout


@pytest.mark.parametrize("name", ["conda_like", "slurm"])
def test_its_types_are_strict(cache: Path, name: str) -> None:
    """A plug-in that uses rampd's public names passes mypy --strict."""
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(cache), "."]
    said = subprocess.run(words, cwd=EXAMPLES / name, capture_output=True, text=True, timeout=110, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("name", ["conda_like", "slurm"])
def test_it_uses_public_names_only(name: str) -> None:
    """What an example imports of rampd's is what the guide names."""
    for path in EXAMPLES.joinpath(name).rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "import" in line and "rampd" in line.replace(f"rampd_{name}", ""):
                imports = line.split()
                assert imports[1] in {"rampd", "rampd.testing"}, (path, line)


@pytest.fixture(scope="module")
def conda_like(
    installed: Path, ramp_environment: Path, iris_kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, RampdProcess]]:
    """Give an event of real iris submissions that the documentation's worker runs."""
    event = Deployment(
        tmp_path_factory.mktemp("conda-like"),
        worker={"worker_type": "conda-like", "conda_env": str(ramp_environment)},
        ramp={"kit_dir": str(demo.kit_dir(iris_kit)), "data_dir": str(demo.data_dir(iris_kit))},
    )
    event.submit("good", estimator__py=_GOOD)
    event.submit("raises", estimator__py=_RAISES)
    with RampdProcess(event.config, environment=environment(installed)) as daemon:
        daemon.finished("good", "raises", timeout_s=100)
        assert daemon.stop() == 0
        yield event, daemon


def test_the_documentations_worker_takes_iris_to_a_score(conda_like: tuple[Deployment, RampdProcess]) -> None:
    """Its code, as it stands on the page, runs as a plug-in, and what it copies is scored."""
    event, daemon = conda_like
    example = (EXAMPLES / "conda_like/rampd_conda_like/__init__.py").read_text(encoding="utf-8")
    page = {line.strip() for line in _PAGE.splitlines()}
    assert page <= {line.strip() for line in example.splitlines()}
    (scored,) = daemon.find("submission.scored", submission="good")
    assert 0.9 < scored["scores"]["acc"]["test"]["bagged"] <= 1.0
    assert (event.predictions / "good" / "fold_0" / "y_pred_test.npz").exists()
    assert b"----------------------------" in (event.logs / "good" / "log").read_bytes()
    assert daemon.find("daemon.started")[0]["worker"] == {"iris": {"plug_in": "rampd_conda_like:CondaLikeWorker"}}


def test_a_participants_failure_is_its_own(conda_like: tuple[Deployment, RampdProcess]) -> None:
    """What raises in fit is a training_error under the documentation's worker too."""
    _, daemon = conda_like
    (finished,) = daemon.find("submission.finished", submission="raises")
    assert (finished["outcome"], finished["exit_status"]) == ("participant_error", 1)


def test_an_earlier_subclass_with_its_import_line_changed(tmp_path: Path) -> None:
    """One that ends its process itself, and insists on the order of its calls, does what it did before."""
    event = Deployment(
        tmp_path,
        worker={"worker_type": "support.earlier_worker:EarlierWorker", "timeout": 10, "max_attempts": 1},
        dispatcher={"time_between_collection": 0.05, "shutdown_grace": 0, "n_workers": 5},
    )
    event.make_stub_environment()
    event.submit("good")
    event.submit(
        "bad", behaviour="echo 'Traceback (most recent call last):\n  File \"x\"\nValueError: no' >&2; exit 1\n"
    )
    event.submit("late", behaviour="echo begun; setsid sleep 1000 & sleep 1000\n")
    with RampdProcess(event.config, environment=environment(SUPPORT)) as daemon:
        finished = daemon.finished("good", "bad", "late")
        assert {name: record["outcome"] for name, record in finished.items()} == {
            "good": "ok",
            "bad": "participant_error",
            "late": "timeout",
        }
        assert (event.logs / "late" / "log").read_text(encoding="utf-8") == "begun\n"
        event.submit("parked", behaviour="exec sleep 1000\n")
        daemon.wait_for("submission.started", submission="parked")
        assert not daemon.find("worker.plug_in_failed")
        assert daemon.stop() == 0
        assert not daemon.find("worker.plug_in_failed")
    assert event.states()["parked"] == "new"
    assert not processes_marked(str(event.state))


def test_what_a_killed_daemon_leaves_is_ended(installed: Path, tmp_path: Path) -> None:
    """A plug-in's ramp-test survives kill -9; the next start ends it before it runs the submission anew."""
    event = Deployment(tmp_path, worker={"worker_type": "conda-like"}, dispatcher={"shutdown_grace": 0})
    event.make_stub_environment()
    event.submit("one", behaviour=f"if [ ! -f {tmp_path}/once ]; then touch {tmp_path}/once; sleep 1000; fi\n")
    with RampdProcess(event.config, environment=environment(installed)) as daemon:
        wait_until((tmp_path / "once").exists, timeout_s=60, what="the run")
        daemon.wait_for("submission.started")
        daemon.kill()
    assert processes_marked(str(event.state / "attempts"))
    with RampdProcess(event.config, environment=environment(installed)) as daemon:
        reclaimed = daemon.wait_for("worker.reclaimed")
        assert reclaimed["what"].startswith(("process", "folder"))
        assert daemon.finished("one")["one"]["outcome"] == "ok"
        assert daemon.find("worker.reclaimed")
        assert daemon.stop() == 0
    assert not processes_marked(str(event.state / "attempts"))


@pytest.mark.parametrize(
    "method", ["setup", "launch_submission", "_is_submission_finished", "collect_results", "teardown"]
)
def test_stop_does_not_wait_for_what_never_comes_back(tmp_path: Path, method: str) -> None:
    """The daemon ends within shutdown_grace and two seconds, threads that Python would wait for notwithstanding."""
    module = f"never_{method}"
    source = _NEVER_BACK.format(method=method, entered=str(tmp_path / "entered"))
    (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    event = Deployment(
        tmp_path / "deployment",
        worker={"worker_type": f"{module}:{method}"},
        dispatcher={"shutdown_grace": 0.5, "time_between_collection": 0.05},
    )
    event.submit("one")
    with RampdProcess(event.config, environment=environment(tmp_path)) as daemon:
        wait_until((tmp_path / "entered").exists, timeout_s=60, what="the call")
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 0.5 + 2.0
        assert daemon.find("worker.abandoned", method=method)
        assert daemon.find("daemon.stopped")
    ends: dict[str, Any] = {"teardown": "training_error"}
    assert event.states()["one"] == ends.get(method, "new")


def test_a_slurm_job_outlives_the_daemon(installed: Path, tmp_path: Path) -> None:
    """Killed while the job runs, the daemon takes it over at the next start; it ran once, and is scored."""
    sys.path.insert(0, str(EXAMPLES / "slurm" / "tests"))
    try:
        cluster = import_module("stand_ins").Cluster(tmp_path / "cluster")
    finally:
        sys.path.pop(0)
    cluster.install()
    event = Deployment(
        tmp_path,
        worker={"worker_type": "slurm", "slurm_bin": str(cluster.bin)},
        dispatcher={"time_between_collection": 0.05},
    )
    event.make_stub_environment()
    go_on = tmp_path / "go-on"
    event.submit("one", behaviour=f"while [ ! -f {go_on} ]; do sleep 0.02; done\n")
    with RampdProcess(event.config, environment=environment(installed)) as daemon:
        started = daemon.wait_for("submission.started")
        assert started["host"] == "slurm job 1"
        daemon.kill()
    with RampdProcess(event.config, environment=environment(installed)) as daemon:
        daemon.wait_for("submission.resumed")
        go_on.touch()
        finished = daemon.finished("one")["one"]
        assert (finished["outcome"], finished["attempts"]) == ("ok", 1)
        assert daemon.stop() == 0
    assert list(cluster.jobs()) == ["1"]
    cluster.close()


def test_mistakes_in_a_plug_ins_section_are_told_like_ours(installed: Path, tmp_path: Path) -> None:
    """An unknown key with the nearest one, a wrong type, a missing key: a line each, at its place in the file."""
    event = Deployment(tmp_path)
    event.config.write_text(
        "ramp: {problem_name: iris, event_name: iris}\n"
        "worker:\n  worker_type: slurm\n  partion: short\n  lost_after: soon\n  sbatch_options: --mem=4G\n",
        encoding="utf-8",
    )
    words = [sys.executable, "-m", "rampd", "--config", str(event.config), "--check"]
    said = subprocess.run(words, env=environment(installed), capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 78
    assert [line.removeprefix(f"{event.config}:") for line in said.stderr.splitlines()] == [
        "2: worker.conda_env: is missing; allowed: a value, without which the event cannot be served",
        "4: worker.partion: is no key of rampd's; did you mean partition?",
        "5: worker.lost_after: found 'soon'; allowed: a number",
        "6: worker.sbatch_options: found '--mem=4G'; allowed: a list",
    ]


def test_a_plug_in_that_cannot_be_imported_is_its_events_alone(installed: Path, tmp_path: Path) -> None:
    """The other event goes on; the record has the cause, and where it is."""
    (tmp_path / "broken.py").write_text("import sys\nsys.exit('no licence')\n", encoding="utf-8")
    good = Deployment(tmp_path / "good", worker={"worker_type": "conda-like"})
    good.make_stub_environment()
    good.submit("one")
    bad = Deployment(tmp_path / "bad", worker={"worker_type": "broken:Worker"})
    words = ("--config", str(bad.config))
    with RampdProcess(good.config, *words, environment=environment(installed, tmp_path)) as daemon:
        assert daemon.finished("one")["one"]["outcome"] == "ok"
        (rejected,) = daemon.find("config.rejected")
        assert rejected["path"] == str(bad.config)
        (problem,) = rejected["problems"]
        assert "which cannot be imported: SystemExit: no licence" in problem
        assert f"({tmp_path / 'broken.py'}:2)" in problem
        assert daemon.stop() == 0
