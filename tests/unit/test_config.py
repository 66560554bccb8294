"""An event's config: every key, its default and its resolution, and what a file with mistakes is told."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr  # noqa: TC002 -- pydantic looks it up

from rampd.config import Settings, UnknownWorkerTypeError, WorkerConfig, load_config
from rampd.errors import ConfigError
from rampd.states import HungerPolicy
from rampd.workers.plug_in_config import PlugInConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    Sections = Mapping[str, Mapping[str, object]]

FOLDERS = ("submissions_dir", "predictions_dir", "logs_dir")
PATHS = ("kit_dir", "data_dir", *FOLDERS)


class CloudConfig(WorkerConfig):
    """A worker with a secret."""

    secret_access_key: SecretStr | None = None
    """Hidden wherever it shows."""


def models(worker_type: str) -> type[WorkerConfig]:
    """Know two kinds of workers."""
    found: dict[str, type[WorkerConfig]] = {"conda": WorkerConfig, "cloud": CloudConfig, "any": PlugInConfig}
    if worker_type not in found:
        raise UnknownWorkerTypeError(f"found {worker_type!r}; allowed: {', '.join(found)}")
    return found[worker_type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where a deployment keeps the event's config."""
    path = tmp_path / "events" / "iris" / "config.yml"
    path.parent.mkdir(parents=True)
    return path


def load(file: Path, what: str | Sections | None = None, *, deployment_dir: Path | None = None) -> Settings:
    """Load a config that is this text, or has these keys beside the necessary ones."""
    if not isinstance(what, str):
        keys = what or {}
        data = {
            "ramp": {"problem_name": "flowers", "event_name": "iris", **keys.get("ramp", {})},
            **({"dispatcher": keys["dispatcher"]} if "dispatcher" in keys else {}),
            "worker": {"worker_type": "conda", **keys.get("worker", {})},
        }
        what = yaml.safe_dump(data, sort_keys=False)
    file.write_text(what, encoding="utf-8")
    return load_config(file, worker_models=models, deployment_dir=deployment_dir)


def problems(file: Path, what: str | Sections) -> list[str]:
    """Return what is told of such a config, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(file, what)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(line.startswith(f"{file}:") for line in caught.value.problems)
    return [line.removeprefix(f"{file}:") for line in caught.value.problems]


def test_what_an_event_has_without_a_word(file: Path, tmp_path: Path) -> None:
    """Two names and a worker are enough; every other key of `ramp` has its default."""
    ramp = load(file).ramp
    event = tmp_path / "events" / "iris"
    assert (ramp.problem_name, ramp.event_name, ramp.event_title) == ("flowers", "iris", "iris")
    assert (ramp.event_is_public, ramp.sandbox_dir) == (True, "starting_kit")
    assert (ramp.kit_dir, ramp.data_dir) == (tmp_path / "ramp-kits" / "flowers", tmp_path / "ramp-data" / "flowers")
    assert (ramp.submissions_dir, ramp.predictions_dir, ramp.logs_dir) == (
        event / "submissions",
        event / "predictions",
        event / "logs",
    )


@pytest.mark.parametrize(
    "sections", [{}, {"dispatcher": {}}, {"dispatcher": dict.fromkeys(("hunger_policy", "n_threads", "state_dir"))}]
)
def test_what_a_dispatcher_has_without_a_word(file: Path, sections: Sections, tmp_path: Path) -> None:
    """Without the section, with an empty one and with nulls the defaults count."""
    dispatcher = load(file, sections).dispatcher
    assert (dispatcher.hunger_policy, dispatcher.n_threads) == (HungerPolicy.SLEEP, None)
    assert dispatcher.n_workers == len(os.sched_getaffinity(0))
    assert (dispatcher.time_between_collection, dispatcher.shutdown_grace) == (1.0, 30.0)
    assert dispatcher.state_dir == tmp_path / "events" / "iris" / "state"
    assert (dispatcher.settle_time, dispatcher.hold_timeout) == (1.0, None)


def test_what_a_worker_has_without_a_word(file: Path) -> None:
    """Every key that all workers share has its default."""
    assert load(file).worker.model_dump() == {
        "worker_type": "conda",
        "timeout": 7200.0,
        "env": {},
        "max_attempts": 3,
        "run_as": None,
        "max_log_bytes": 64 * 1024**2,
        "max_output_bytes": 1024**3,
        "max_output_files": 10_000,
        **dict.fromkeys(FOLDERS),
    }


@pytest.mark.parametrize(
    ("section", "key", "given_value", "resolved"),
    [
        ("ramp", "event_title", "Iris 2026", "Iris 2026"),
        ("ramp", "event_name", 2026, "2026"),
        ("ramp", "event_is_public", False, False),
        ("ramp", "sandbox_dir", "sandbox", "sandbox"),
        ("dispatcher", "hunger_policy", "exit", HungerPolicy.EXIT),
        ("dispatcher", "n_workers", 7, 7),
        ("dispatcher", "n_threads", 4, 4),
        ("dispatcher", "time_between_collection", 0.5, 0.5),
        ("dispatcher", "shutdown_grace", 0, 0.0),
        ("dispatcher", "settle_time", 0, 0.0),
        ("dispatcher", "hold_timeout", 60, 60.0),
        ("worker", "timeout", 5, 5.0),
        ("worker", "max_attempts", 1, 1),
        ("worker", "run_as", "nobody", "nobody"),
        ("worker", "max_log_bytes", "2 MiB", 2 * 1024**2),
        ("worker", "max_output_bytes", 1000, 1000),
        ("worker", "max_output_files", 5, 5),
        ("worker", "env", {"A": "b", "N": 4, "PASSED_ON": None}, {"A": "b", "N": "4", "PASSED_ON": None}),
    ],
)
def test_a_given_value_counts(file: Path, section: str, key: str, given_value: object, resolved: object) -> None:
    """What stands in the file is what the daemon works with."""
    found = load(file, {section: {key: given_value}})
    assert getattr(getattr(found, section), key) == resolved


def test_what_looks_like_a_number_is_the_text_that_was_written(file: Path) -> None:
    """A name of digits, a version, a time: `010`, `1.10` and `12:30:00` are 8, 1.1 and 45000 to YAML alone."""
    text = "{ramp: {problem_name: iris, event_name: 010}, worker: {worker_type: conda, env: {A: 1.10, B: 12:30:00}}}"
    file.write_text(text, encoding="utf-8")
    found = load_config(file, worker_models=lambda _: WorkerConfig)
    assert found.ramp.event_name == "010"
    assert found.worker.env == {"A": "1.10", "B": "12:30:00"}


@pytest.mark.parametrize("key", [*PATHS, "state_dir"])
@pytest.mark.parametrize("value", ["a/./b", "../up", "/abs/olute", "~/x"])
def test_a_relative_path_is_the_deployments(
    file: Path, key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every path is relative to the deployment's folder, whatever the current directory is; ~ is the home."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir("/")
    section = "dispatcher" if key == "state_dir" else "ramp"
    found = load(file, {section: {key: value}})
    resolved = {"a/./b": tmp_path / "a" / "b", "../up": tmp_path.parent / "up", "~/x": Path("/home/somebody/x")}
    assert getattr(getattr(found, section), key) == resolved.get(value, Path(value))


def test_a_deployment_can_be_named(file: Path, tmp_path: Path) -> None:
    """A folder that is given counts instead of the one that holds events/."""
    found = load(file, deployment_dir=tmp_path / "elsewhere")
    assert found.deployment_dir == tmp_path / "elsewhere"
    assert found.ramp.kit_dir == tmp_path / "elsewhere" / "ramp-kits" / "flowers"


def test_a_config_outside_of_events_has_its_own_folder(tmp_path: Path) -> None:
    """Where there is no events/<event>/ around the file, paths are relative to the file."""
    assert load(tmp_path / "iris.yml").deployment_dir == tmp_path


def test_the_path_of_a_relative_config_becomes_absolute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that changes its directory still knows its file."""
    monkeypatch.chdir(file.parent)
    found = load(Path(file.name))
    assert (found.path, found.deployment_dir) == (file, file.parent.parent.parent)


@pytest.mark.parametrize(
    ("cores", "n_workers", "resolved"), [(8, -1, 8), (8, -2, 7), (8, -8, 1), (8, -100, 1), (1, -1, 1), (2, 9, 9)]
)
def test_negative_n_workers_count_from_the_cores(
    file: Path, cores: int, n_workers: int, resolved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 is all cores that this process may use, -2 all but one, and there is always one worker."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert load(file, {"dispatcher": {"n_workers": n_workers}}).dispatcher.n_workers == resolved


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_may_stand_in_worker(file: Path, name: str, tmp_path: Path) -> None:
    """As in the AWS example: used where `ramp` has none, and relative to the deployment too."""
    assert getattr(load(file, {"worker": {name: "there"}}).ramp, name) == tmp_path / "there"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_same_folder_twice_is_no_mistake(file: Path, name: str, tmp_path: Path) -> None:
    """Two places that agree are fine."""
    assert getattr(load(file, {"ramp": {name: "there"}, "worker": {name: "there"}}).ramp, name) == tmp_path / "there"


@pytest.mark.parametrize("name", FOLDERS)
def test_two_different_folders_contradict_each_other(file: Path, name: str) -> None:
    """The error stands at the worker's line and names both."""
    assert problems(file, {"ramp": {name: "here"}, "worker": {name: "there"}}) == [
        f"7: worker.{name}: found 'there', but ramp.{name} is 'here'; allowed: one of them"
    ]


@pytest.mark.parametrize(
    ("section", "key", "instead"),
    [
        ("worker", "hooks", "nothing; what an instance needs belongs into its image"),
        ("worker", "check_status_interval_secs", "dispatcher.time_between_collection"),
        ("worker", "check_finished_training_interval_secs", "dispatcher.time_between_collection"),
        ("dispatcher", "train_loop_interval_secs", "dispatcher.time_between_collection"),
    ],
)
def test_a_legacy_key_is_warned_of(file: Path, section: str, key: str, instead: str) -> None:
    """An old config goes on working, and its owner learns what replaces the key."""
    found = load(file, {section: {key: [1]}})
    assert found.warnings == (f"{section}.{key} is ignored; it is replaced by {instead}",)


def test_sections_of_others_are_warned_of(file: Path) -> None:
    """What belongs to the deployment's own config.yml is left out, with a word on each."""
    text = "ramp: {problem_name: a, event_name: b}\nworker: {worker_type: conda}\n"
    warnings = load(file, f"{text}sqlalchemy: {{password: hunter2}}\nflask: {{}}").warnings
    assert [warning.split(" is ignored: ")[0] for warning in warnings] == [
        "the section sqlalchemy",
        "the section flask",
    ]
    assert "hunter2" not in str(warnings)


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("ramp", "event_nam", "did you mean event_name?"),
        ("dispatcher", "n_worker", "did you mean n_workers?"),
        ("worker", "time_out", "did you mean timeout?"),
        ("worker", "zzz", f"allowed: {', '.join(WorkerConfig.model_fields)}"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, section: str, key: str, hint: str) -> None:
    """Whoever mistypes a key is told which one was meant, or all that there are."""
    (line,) = problems(file, {section: {key: 1}})
    assert line.endswith(f": {section}.{key}: is no key of rampd's; {hint}")


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("ramp", "problem_name", "a/b", "found 'a/b'; allowed: a name of letters, digits"),
        ("ramp", "event_name", "..", "found '..'; allowed: a name of letters"),
        ("ramp", "event_title", " ", "found ' '; allowed: a text that is not empty"),
        ("ramp", "event_is_public", "maybe", "found 'maybe'; allowed: true or false"),
        ("ramp", "kit_dir", 5, "found 5; allowed: a path"),
        ("ramp", "kit_dir", "", "found ''; allowed: a path"),
        ("ramp", "data_dir", "a\0b", "found 'a\\x00b'; allowed: a path"),
        ("ramp", "logs_dir", "~no-such-user/x", "found '~no-such-user/x'; allowed: a path; there is no such user"),
        ("ramp", "sandbox_dir", None, "found null; allowed: a text"),
        ("dispatcher", "hunger_policy", "eat", "found 'eat'; allowed: sleep, exit, null"),
        ("dispatcher", "n_workers", 0, "found 0; allowed: a whole number, not 0"),
        ("dispatcher", "n_workers", 2.5, "found 2.5; allowed: a whole number"),
        ("dispatcher", "n_workers", float("inf"), "found inf; allowed: a whole number"),
        ("dispatcher", "n_workers", True, "found true; allowed: a whole number"),
        ("dispatcher", "n_workers", "2", "found '2'; allowed: a whole number, without quotes"),
        ("dispatcher", "n_threads", 0, "found 0; allowed: a number of at least 1"),
        ("dispatcher", "time_between_collection", 0, "found 0; allowed: a number above 0"),
        ("dispatcher", "shutdown_grace", -1, "found -1; allowed: a number of at least 0"),
        ("dispatcher", "settle_time", float("nan"), "found nan; allowed: a number of at least 0"),
        ("dispatcher", "hold_timeout", float("inf"), "found inf; allowed: a number of seconds"),
        ("worker", "timeout", None, "found null; allowed: a number"),
        ("worker", "max_attempts", 0, "found 0; allowed: a number of at least 1"),
        ("worker", "run_as", "", "found ''; allowed: a text that is not empty"),
        ("worker", "max_log_bytes", "64 potatoes", "found '64 potatoes'; allowed: a size in bytes"),
        ("worker", "max_output_bytes", True, "found true; allowed: a size in bytes"),
        ("worker", "max_output_files", {}, "found a mapping; allowed: a whole number"),
        ("worker", "submissions_dir", "", "found ''; allowed: a path"),
        ("worker", "env", [1], "found (hidden); allowed: a mapping of names to texts (or null)"),
        ("worker", "env", {"B C": "1"}, "found (hidden); allowed: names of letters, digits and '_', which 'B C' is"),
        ("worker", "env", {"A": True}, "found (hidden); allowed: texts, in quotes, which the value of A is not"),
        ("worker", "env", {"A": "x\0"}, "found (hidden); allowed: texts without NUL, which the value of A has"),
    ],
)  # fmt: skip
def test_a_bad_value_is_told(file: Path, section: str, key: str, value: object, told: str) -> None:
    """One line says where it stands, what was found and what is allowed, in words without pydantic."""
    (line,) = problems(file, {section: {key: value}})
    number, where, what = line.split(": ", maxsplit=2)
    assert key in file.read_text(encoding="utf-8").splitlines()[int(number) - 1]
    assert where == f"{section}.{key}"
    assert what.startswith(told)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1: is empty"]),
        ("- 1", ["1: is no mapping"]),
        ("dispatcher: 5\nramp: [1]", ["1: dispatcher: found 5", "1: worker: is missing", "2: ramp: found a list"]),
        (
            "ramp:\n  event_name: a\nworker:\n  timeout: 5",
            ["1: ramp.problem_name: is missing", "3: worker.worker_type: is missing"],
        ),
        ("worker:\n  worker_type: 5\nramp:\n", ["2: worker.worker_type: found 5", "3: ramp: is missing"]),
    ],
)
def test_a_missing_part_is_told(file: Path, text: str, expected: list[str]) -> None:
    """What is not there is told at the nearest line that is, with what belongs there."""
    found = [line.split("; allowed: ") for line in problems(file, text)]
    assert [what for what, _ in found] == expected


def test_an_unknown_worker_lists_what_there_is(file: Path) -> None:
    """The registry's sentence stands at the key's line."""
    assert problems(file, {"worker": {"worker_type": "sge"}}) == [
        "5: worker.worker_type: found 'sge'; allowed: conda, cloud, any"
    ]


def test_an_unknown_worker_hides_no_other_mistake(file: Path) -> None:
    """What every worker has is checked; keys that only the worker that was meant would know are left alone."""
    keys = {"worker_type": "sge", "timeout": "1h", "queue": "long"}
    assert problems(file, {"worker": keys}) == [
        "5: worker.worker_type: found 'sge'; allowed: conda, cloud, any",
        "6: worker.timeout: found '1h'; allowed: a number, without quotes",
    ]


TEN_MISTAKES = """\
ramp:
  problem_name: a/b
  event_name: iris
  event_titel: Iris
dispatchr: {}
dispatcher:
  hunger_policy: eat
  n_workers: 0
  n_workers: 0
  settle_time: soon
worker:
  worker_type: conda
  env: {TOKEN: [hunter2]}
  max_log_bytes: 64 potatoes
  timeot: 5
"""


def test_ten_mistakes_are_ten_lines(file: Path) -> None:
    """All problems of a file come at once, each once, in the file's order."""
    assert [line.split("; ")[0] for line in problems(file, TEN_MISTAKES)] == [
        "2: ramp.problem_name: found 'a/b'",
        "4: ramp.event_titel: is no key of rampd's",
        "5: dispatchr: is no key of rampd's",
        "7: dispatcher.hunger_policy: found 'eat'",
        "9: n_workers: stands twice (first on line 8)",
        "9: dispatcher.n_workers: found 0",
        "10: dispatcher.settle_time: found 'soon'",
        "13: worker.env: found (hidden)",
        "14: worker.max_log_bytes: found '64 potatoes'",
        "15: worker.timeot: is no key of rampd's",
    ]


@pytest.mark.parametrize(
    "worker",
    [
        "{worker_type: cloud, secret_access_key: [hunter2]}",
        "{worker_type: cloud, secret_access_kee: hunter2}",
        "{worker_type: conda, env: [hunter2]}",
        "{worker_type: conda, env: {A: {B: hunter2}}}",
        "{worker_type: {secret_access_key: hunter2}}",
        "[{worker_type: cloud, secret_access_key: hunter2}]",
    ],
)
def test_no_problem_tells_a_secret(file: Path, worker: str) -> None:
    """However a secret is misplaced, its value is not in the sentence."""
    assert "hunter2" not in str(problems(file, f"ramp: {{problem_name: a, event_name: b}}\nworker: {worker}"))


def test_a_plug_in_may_have_any_key(file: Path) -> None:
    """What only the plug-in knows is kept as it is, old keys of other workers too, and nobody is warned."""
    own = {"region": "north", "hooks": "mine", "nested": {"list": [1, None]}, "timeout": "60"}
    with pytest.raises(ConfigError, match=r"worker.timeout: found '60'; allowed: a number"):
        load(file, {"worker": {"worker_type": "any", **own}})
    found = load(file, {"worker": {"worker_type": "any", **own, "timeout": 60}})
    assert isinstance(found.worker, PlugInConfig)
    assert found.worker.given == {"worker_type": "any", **own, "timeout": 60}
    assert found.warnings == ()
    with pytest.raises(ConfigError, match="allowed: keys that are texts"):
        load(file, "ramp: {problem_name: a, event_name: b}\nworker: {worker_type: any, 3: 4}\n")


def test_a_plug_ins_secrets_are_masked(file: Path) -> None:
    """Whatever sounds like one is hidden, however deep it stands; the rest is shown as JSON."""
    own = {"token": "s3cret", "nested": {"password": "s3cret", "user": "me", "keys": [{"secret_key": "s3cret"}]}}
    section = {"worker_type": "any", **own, "day": "2026-01-01", "passwords": ["s3cret"], "no_token": None}
    masked = load(file, {"worker": section}).masked()["worker"]
    assert "s3cret" not in json.dumps(masked)
    assert masked["nested"]["user"] == "me"
    assert masked["no_token"] is None
    hidden = [masked["token"], masked["nested"]["keys"][0]["secret_key"], masked["passwords"]]
    assert hidden == ["**********"] * 3


def test_what_people_are_shown_is_masked(file: Path) -> None:
    """`--check` prints names of variables and keys, and no value of theirs; the rest is plain JSON."""
    secret = {"worker_type": "cloud", "secret_access_key": "hunter2", "env": {"A": "hunter2", "B": None}, "timeout": 5}
    found = load(file, {"worker": secret})
    shown = json.loads(json.dumps(found.masked()))
    assert "hunter2" not in str(shown) + str(found.worker.secret_access_key)  # type: ignore[attr-defined]
    assert shown["worker"]["env"] == {"A": "**********", "B": None}
    assert (shown["worker"]["timeout"], shown["ramp"]["kit_dir"]) == (5, str(found.ramp.kit_dir))
    assert not set(FOLDERS) & set(shown["worker"])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2),
    max_leaves=4,
)
SECTIONS = ("ramp", "dispatcher", "worker")
KEYS = sorted({*PATHS, "hunger_policy", "n_workers", "env", "timeout", "max_log_bytes", "worker_type", "event_name"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(SECTIONS), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=2)))
def test_whatever_stands_there_is_settings_or_problems(file: Path, sections: Sections) -> None:
    """No value of any key gets beyond the two answers."""
    with suppress(ConfigError):
        assert load(file, sections).path == file
