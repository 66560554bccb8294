from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rampd.config import UnknownWorkerTypeError, WorkerConfig
from rampd.testing import FakeWorker
from rampd.workers.conda import CondaConfig, CondaWorker
from rampd.workers.plug_in_config import PlugInConfig
from rampd.workers.registry import GROUP, installed, worker_class, worker_model
from rampd.workers.threaded import ThreadedWorker

if TYPE_CHECKING:
    from pathlib import Path

_MODULE = """
from rampd.config import WorkerConfig
from rampd.testing import FakeWorker
from rampd import BaseWorker, Worker

class Config(WorkerConfig):
    own: int = 3

class Own(FakeWorker):
    config_model = Config

class Outer:
    Inner = Own

class Synchronous(BaseWorker):
    def launch_submission(self): ...
    def collect_results(self): ...
    def _is_submission_finished(self): ...

class Restricted(Synchronous):
    config_model = Config

class HalfSynchronous(BaseWorker):
    def launch_submission(self): ...

class WrongModel(Synchronous):
    config_model = dict

class Unfinished(Worker):
    async def setup(self, job): ...

def function(): ...
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a distribution with workers of its own: `own` is one, the other names are mistakes."""
    name = "rampd_plug_in_of_a_test"
    (tmp_path / f"{name}.py").write_text(_MODULE, encoding="utf-8")
    (tmp_path / "raises.py").write_text("raise RuntimeError('no GPU here')\n", encoding="utf-8")
    (tmp_path / "exits.py").write_text("import sys\n\nsys.exit('no licence')\n", encoding="utf-8")
    (tmp_path / "lacks.py").write_text("import boto17\n", encoding="utf-8")
    foreign = "class BaseWorker: ...\n\nclass Own(BaseWorker): ...\n"
    (tmp_path / "foreign.py").write_text(foreign, encoding="utf-8")
    information = tmp_path / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    points = [f"own = {name}:Own", f"conda = {name}:Own", f"no-class = {name}:Missing", "no-module = not_there:Own"]
    (information / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *points, ""]), encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # the last of two entry points would win
    importlib.invalidate_caches()
    for module in (name, "raises", "exits", "lacks", "foreign"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return name


def test_conda_is_known() -> None:
    """The worker of this machine needs nothing installed."""
    assert worker_class("conda") is CondaWorker
    assert worker_model("conda") is CondaConfig


def test_conda_is_an_entry_point_too() -> None:
    """What is known in advance is what the distribution says, so that the two cannot part."""
    assert installed()["conda"].load() is CondaWorker


def test_an_installed_plug_in(plug_in: str) -> None:
    """A distribution's entry point gives a worker by its short name, with its own keys."""
    found = worker_class("own")
    assert issubclass(found, FakeWorker)
    assert found.__module__ == plug_in
    assert worker_model("own").model_fields["own"].default == 3


def test_a_plug_in_cannot_take_condas_name(plug_in: str) -> None:
    """Our own name means our own worker, whatever else is installed."""
    assert worker_class("conda") is CondaWorker


@pytest.mark.parametrize("name", ["Own", "Outer.Inner"])
def test_a_class_by_its_path(plug_in: str, name: str) -> None:
    """A class that is not installed under a name is had by package.module:Class."""
    assert worker_class(f"{plug_in}:{name}").__name__ == "Own"


def test_the_model_is_the_bare_one_by_default() -> None:
    """A worker without keys of its own has those that every worker has."""
    assert worker_model("rampd.testing:FakeWorker") is WorkerConfig


def test_an_unknown_name(plug_in: str) -> None:
    """The error says what was found, what is installed, and what else would do."""
    with pytest.raises(UnknownWorkerTypeError) as caught:
        worker_class("cnoda")
    sentence = str(caught.value)
    assert "'cnoda'" in sentence
    assert "conda, dask, no-class, no-module, own, or package.module:Class" in sentence


@pytest.mark.parametrize(
    ("worker_type", "sentence"),
    [
        ("not_there:Own", r"found 'not_there:Own', which cannot be imported: ModuleNotFoundError: .*'not_there'"),
        ("no-module", r"found 'no-module', which cannot be imported: ModuleNotFoundError: .*'not_there'"),
        ("no-class", r"found 'no-class', which cannot be imported: AttributeError: .*'Missing'"),
        ("raises:Own", r"found 'raises:Own', which cannot be imported: RuntimeError: no GPU here \(.*raises.py:1\)"),
        ("exits:Own", r"found 'exits:Own', which cannot be imported: SystemExit: no licence \(.*exits.py:3\)"),
        ("lacks:Own", r"found 'lacks:Own', which cannot be imported: ModuleNotFoundError: .*boto17' \(.*lacks.py:1\)"),
        ("not_there:Own", r"No module named 'not_there' \(install it into .*, or add its folder to PYTHONPATH\)"),
        ("foreign:Own", r"no subclass of .* rampd.BaseWorker; have its module say `from rampd import BaseWorker`"),
        ("PLUG_IN:HalfSynchronous", r"which does not define _is_submission_finished, collect_results"),
        ("PLUG_IN:WrongModel", r"whose config_model is no subclass of rampd.WorkerConfig"),
        ("PLUG_IN:function", r"found '.*:function', which names no subclass of rampd.Worker or rampd.BaseWorker"),
        ("PLUG_IN:Config", r"found '.*:Config', which names no subclass of rampd.Worker or rampd.BaseWorker"),
    ],
)
def test_what_cannot_be_had(plug_in: str, worker_type: str, sentence: str) -> None:
    """The error says what was found, and what is wrong with it."""
    with pytest.raises(UnknownWorkerTypeError, match=sentence):
        worker_class(worker_type.replace("PLUG_IN", plug_in))


@pytest.mark.parametrize("worker_type", [":Own", "module:", "a b:C", "module:Class:more", ":"])
def test_what_is_no_path(worker_type: str) -> None:
    """A text with a colon that is no package.module:Class is told what one looks like."""
    with pytest.raises(UnknownWorkerTypeError, match=r"allowed: .*package\.module:Class"):
        worker_class(worker_type)


def test_a_class_that_is_not_finished(plug_in: str) -> None:
    """A worker that lacks steps is told which, before anything runs."""
    with pytest.raises(UnknownWorkerTypeError, match=r":Unfinished', which does not define collect_results, exit_of, "):
        worker_class(f"{plug_in}:Unfinished")


def test_a_synchronous_worker(plug_in: str) -> None:
    """A `BaseWorker` is made a `Worker`, always the same one; its section may have any key."""
    found = worker_class(f"{plug_in}:Synchronous")
    assert issubclass(found, ThreadedWorker)
    assert found.plug_in.__name__ == "Synchronous"
    assert worker_class(f"{plug_in}:Synchronous") is found
    assert worker_model(f"{plug_in}:Synchronous") is PlugInConfig


def test_a_synchronous_worker_with_a_model(plug_in: str) -> None:
    """Its own model says which keys there are."""
    assert worker_model(f"{plug_in}:Restricted").model_fields["own"].default == 3


def test_asking_for_conda_imports_no_other_worker() -> None:
    """A conda-only daemon carries neither boto nor asyncssh nor distributed."""
    program = "import sys; from rampd.workers.registry import worker_class; worker_class('conda'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "rampd.workers.conda" in loaded
    assert "rampd.workers.threaded" not in loaded
    assert not {"aioboto3", "aiobotocore", "botocore", "asyncssh", "distributed", "dask"} & set(loaded)
