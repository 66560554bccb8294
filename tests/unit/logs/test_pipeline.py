"""From a call of a logger to a line."""

from __future__ import annotations

import json
import logging
import re
from collections import UserDict
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from rampd.logs import get_logger, problems_of
from rampd.logs.pipeline import MAX_LINE_BYTES, _render_json
from rampd.states import Outcome

if TYPE_CHECKING:
    from support.log_file import LogFile

Record = dict[str, Any]


def test_a_record_has_what_every_record_has(written: LogFile) -> None:
    """First the base fields, then its own; it fits the catalogue."""
    written.configure(run="0123456789ab")
    get_logger("rampd.dispatcher").info("submission.queued", position=1, submission="x")
    record = written.record()
    assert list(record) == ["timestamp", "level", "event", "logger", "run", "seq", "position", "submission"]
    del record["timestamp"]
    assert record == {
        "level": "info",
        "event": "submission.queued",
        "logger": "rampd.dispatcher",
        "run": "0123456789ab",
        "seq": 1,
        "position": 1,
        "submission": "x",
    }


def test_timestamps_are_rfc_3339_in_utc_with_microseconds(logged: LogFile) -> None:
    """Always with six digits, so that lines sort as text."""
    before = datetime.now(UTC)
    get_logger("x").info("daemon.reloaded")
    stamp = logged.record()["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
    assert before <= datetime.fromisoformat(stamp) <= before + timedelta(seconds=10)


def test_each_process_has_a_run_of_its_own(written: LogFile) -> None:
    """Numbers start again with it."""
    for _ in range(2):
        written.configure(run=None)
        get_logger("x").info("daemon.reloaded")
    first, second = written.records()
    assert first["run"] != second["run"]
    assert re.fullmatch("[0-9a-f]{12}", first["run"])


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error", "error"]),
        ("info", ["info", "warning", "error", "error"]),
        ("warning", ["warning", "error", "error"]),
        ("error", ["error", "error"]),
    ],
)
def test_the_level_is_the_lowest_that_is_written(written: LogFile, level: str, expected: list[str]) -> None:
    """Records below it get no number: nothing is missing."""
    written.configure(level=level)
    log = get_logger("x")
    for method in (log.debug, log.info, log.warning, log.error, log.exception):
        method("some.thing")
    records = written.records()
    assert [record["level"] for record in records] == expected
    assert [record["seq"] for record in records] == list(range(1, len(expected) + 1))


def test_submission_finished_is_written_at_any_level(written: LogFile) -> None:
    """Other programs live on it."""
    written.configure(level="error")
    get_logger("x").info("submission.finished", submission="x")
    get_logger("x").info("submission.started")
    assert written.record()["event"] == "submission.finished"


def test_on_written_is_told_and_not_shown(logged: LogFile) -> None:
    """It is for the stream, not for the reader."""
    called: list[str] = []
    get_logger("x").info("submission.finished", on_written=lambda: called.append("yes"))
    assert "on_written" not in logged.record()
    assert called == ["yes"]


def test_on_written_of_a_record_that_is_not_for_the_stream_is_not_called(written: LogFile) -> None:
    """Nothing was written."""
    written.configure(level="error")
    called: list[str] = []
    get_logger("x").info("some.thing", on_written=lambda: called.append("yes"))
    assert written.records() == []
    assert called == []


def test_what_is_bound_is_in_each_record(logged: LogFile) -> None:
    """Bound to a logger or to a task's context; what the call says counts more."""
    with structlog.contextvars.bound_contextvars(event_name="iris", attempt=1):
        get_logger("x").bind(submission="mine").info("submission.cancelled", attempt=2)
    get_logger("x").info("daemon.reloaded")
    bound, free = logged.records()
    assert (bound["event_name"], bound["submission"], bound["attempt"]) == ("iris", "mine", 2)
    assert "event_name" not in free


def test_no_field_can_pose_as_a_base_field(logged: LogFile) -> None:
    """Not even one that a plug-in calls seq."""
    get_logger("x").info("some.thing", seq=99, level="error", timestamp="now", run="other", logger="fake")
    record = logged.record()
    assert (record["seq"], record["level"], record["run"], record["logger"]) == (1, "info", "r1", "x")
    assert record["timestamp"] != "now"


class Colour(Enum):
    """An enum whose values are no texts."""

    RED = 1.5


class Number(IntEnum):
    """An enum that is a number."""

    ONE = 1


class Mute:
    """An object that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


class BadPath(PurePosixPath):
    """A path that is none."""

    def __fspath__(self) -> str:
        raise OSError


class BadMapping(UserDict[str, int]):
    """A mapping that another thread changes while it is looked at."""

    def items(self) -> Any:
        """Fail."""
        raise RuntimeError


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _deep(depth: int) -> object:
    value: object = "bottom"
    for _ in range(depth):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (-float("inf"), None),
        ({"acc": [float("nan"), 1.0]}, {"acc": [None, 1.0]}),
        (b"caf\xc3\xa9 \xff\n", "café \\xff\n"),
        ("\ud800 \udcff", "\\ud800 \\udcff"),
        ("\x00\x1b[31m\n\r\x7f\u2028", "\x00\x1b[31m\n\r\x7f\u2028"),
        (Path("/a/b"), "/a/b"),
        ([Path("a\udcff")], ["a\\udcff"]),
        (Outcome.OK, "ok"),
        (Colour.RED, 1.5),
        (Number.ONE, 1),
        ((1, "a", None, True), [1, "a", None, True]),
        ({"one"}, ["one"]),
        ({1: {"a": ()}, None: 2, Path("p"): 3, b"b": 4}, {"1": {"a": []}, "None": 2, "p": 3, "b": 4}),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
        (ValueError("text"), "text"),
        (Mute(), "<Mute>"),
        ([Mute()], ["<Mute>"]),
        (1 << 40, 1 << 40),
        (UserDict({"a": 1}), {"a": 1}),
    ],
)
def test_any_value_becomes_json(logged: LogFile, value: object, shown: object) -> None:
    """NaN and infinities are null, what JSON does not have is a text, and nothing fails."""
    get_logger("x").info("some.thing", value=value, other=1)
    record = logged.record()
    assert record["value"] == shown
    assert record["other"] == 1


@pytest.mark.parametrize(
    "value",
    [_cycle(), _deep(50), _deep(5000), 10**5000, -(10**5000), [10**30], BadPath("x"), BadMapping({"a": 1}), object()],
    ids=["cycle", "deep", "deeper", "huge", "negative", "large", "path", "mapping", "object"],
)
def test_no_value_stops_a_record(logged: LogFile, value: object) -> None:
    """Whatever it is, the line is there, and what else it says."""
    get_logger("x").info("some.thing", value=value, other=1)
    get_logger("x").info("some.thing", other=2)
    first, second = logged.records()
    assert first["value"]
    assert [(record["other"], record["seq"]) for record in (first, second)] == [(1, 1), (2, 2)]


def test_a_name_of_a_field_may_be_anything(logged: LogFile) -> None:
    """Half of a surrogate pair too."""
    get_logger("x").info("some.thing", **{"\ud800": 1, "a b": 2})
    record = logged.record()
    assert (record["\\ud800"], record["a b"]) == (1, 2)


_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.binary(max_size=5),
        st.text(st.characters(exclude_categories=()), max_size=20),
        st.sampled_from([Path("p"), Mute(), Outcome.OK, Colour.RED, "x" * 40_000, "\x01" * 9000, "😀" * 9000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4), st.tuples(inner)
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=6), _VALUES, max_size=6))
def test_a_record_is_always_one_line_of_json(fields: Record) -> None:
    """Whatever its fields are."""
    head = {"timestamp": "t", "level": "info", "event": "some.thing", "logger": "x", "run": "r1"}
    line = _render_json(head, fields, 7)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE_BYTES
    record = json.loads(line, parse_constant=pytest.fail)
    assert {key: record[key] for key in head} == head
    assert record["seq"] == 7


def test_a_long_field_is_shortened_and_named(logged: LogFile) -> None:
    """The other fields, and the record's name and number, are whole."""
    get_logger("x").info("some.thing", long="begin" + "é" * 100_000, short="b" * 1000)
    record = logged.record()
    assert record["truncated"] == ["long"]
    assert record["short"] == "b" * 1000
    assert len(record["long"]) < 100_000
    assert record["long"].startswith("beginé")


def test_no_more_fields_are_shortened_than_needed(logged: LogFile) -> None:
    """The longest first."""
    get_logger("x").info("some.thing", a=["x" * 20_000], b="y" * 15_000, c="z" * 14_000)
    record = logged.record()
    assert record["truncated"] == ["a"]
    assert (record["b"], record["c"]) == ("y" * 15_000, "z" * 14_000)


def test_of_a_long_traceback_the_end_is_kept(logged: LogFile) -> None:
    """It says what happened."""
    error = ValueError("é" * 100_000 + "the end")
    get_logger("x").error("lifecycle.failed", exc_info=error, other="x" * 20_000)
    assert logged.record()["exception"].endswith("the end\n")


def test_a_record_of_countless_fields_keeps_its_base(logged: LogFile) -> None:
    """Where shortening does not help, the fields go, and that is said."""
    get_logger("x").info("some.thing", **{f"field_{number}" * 10: "x" * 50 for number in range(1000)})
    record = logged.record()
    assert set(record) == {"timestamp", "level", "event", "logger", "run", "seq", "truncated"}
    assert (record["event"], record["truncated"]) == ("some.thing", ["*"])


@pytest.mark.parametrize("letter", ["x", "😀", "\x01"])
def test_not_even_names_make_a_line_too_long(logged: LogFile, letter: str) -> None:
    """A library may call its logger, and a plug-in its event, whatever it likes."""
    logging.getLogger(letter * 40_000).warning("text")
    get_logger("x").info(letter * 40_000)
    foreign, own = logged.records()
    assert foreign["logger"].startswith(letter)
    assert own["event"].startswith(letter)


def _fail() -> None:
    empty: dict[str, str] = {}
    try:
        empty["inner"]
    except KeyError as error:
        raise ValueError("outer") from error


def test_an_exception_is_a_field(logged: LogFile) -> None:
    """Whether it is the present one, or is handed over; its causes are told too."""
    log = get_logger("x")
    try:
        _fail()
    except ValueError as error:
        log.exception("lifecycle.failed")
        kept = error
    log.error("lifecycle.failed", exc_info=kept)
    for record in logged.records():
        assert problems_of(record) == []
        assert record["level"] == "error"
        assert "exc_info" not in record
        assert "KeyError: 'inner'" in record["exception"]
        assert record["exception"].endswith("ValueError: outer\n")


def test_an_exception_that_is_none_is_nothing(logged: LogFile) -> None:
    """`log.exception` outside of an except says no more than its fields."""
    get_logger("x").exception("some.thing", exc_info=(None, None, None))
    assert not logged.record().get("exception")
