"""Which configs there are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rampd.config_files import ConfigFiles

if TYPE_CHECKING:
    from pathlib import Path


def _config(root: Path, name: str, text: str = "ramp: {}\n") -> Path:
    path = root / "events" / name / "config.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_folder_with_a_config_is_found(tmp_path: Path) -> None:
    """In the order of their names; files, hidden folders and folders without a config are none."""
    two, one = _config(tmp_path, "two"), _config(tmp_path, "one")
    _config(tmp_path, ".hidden")
    (tmp_path / "events" / "empty").mkdir()
    (tmp_path / "events" / "README").write_text("", encoding="utf-8")
    assert list(ConfigFiles([], tmp_path / "events").look()) == [one, two]


def test_a_change_of_content_shows_and_a_touch_does_not(tmp_path: Path) -> None:
    """The digest is the content's."""
    path = _config(tmp_path, "one")
    files = ConfigFiles([], tmp_path / "events")
    before = files.look()[path].digest
    os.utime(path, (1, 1))
    assert files.look()[path].digest == before
    _config(tmp_path, "one", "ramp: []\n")
    assert files.look()[path].digest != before


def test_what_was_written_a_moment_ago_is_fresh(tmp_path: Path) -> None:
    """It may not be complete."""
    path = _config(tmp_path, "one")
    files = ConfigFiles([path])
    assert files.look()[path].is_fresh
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert not files.look()[path].is_fresh


def test_a_named_config_stays_wherever_it_is(tmp_path: Path) -> None:
    """One that is missing is looked for by its reader, which says so; one that lies in events_dir is there once."""
    path = _config(tmp_path, "one")
    missing = tmp_path / "missing.yml"
    found = ConfigFiles([path, missing], tmp_path / "events").look()
    assert list(found) == [path, missing]
    assert found[missing].digest == ""


def test_one_named_config_is_the_only_one(tmp_path: Path) -> None:
    """With a folder, or a second one, there are others to go on with."""
    path = tmp_path / "config.yml"
    assert ConfigFiles([path]).is_one
    assert not ConfigFiles([path, path]).is_one
    assert not ConfigFiles([path], tmp_path).is_one
    assert not ConfigFiles([], tmp_path).is_one


def test_a_missing_events_dir_has_no_configs(tmp_path: Path) -> None:
    """It may come back."""
    assert ConfigFiles([], tmp_path / "nowhere").look() == {}


def test_a_link_that_leads_to_itself_is_one_unreadable_config(tmp_path: Path) -> None:
    """The others are found all the same."""
    path = _config(tmp_path, "one")
    (tmp_path / "events" / "loop").symlink_to("loop")
    found = ConfigFiles([], tmp_path / "events").look()
    assert found[path].digest
    assert found[tmp_path / "events" / "loop" / "config.yml"].digest == ""


def test_a_config_in_events_dir_belongs_to_the_deployment_that_holds_it(tmp_path: Path) -> None:
    """Whatever that folder is called; one that was named implies its own."""
    path = _config(tmp_path, "one")
    files = ConfigFiles([tmp_path / "named.yml"], tmp_path / "events")
    assert files.deployment_of(path) == tmp_path
    assert files.deployment_of(tmp_path / "named.yml") is None
    assert ConfigFiles([path]).deployment_of(path) is None
