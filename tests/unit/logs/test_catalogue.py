"""The catalogue: one table of names, levels and fields, for programs that read the stream."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import rampd
from rampd.logs import CATALOGUE, EventSpec, FieldSpec, json_schema, problems_of, record_schema
from rampd.logs.specs import BASE, BOUND

if TYPE_CHECKING:
    from collections.abc import Iterator

Record = dict[str, Any]

_IN_THE_CONTRACT = {
    "daemon": ["started", "ready", "reloaded", "stopping", "stopped", "failed"],
    "config": ["rejected"],
    "submission": [
        "detected",
        "rejected",
        "queued",
        "started",
        "resumed",
        "changed",
        "retried",
        "timed_out",
        "cancelled",
        "finished",
        "scored",
    ],
    "event": ["held", "released", "adopted"],
    "log": ["dropped", ""],
    "worker": ["setup_failed", "lost", "reclaimed"],
    "aws": ["instance_launched", "instance_terminated", "spot_interrupted"],
    "ssh": ["connected", "lost"],
    "dask": ["connected", "lost"],
}
"""What comes before the dot, and what may follow it."""

_FIELDS_IN_THE_CONTRACT = {
    "submission.queued": {"position"},
    "submission.retried": {"reason", "delay_s"},
    "submission.finished": {
        "outcome",
        "state",
        "exit_status",
        "queued_s",
        "setup_s",
        "run_s",
        "collect_s",
        "attempts",
        "max_rss_bytes",
        "replayed",
    },
    "submission.scored": {"scores"},
    "log.dropped": {"count", "first_seq", "last_seq"},
    "log": {"message"},
}

_VALIDATOR = Draft202012Validator(json_schema())
_OF_ONE_NAME = {schema["title"]: Draft202012Validator(schema) for schema in json_schema()["oneOf"]}
"""Much quicker than the whole, for records whose name is known."""


def _example(spec: FieldSpec) -> Any:
    """Return a value that fits."""
    examples = {"string": "x", "integer": 1, "number": 0.5, "boolean": True, "object": {"a": 1}, "array": ["a"]}
    return str(spec.values[0]) if spec.values else examples[spec.type]


def _record(name: str) -> Record:
    """Return a good record with every field that there may be."""
    spec = CATALOGUE[name]
    record = {field: _example(inner) for field, inner in {**BASE, **BOUND, **spec.fields}.items()}
    return {**record, "event": name, "level": spec.level}


def _is_good(record: Record, validator: Draft202012Validator = _VALIDATOR) -> bool:
    """Say what both the schema and `problems_of` say."""
    good = validator.is_valid(record)
    problems = problems_of(record)
    assert good == (not problems), (record, problems)
    return good


def test_the_schema_is_a_json_schema() -> None:
    """Of the draft that it names, and printable as JSON."""
    schema = json.loads(json.dumps(json_schema()))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_record_with_every_field_is_good(name: str) -> None:
    """By the schema and by `problems_of`."""
    assert _is_good(_record(name))


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_field_is_held_to_its_type(name: str) -> None:
    """What is missing, null, of another type or of another vocabulary: both checks say the same of it."""
    good, validator = _record(name), _OF_ONE_NAME[name]
    for field, spec in {**BASE, **BOUND, **CATALOGUE[name].fields}.items():
        if field == "event":
            continue
        assert _is_good({key: value for key, value in good.items() if key != field}, validator) != spec.required, field
        assert _is_good({**good, field: None}, validator) == spec.nullable, field
        for wrong in (["", 1], "no such word", 1.5, True, {"a": None}, -3):
            _is_good({**good, field: wrong}, validator)


def test_an_unknown_field_or_name_is_a_problem() -> None:
    """The catalogue is complete: there is nothing beside it."""
    assert not _is_good({**_record("daemon.reloaded"), "more": 1})
    events: list[Any] = ["daemon.exploded", None, 1, ["log"], {}, ""]
    for event in events:
        assert not _is_good({**_record("log"), "event": event})
    assert not _is_good({})


def test_a_name_has_one_level() -> None:
    """Only other libraries' records come at several."""
    assert not _is_good({**_record("submission.finished"), "level": "error"})
    for level in ("warning", "error"):
        assert _is_good({**_record("log"), "level": level})
    assert not _is_good({**_record("log"), "level": "critical"})


def test_a_problem_names_event_and_field() -> None:
    """So that it can be found."""
    record = _record("log.dropped")
    del record["count"]
    problems = problems_of({**record, "first_seq": "1", "last_seq": None, "extra": 1, "level": "info"})
    assert problems == [
        "log.dropped has no field 'extra'",
        "log.dropped lacks count",
        "log.dropped.first_seq is no integer: '1'",
        "log.dropped.last_seq is null",
        "log.dropped has level 'info' instead of 'warning'",
    ]


def test_a_vocabulary_that_may_be_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """Null is allowed beside a field's words where the field says so."""
    fields = {"word": FieldSpec("string", "a word", nullable=True, values=("a", "b"))}
    monkeypatch.setattr(record_schema, "CATALOGUE", {"some.thing": EventSpec("info", "", fields)})
    validator = Draft202012Validator(json_schema())
    record = {**_record("event.drained"), "event": "some.thing"}
    for word, good in (("a", True), (None, True), ("c", False)):
        assert validator.is_valid({**record, "word": word}) == good
        assert (not problems_of({**record, "word": word})) == good


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(0.1, 0.9), st.sampled_from(["", "info", "log", "ok"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_schema_and_problems_of_agree(data: st.DataObject) -> None:
    """On records that differ from good ones in a few fields."""
    name = data.draw(st.sampled_from(sorted(CATALOGUE)))
    record = _record(name)
    fields = [*record, "unknown"]
    for field in data.draw(st.lists(st.sampled_from(fields), max_size=3)):
        if data.draw(st.booleans()):
            record[field] = data.draw(_JSON)
        else:
            record.pop(field, None)
    _is_good(record)


def test_what_was_promised_is_there() -> None:
    """Names and fields that other programs rely on."""
    names = [f"{first}.{second}".strip(".") for first, seconds in _IN_THE_CONTRACT.items() for second in seconds]
    assert set(names) <= set(CATALOGUE)
    for name, fields in _FIELDS_IN_THE_CONTRACT.items():
        assert fields <= set(CATALOGUE[name].fields), name


def test_what_every_record_has() -> None:
    """The fields without which no reader could do, and those that say whom it is about."""
    assert set(BASE) == {"timestamp", "level", "event", "logger", "run", "seq"}
    assert {"event_name", "submission", "submission_id", "worker_type", "attempt"} <= set(BOUND)
    assert all(spec.required for spec in BASE.values())
    assert not any(spec.required for spec in BOUND.values())


def test_fields_are_named_by_the_rules() -> None:
    """Durations end in _s and are numbers, sizes in _bytes and are whole; each has a word of explanation."""
    for name, event in CATALOGUE.items():
        assert event.doc.endswith("."), name
        for field, spec in event.fields.items():
            assert field not in BASE, name
            assert spec.doc, name
            assert not field.endswith("_s") or spec.type == "number", name
            assert not field.endswith("_bytes") or spec.type == "integer", name


_LEVELS = {name: name for name in ("debug", "info", "warning", "error")} | {"exception": "error"}


def _written() -> Iterator[tuple[str, str, set[str]]]:
    """Find each call `<logger>.<level>("<name>", …)`: where, level and name, and the fields that it gives."""
    for path in sorted(Path(rampd.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            if node.func.attr not in _LEVELS or not _is_logger(node.func.value):
                continue
            fields = {keyword.arg or "**" for keyword in node.keywords} - {"exc_info", "on_written"}
            for name in _names(node.args[0]):
                yield f"{path.name}:{node.lineno}", f"{_LEVELS[node.func.attr]} {name}", fields


def _is_logger(node: ast.expr) -> bool:
    words = ast.unparse(node)
    return words.split("(")[0].split(".")[-1].strip("_") in {"log", "logger", "get_logger"} or "get_logger(" in words


def _names(node: ast.expr) -> list[str]:
    """Return the names that an expression may give; none where it is no literal."""
    if isinstance(node, ast.IfExp):
        return [*_names(node.body), *_names(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else [ast.unparse(node)]


def test_whatever_rampd_writes_is_in_the_catalogue() -> None:
    """Each literal name at its level, with fields that the catalogue knows, and none that is missing."""
    found = list(_written())
    assert len(found) > 30
    for where, what, fields in found:
        level, name = what.split(" ", 1)
        assert name in CATALOGUE, where
        assert level == CATALOGUE[name].level, where
        known = {**BOUND, **CATALOGUE[name].fields}
        assert fields - {"**"} <= set(known), where
        required = {field for field, spec in CATALOGUE[name].fields.items() if spec.required}
        assert "**" in fields or required <= fields, where
