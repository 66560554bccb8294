"""An encrypted cluster on three hosts, its certificates made here, served by the real command: iris, to a score."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from rampd.demo import deployment as demo
from support.certificates import make_certificates
from support.daemon import RampdProcess, wait_until
from support.dask import DaskCluster, dask_section
from support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

_HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
_PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, dask_environment: Path) -> Iterator[DaskCluster]:
    """Give workers on three hosts, one of which has only distributed; all want certificates."""
    root = tmp_path_factory.mktemp("tls")
    certificates = make_certificates(root / "certificates", *_HOSTS)
    settings = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    with DaskCluster(root, tls=certificates, settings=settings) as cluster:
        cluster.scheduler()
        workers = [
            cluster.worker(_HOSTS[0]),
            cluster.worker(_HOSTS[1]),
            cluster.worker(_HOSTS[2], python=str(dask_environment / "bin" / "python")),
        ]
        wait_until(
            lambda: all(b"Registered to" in worker.log.read_bytes() for worker in workers),
            timeout_s=_PATIENCE_S,
            what="the workers",
        )
        yield cluster


def _rampctl(event: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rampd.cli.rampctl", *words, "--config", str(event.config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_iris_to_a_score_on_three_hosts(
    cluster: DaskCluster, iris_kit: Path, ramp_environment: Path, tmp_path: Path
) -> None:
    """The real kit: two that learn, one that raises; scores, traceback, log and memory are here, the hosts named."""
    event = Deployment(tmp_path)
    event.worker = dask_section(cluster, conda_env=str(ramp_environment), timeout=120)
    event.dispatcher = {"n_workers": 3, "time_between_collection": 0.2}
    event.ramp = {"kit_dir": str(demo.kit_dir(iris_kit)), "data_dir": str(demo.data_dir(iris_kit))}
    event.write_config()
    for name in ("logistic_regression", "random_forest"):
        demo.write_submission(name, event.submissions)
    event.submit("raises", estimator__py="raise ValueError('on purpose')\n")
    with RampdProcess(event.config) as daemon:
        started = daemon.wait_for("submission.started", count=3, timeout_s=_PATIENCE_S)
        assert started["dask_worker"].startswith("tls://")
        shown = json.loads(_rampctl(event, "status", "--json").stdout)
        running = [one for one in shown["submissions"] if one["where"]]
        assert all(one["where"]["host"] in _HOSTS for one in running)
        finished = daemon.finished("logistic_regression", "random_forest", "raises", timeout_s=_PATIENCE_S)
        hosts = {record["host"] for record in daemon.find("submission.started")}
        assert hosts == set(_HOSTS)
        for name in ("logistic_regression", "random_forest"):
            assert (finished[name]["outcome"], finished[name]["state"]) == ("ok", "scored"), finished[name]
            assert finished[name]["max_rss_bytes"] > 50_000_000
            assert (event.predictions / name / "fold_0" / "y_pred_train.npz").exists()
        scored = daemon.find("submission.scored", submission="random_forest")[0]["scores"]
        assert scored["acc"]["test"]["bagged"] > 0.8
        assert finished["raises"]["state"] == "training_error"
        details = json.loads(_rampctl(event, "status", "raises", "--json").stdout)
        message = _find(details, "error_msg")
        assert "ValueError: on purpose" in message
        assert "/attempts/" not in message
        wait_until(lambda: not any(cluster.left_on(host) for host in _HOSTS), what="nothing left on the hosts")
        assert daemon.stop() == 0


def _find(data: Any, key: str) -> str:
    if isinstance(data, dict):
        return str(data[key]) if key in data else next(filter(None, (_find(one, key) for one in data.values())), "")
    return next(filter(None, (_find(one, key) for one in data)), "") if isinstance(data, list) else ""


def test_check_says_what_there_is(cluster: DaskCluster, tmp_path: Path) -> None:
    """Scheduler, workers, hosts and seats stand in rampctl check's answer."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    event.worker = dask_section(cluster, conda_env=str(event.environment))
    event.write_config()
    answer = _rampctl(event, "check")
    assert answer.returncode == 0, answer.stdout
    for words in (cluster.address, "dask_workers 3", "hosts 3", "seats 3"):
        assert words in answer.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tls_client_key": None}, "tls_client_key is missing"),
        ({"tls_ca_file": None, "tls_client_cert": None}, "tls_ca_file and tls_client_cert are missing"),
        ({"dask_scheduler": "tcp://127.0.0.1:8786"}, "tls://127.0.0.1:8786, since TLS files are given"),
        ({"tls_ca_file": None, "tls_client_cert": None, "tls_client_key": None}, "tls:// only together with"),
        ({"dask_scheduler": "127.0.0.1:8786"}, "tcp://host:port, or tls://host:port"),
        ({"remote_kit_dir": "kits/iris"}, "an absolute path on the Dask workers' hosts"),
        ({"n_workers": 0}, "a whole number, not 0"),
    ],
)
def test_half_a_set_is_a_config_error(
    cluster: DaskCluster, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    """What does not go together is said before anything runs, with its key."""
    event = Deployment(tmp_path)
    event.worker = dask_section(cluster) | change
    event.write_config()
    answer = _rampctl(event, "check")
    assert answer.returncode == 78
    assert (
        f"worker.{next(iter(change)) if len(change) == 1 and 'tls' not in next(iter(change)) else ''}" in answer.stderr
    )
    assert sentence in answer.stderr


def test_a_certificate_of_another_authority_is_refused(cluster: DaskCluster, tmp_path: Path) -> None:
    """Who has no certificate of the cluster's authority gets nowhere, and is told so."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    other = make_certificates(tmp_path / "other", *_HOSTS)
    stranger = DaskCluster(tmp_path / "unused", tls=other, port=cluster.port)
    event.worker = dask_section(stranger, conda_env=str(event.environment))
    event.write_config()
    answer = _rampctl(event, "check")
    assert answer.returncode == 1
    assert f"{cluster.address} cannot be reached" in " ".join(answer.stdout.split())


def test_a_file_that_is_not_there(cluster: DaskCluster, tmp_path: Path) -> None:
    """A missing certificate is named."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    event.worker = dask_section(cluster, conda_env=str(event.environment)) | {"tls_client_cert": "/nowhere/cert.pem"}
    event.write_config()
    assert "there is no file /nowhere/cert.pem" in " ".join(_rampctl(event, "check").stdout.split())
