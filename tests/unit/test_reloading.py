"""What a new config changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from rampd.config import DispatcherSection, Settings
from rampd.event import load_settings
from rampd.reloading import LIVE_KEYS, changed_keys, needing_reopening
from rampd.workers.conda import CondaWorker
from rampd.workers.registry import worker_class

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give an event's folder."""
    folder = tmp_path / "events" / "iris"
    folder.mkdir(parents=True)
    return folder


def _settings(folder: Path, **changes: Any) -> Settings:
    """Read a config with some values changed: `dispatcher__n_workers=3`."""
    sections: dict[str, dict[str, Any]] = {
        "ramp": {"problem_name": "iris", "event_name": "iris"},
        "dispatcher": {"n_workers": 2},
        "worker": {"worker_type": "conda", "conda_env": "one"},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        sections[section][key] = value
    (folder / "config.yml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_settings(folder / "config.yml")


def test_nothing_changed_is_nothing(folder: Path) -> None:
    """A default that is written out is none, neither is a path that comes to the same."""
    old = _settings(folder)
    new = _settings(folder, dispatcher__settle_time=1, ramp__kit_dir="ramp-kits/../ramp-kits/iris", worker__env={})
    assert changed_keys(old, new) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"dispatcher__n_workers": 3}, "dispatcher.n_workers"),
        ({"dispatcher__hunger_policy": "exit"}, "dispatcher.hunger_policy"),
        ({"dispatcher__time_between_collection": 2}, "dispatcher.time_between_collection"),
        ({"dispatcher__hold_timeout": 60}, "dispatcher.hold_timeout"),
        ({"dispatcher__shutdown_grace": 1}, "dispatcher.shutdown_grace"),
        ({"worker__timeout": 60}, "worker.timeout"),
        ({"worker__env": {"A": "b"}}, "worker.env"),
        ({"worker__max_attempts": 5}, "worker.max_attempts"),
        ({"worker__conda_env": "two"}, "worker.conda_env"),
        ({"ramp__event_title": "New"}, "ramp.event_title"),
    ],
)
def test_what_runs_read_anew_changes_live(folder: Path, change: dict[str, Any], key: str) -> None:
    """It is named, and needs no reopening."""
    keys = changed_keys(_settings(folder), _settings(folder, **change))
    assert keys == [key]
    assert needing_reopening(keys, CondaWorker.live_keys) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"ramp__submissions_dir": "elsewhere"}, "ramp.submissions_dir"),
        ({"worker__predictions_dir": "elsewhere"}, "ramp.predictions_dir"),
        ({"ramp__sandbox_dir": "sandbox"}, "ramp.sandbox_dir"),
        ({"dispatcher__state_dir": "elsewhere"}, "dispatcher.state_dir"),
        ({"worker__run_as": "nobody"}, "worker.run_as"),
    ],
)
def test_folders_and_users_need_the_event_opened_anew(folder: Path, change: dict[str, Any], key: str) -> None:
    """What runs in the old ones must have ended."""
    keys = changed_keys(_settings(folder), _settings(folder, **change))
    assert keys == [key]
    assert needing_reopening(keys, CondaWorker.live_keys) == [key]


def test_every_dispatcher_key_is_live_but_its_folder() -> None:
    """A new key has to be thought of here."""
    live = {key.partition(".")[2] for key in LIVE_KEYS if key.startswith("dispatcher.")}
    assert live == set(DispatcherSection.model_fields) - {"state_dir"}


def test_live_worker_keys_are_keys() -> None:
    """A misspelled one would never match."""
    for worker_type in ("conda",):
        worker = worker_class(worker_type)
        assert worker.live_keys <= set(worker.config_model.model_fields)


def test_a_key_that_only_a_plug_in_knows(folder: Path) -> None:
    """It is told as any other, when it comes, changes and goes, and has the event opened anew."""
    plug_in = "support.plug_ins:LocalWorker"
    without = _settings(folder, worker__worker_type=plug_in)
    north = _settings(folder, worker__worker_type=plug_in, worker__region="north")
    south = _settings(folder, worker__worker_type=plug_in, worker__region="south")
    for old, new in ((without, north), (north, south), (south, without)):
        assert changed_keys(old, new) == ["worker.region"]
    assert changed_keys(north, north) == []
    assert needing_reopening(["worker.region"], worker_class(plug_in).live_keys) == ["worker.region"]
    another = _settings(folder, worker__worker_type="support.plug_ins:ScriptedWorker")
    assert changed_keys(without, another) == ["worker.worker_type"]
