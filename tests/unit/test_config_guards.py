"""What a config is kept from doing: folders that would undo one another, and plug-ins that break while they look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import field_validator

from rampd.config import Settings, WorkerConfig, load_config
from rampd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ForgetfulConfig(WorkerConfig):
    """A plug-in's section whose author did not think of every value."""

    size: int = 1
    """Looked up."""

    @field_validator("size")
    @classmethod
    def _known(cls, value: int) -> int:
        return {1: 1}[value]


def load(root: Path, **sections: Mapping[str, Any]) -> Settings:
    """Load a config with these keys beside the necessary ones."""
    path = root / "events" / "iris" / "config.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "ramp": {"problem_name": "flowers", "event_name": "iris", **sections.get("ramp", {})},
        "dispatcher": {**sections.get("dispatcher", {})},
        "worker": {"worker_type": "fake", **sections.get("worker", {})},
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return load_config(path, worker_models=lambda _: ForgetfulConfig)


def problem(root: Path, **sections: Mapping[str, Any]) -> str:
    """Return the one thing that is told of such a config, without file and line."""
    with pytest.raises(ConfigError) as caught:
        load(root, **sections)
    (told,) = caught.value.problems
    return told.partition(": ")[2]


@pytest.mark.parametrize(
    ("ramp", "state_dir", "told"),
    [
        ({"predictions_dir": "events/iris/submissions"}, None, "ramp.predictions_dir is ramp.submissions_dir"),
        ({"logs_dir": "events/iris/submissions"}, None, "ramp.logs_dir is ramp.submissions_dir"),
        ({"submissions_dir": "events/iris/predictions"}, None, "ramp.predictions_dir is ramp.submissions_dir"),
        (
            {"logs_dir": "one", "predictions_dir": "one/two/../three"},
            None,
            "ramp.predictions_dir lies in ramp.logs_dir",
        ),
        ({"predictions_dir": "one"}, "one/state", "dispatcher.state_dir lies in ramp.predictions_dir"),
        ({"logs_dir": "one"}, "one", "dispatcher.state_dir is ramp.logs_dir"),
    ],
)
def test_folders_that_hold_one_another_are_refused(
    tmp_path: Path, ramp: dict[str, str], state_dir: str | None, told: str
) -> None:
    """A failure would remove what was submitted, or a submission of the right name all others."""
    found = problem(tmp_path, ramp=ramp, dispatcher={"state_dir": state_dir})
    key, _, rest = found.partition(": found '")
    path, _, relation = rest.partition("', which ")
    assert Path(path).is_relative_to(tmp_path)
    assert f"{key} {relation}" == f"{told}; allowed: a folder apart from the others"


def test_one_folder_that_holds_all_others_is_told_of_each(tmp_path: Path) -> None:
    """The neighbours' default places are in it as well."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, ramp={"predictions_dir": "events/iris"})
    lines = [told.partition(": ")[2].partition(":")[0] for told in caught.value.problems]
    assert sorted(lines) == ["dispatcher.state_dir", "ramp.logs_dir", "ramp.submissions_dir"]


def test_the_state_may_lie_above_the_other_folders(tmp_path: Path) -> None:
    """Nothing in it has a submission's name."""
    found = load(tmp_path, dispatcher={"state_dir": "events/iris"})
    assert found.dispatcher.state_dir == tmp_path / "events" / "iris"


def test_a_plug_ins_validator_that_breaks_is_a_problem_of_its_section(tmp_path: Path) -> None:
    """No traceback, no end of a daemon that serves others as well; and not what it says, which may be a secret."""
    assert problem(tmp_path, worker={"size": 4711}) == (
        f"worker: cannot be looked at: {__name__}.ForgetfulConfig raised KeyError; "
        "allowed: values that its validators accept, or refuse by a ValueError"
    )
