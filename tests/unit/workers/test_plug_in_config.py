from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from rampd import WorkerConfig, WorkerContext
from rampd.testing import make_job
from rampd.workers.plug_in_config import PlugInConfig, config_for

if TYPE_CHECKING:
    from pathlib import Path


class Restricted(WorkerConfig):
    """A plug-in's own model."""

    region: str
    size: int = 3


def _made(root: Path, config: WorkerConfig, n_threads: int | None = None) -> dict[str, Any]:
    context = WorkerContext("event", root, root / "kit", root / "data", root / "state", 1.0)
    return config_for(config, context, dataclasses.replace(make_job(root, "one"), n_threads=n_threads))


def test_every_key_is_as_it_was_given(tmp_path: Path) -> None:
    """Known ones too: a size in words stays in words, and what rampd fills in by itself is not there."""
    given = {"worker_type": "a:B", "max_log_bytes": "64 MiB", "region": "north", "nested": {"list": [1]}}
    made = _made(tmp_path, PlugInConfig.model_validate(given))
    assert {name: made[name] for name in given} == given
    assert "max_output_files" not in made
    assert "n_threads" not in made


def test_a_change_reaches_no_other_attempt(tmp_path: Path) -> None:
    """Each has a dict of its own, nested ones too."""
    config = PlugInConfig.model_validate({"worker_type": "a:B", "nested": {"list": [1]}})
    _made(tmp_path, config)["nested"]["list"].append(2)
    assert _made(tmp_path, config)["nested"] == {"list": [1]}


@pytest.mark.parametrize(("given", "shown"), [({}, "7200"), ({"timeout": 60}, "60"), ({"timeout": 0.5}, "0.5")])
def test_the_timeout_reads_as_in_the_file(tmp_path: Path, given: dict[str, Any], shown: str) -> None:
    """A message that a plug-in makes of it has no `.0`."""
    assert str(_made(tmp_path, PlugInConfig.model_validate({"worker_type": "a:B", **given}))["timeout"]) == shown


def test_the_threads_are_the_dispatchers_where_the_section_has_none(tmp_path: Path) -> None:
    """What was given wins."""
    assert _made(tmp_path, PlugInConfig(worker_type="a:B"), n_threads=2)["n_threads"] == 2
    given = PlugInConfig.model_validate({"worker_type": "a:B", "n_threads": 8})
    assert _made(tmp_path, given, n_threads=2)["n_threads"] == 8


def test_folders_that_are_given_are_replaced(tmp_path: Path) -> None:
    """The three lead into the attempt's folder, whatever the section says of the event's."""
    config = PlugInConfig.model_validate({"worker_type": "a:B", "predictions_dir": "/event/predictions"})
    made = _made(tmp_path, config)
    attempt = tmp_path / "state" / "attempts" / "one0001"
    for name in ("submissions", "predictions", "logs"):
        assert made[f"{name}_dir"] == str(attempt / name)
    assert made["event_logs_dir"] == str(tmp_path / "logs")
    assert made["event_submissions_dir"] == str(tmp_path / "submissions")


def test_a_model_of_its_own(tmp_path: Path) -> None:
    """Its values come as the model made them, with its defaults; an unknown key is an error."""
    made = _made(tmp_path, Restricted.model_validate({"worker_type": "a:B", "region": "north", "size": "4"}))
    assert (made["region"], made["size"]) == ("north", 4)
    assert _made(tmp_path, Restricted(worker_type="a:B", region="north"))["size"] == 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        Restricted.model_validate({"worker_type": "a:B", "region": "north", "colour": "red"})
