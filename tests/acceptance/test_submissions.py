"""What each kind of submission comes to, with the real `rampd` and the real `ramp-test` on the demo's kit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rampd.demo import deployment as demo
from support.daemon import RampdProcess
from support.deployment import Deployment
from support.rampctl import rampctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.daemon import Record

_SKLEARN = "from sklearn.base import BaseEstimator, ClassifierMixin\nimport numpy as np\n"
_CLASSIFIER = """
class C(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        {fit}
        return self
    def predict_proba(self, X):
        return np.full((len(X){minus}, 3), 1 / 3)
    def predict(self, X):
        return np.zeros(len(X))

def get_estimator():
    return C()
"""


def _classifier(fit: str = "pass", minus: str = "", head: str = "") -> str:
    return f"{head}{_SKLEARN}{_CLASSIFIER.format(fit=fit, minus=minus)}"


SUBMISSIONS = {
    "good": _classifier(),
    "raises": _classifier('raise ValueError("no \\x1b[31mfit\\x00 today")'),
    "syntax": "def get_estimator(:\n    pass\n",
    "wrong_shape": _classifier(minus=" - 1"),
    "exits_zero": _classifier("raise SystemExit(0)"),
    "exits_hard": _classifier("os._exit(0)", head="import os\n"),
    "exits_two": _classifier("sys.exit(2)", head="import sys\n"),
    "kills_itself": _classifier("os.kill(os.getpid(), 9)", head="import os\n"),
    "segfaults": _classifier("os.kill(os.getpid(), 11)", head="import os\n"),
}


@pytest.fixture(scope="module")
def served(
    ramp_environment: Path, iris_kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, dict[str, Record], RampdProcess]]:
    """Give an event in which every one of these submissions has ended."""
    event = Deployment(
        tmp_path_factory.mktemp("served"),
        worker={"conda_env": str(ramp_environment)},
        ramp={"kit_dir": str(demo.kit_dir(iris_kit)), "data_dir": str(demo.data_dir(iris_kit))},
        dispatcher={"n_threads": 1},
    )
    for name, text in SUBMISSIONS.items():
        event.submit(name, estimator__py=text)
    empty = event.submit("no_estimator", README__md="nothing")
    (empty / "estimator.py").unlink()
    with RampdProcess(event.config) as daemon:
        finished = daemon.finished(*SUBMISSIONS, "no_estimator", timeout_s=100)
        assert daemon.stop() == 0
        yield event, finished, daemon


Served = tuple[Deployment, "dict[str, Record]", RampdProcess]


def _message(event: Deployment, name: str) -> str:
    return str(rampctl("status", name, "--json", config=event.config).data["error_msg"])


@pytest.mark.slow
def test_a_good_submission_is_scored(served: Served) -> None:
    """Its predictions are there as ramp-test saved them, and its scores as ramp-test prints them."""
    event, finished, daemon = served
    assert finished["good"]["outcome"] == "ok"
    assert finished["good"]["state"] == "scored"
    assert finished["good"]["exit_status"] == 0
    assert finished["good"]["max_rss_bytes"] > 50e6
    saved = {path.name for path in (event.predictions / "good").iterdir()}
    assert {"bagged_scores.csv", "fold_0", "fold_1", "fold_2"} <= saved
    (scored,) = daemon.find("submission.scored", submission="good")
    log = (event.logs / "good" / "log").read_text(encoding="utf-8")
    assert f"{scored['scores']['acc']['valid']['mean']:.2f}" in log
    assert _message(event, "good") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*SUBMISSIONS, "no_estimator") if name != "good"])
def test_a_participants_failure_is_theirs(served: Served, name: str) -> None:
    """It is a training_error at the first attempt, with a message, and leaves no predictions."""
    event, finished, _ = served
    assert finished[name]["outcome"] == "participant_error"
    assert finished[name]["state"] == "training_error"
    assert finished[name]["attempts"] == 1
    assert not (event.predictions / name).exists()
    message = _message(event, name)
    assert message
    assert message == "".join(char for char in message if char.isprintable() or char in "\n\t")
    assert str(event.root) not in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "ValueError: no fit"),
        ("raises", "raise ValueError"),
        ("syntax", "SyntaxError"),
        ("no_estimator", "estimator"),
        ("wrong_shape", "Traceback"),
        ("exits_zero", "ended the process itself"),
        ("exits_hard", "ended the process itself"),
        ("exits_two", "ended the process itself"),
        ("kills_itself", "memory"),
        ("segfaults", "SIGSEGV"),
    ],
)
def test_a_participant_reads_what_happened(served: Served, name: str, said: str) -> None:
    """The message is the participant's own traceback, or a sentence that says what happened."""
    event, _, _ = served
    assert said in _message(event, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status"), [("raises", 1), ("exits_zero", 0), ("exits_hard", 0), ("exits_two", 2), ("kills_itself", 137)]
)
def test_the_exit_status_is_ramp_tests_own(served: Served, name: str, status: int) -> None:
    """128+n stands for a signal."""
    _, finished, _ = served
    assert finished[name]["exit_status"] == status


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBMISSIONS)
def test_no_participant_reads_test_scores(served: Served, name: str) -> None:
    """ramp-test's log shows scores of the test set; no message shows any of its tables."""
    event, _, _ = served
    log = (event.logs / "good" / "log").read_text(encoding="utf-8")
    assert "Mean CV scores" in log
    message = _message(event, name)
    for table in ("Mean CV scores", "Bagged scores", "score  "):
        assert table not in message
