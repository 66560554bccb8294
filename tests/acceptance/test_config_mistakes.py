"""A wrong config, as a person meets it: status 78, a line a problem that says where and what is allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_TEN_MISTAKES = """\
ramp:
  problem_name: iris
  event_nme: iris_test
  event_is_public: perhaps
dispatcher:
  hunger_policy: starve
  n_workers: 0
  n_threads: two
  shutdown_grace: -1
worker:
  worker_type: conda
  conda_env: [base]
  time_out: 3600
  env: {PATH: true}
"""

_GOOD = """\
ramp:
  problem_name: iris
  event_name: iris
  event_title: Iris
dispatcher: {}
worker:
  worker_type: conda
"""


def _rampd(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "rampd", "--config", str(config), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_ten_mistakes_are_ten_lines(tmp_path: Path) -> None:
    """Each says file and line, the key's path, what was found and what is allowed, and all come at once."""
    config = tmp_path / "config.yml"
    config.write_text(_TEN_MISTAKES, encoding="utf-8")
    said = _rampd(config)
    assert said.returncode == 78
    assert said.stdout == ""
    lines = said.stderr.splitlines()
    expected = [
        (1, "ramp.event_name", "missing"),
        (3, "ramp.event_nme", "event_name"),
        (4, "ramp.event_is_public", "perhaps"),
        (6, "dispatcher.hunger_policy", "sleep"),
        (7, "dispatcher.n_workers", "not 0"),
        (8, "dispatcher.n_threads", "two"),
        (9, "dispatcher.shutdown_grace", "-1"),
        (12, "worker.conda_env", "a text"),
        (13, "worker.time_out", "timeout"),
        (14, "worker.env", "PATH"),
    ]
    assert len(lines) == len(expected), said.stderr
    for number, key, word in expected:
        assert any(line.startswith(f"{config}:{number}: {key}") and word in line for line in lines), (key, said.stderr)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param("worker: {worker_type: conda}\n", "ramp", id="missing section"),
        pytest.param("ramp: 7\nworker: {worker_type: conda}\n", "ramp", id="wrong type"),
        pytest.param("ramp:\n\tproblem_name: iris\n", "tab", id="tab"),
        pytest.param(
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "too large",
            id="alias bomb",
        ),
        pytest.param("ramp: {}\n---\nramp: {}\n", "second document", id="two documents"),
        pytest.param("", "empty", id="empty"),
        pytest.param("ramp: [\n", "YAML", id="no YAML"),
        pytest.param("worker: !!python/object/apply:os.system [true]\n", "YAML", id="a tag that would run code"),
    ],
)
def test_a_file_that_is_no_config_is_status_78(tmp_path: Path, content: str, word: str) -> None:
    """The lines name the file and what is wrong; there is no traceback."""
    config = tmp_path / "config.yml"
    config.write_text(content, encoding="utf-8")
    said = _rampd(config)
    assert (said.returncode, said.stdout) == (78, "")
    assert word in said.stderr
    assert all(line.startswith(str(config)) for line in said.stderr.splitlines())


def test_a_missing_file_and_a_directory_are_status_78(tmp_path: Path) -> None:
    """A path that was mistyped is a wrong config too."""
    (tmp_path / "events" / "iris").mkdir(parents=True)
    (tmp_path / "events" / "iris" / "config.yml").touch()
    missing = _rampd(tmp_path / "events" / "irsi" / "config.yml")
    assert missing.returncode == 78
    assert "events/iris/config.yml" in missing.stderr
    assert _rampd(tmp_path).returncode == 78


def test_a_wrong_command_line_is_status_2() -> None:
    """As every command line has it."""
    said = subprocess.run([sys.executable, "-m", "rampd", "--no-such-option"], capture_output=True, check=False)
    assert said.returncode == 2


def test_check_prints_what_a_config_comes_to(tmp_path: Path) -> None:
    """Every path is absolute, n_workers is a number of slots, and values of worker.env are masked."""
    config = tmp_path / "events" / "iris" / "config.yml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "ramp: {problem_name: iris, event_name: iris}\n"
        "worker: {worker_type: conda, env: {API_TOKEN: do-not-show-me}}\n",
        encoding="utf-8",
    )
    said = _rampd(config, "--check")
    assert said.returncode == 0
    assert f'"{tmp_path}/events/iris/submissions"' in said.stdout
    assert "do-not-show-me" not in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("encoding", "title"), [("latin-1", "1 € 😀"), ("utf-8:strict", "naïve"), ("utf-8:surrogateescape", "naïve")]
)
def test_settings_are_json_in_any_locale(tmp_path: Path, encoding: str, title: str) -> None:
    """Also with a title, or below a folder, whose name it has no characters for."""
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(_GOOD.replace("Iris", title), encoding="utf-8")
    argv = [sys.executable, "-m", "rampd", "--config", str(config), "--check"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    said = subprocess.run(argv, capture_output=True, timeout=60, check=False, env=environment)
    assert (said.returncode, said.stderr) == (0, b"")
    assert json.loads(said.stdout.decode(errors="replace"))["ramp"]["event_title"] == title


def test_a_check_of_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """What a first start would adopt is not known then; the settings are, and the doctor says what is wrong."""
    config = tmp_path / "config.yml"
    name = "a" * 300  # to root, who may read anything, too
    config.write_text(_GOOD.replace("dispatcher:", f"  predictions_dir: {name}\ndispatcher:"), encoding="utf-8")
    said = _rampd(config, "--check")
    assert said.returncode == 0
    assert said.stderr == f"{config}: warning: {tmp_path / name}: File name too long\n"
    assert json.loads(said.stdout)["ramp"]["predictions_dir"] == str(tmp_path / name)


def test_settings_on_a_full_disk(tmp_path: Path) -> None:
    """A sentence and status 1."""
    config = tmp_path / "config.yml"
    config.write_text(_GOOD, encoding="utf-8")
    command = f"{sys.executable} -m rampd --check --config {config} >/dev/full"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, b"rampd: No space left on device\n")
