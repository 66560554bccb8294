"""Other libraries' records in the stream, and the console's format."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog

from rampd.logs import get_logger, problems_of
from rampd.logs.pipeline import MAX_LINE_BYTES

if TYPE_CHECKING:
    from support.log_file import LogFile


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_other_libraries_are_heard_from_warning_on(written: LogFile, level: str) -> None:
    """Whatever our own level is, and whatever theirs."""
    written.configure(level=level)
    other = logging.getLogger("other.library")
    other.setLevel(logging.DEBUG)
    try:
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, 35, logging.ERROR, logging.CRITICAL):
            other.log(number, "%s came", number)
    finally:
        other.setLevel(logging.NOTSET)
    records = written.records()
    assert [(record["level"], record["message"]) for record in records] == [
        ("warning", "30 came"),
        ("warning", "35 came"),
        ("error", "40 came"),
        ("error", "50 came"),
    ]
    for record in records:
        assert (record["event"], record["logger"]) == ("log", "other.library")
        assert problems_of(record) == []


def test_other_libraries_count_in_the_same_numbers(logged: LogFile) -> None:
    """One stream, one numbering."""
    get_logger("x").info("daemon.reloaded")
    logging.getLogger("other").warning("text")
    get_logger("x").info("daemon.reloaded")
    assert [(record["seq"], record["event"]) for record in logged.records()] == [
        (1, "daemon.reloaded"),
        (2, "log"),
        (3, "daemon.reloaded"),
    ]


def test_another_librarys_exception_is_told(logged: LogFile) -> None:
    """With its traceback, as our own."""
    try:
        [].pop()
    except IndexError:
        logging.getLogger("other").exception("it failed")
    record = logged.record()
    assert (record["level"], record["message"]) == ("error", "it failed")
    assert record["exception"].endswith("IndexError: pop from empty list\n")


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("%d apples", ("no",), "%d apples"),
        ("%s %s", ("one",), "%s %s"),
        ("%s", (_Mute(),), "%s"),
        (_Mute(), (), "<_Mute>"),
        (b"bytes", (), "b'bytes'"),
        ("", (), ""),
        ("two\nlines\udcff", (), "two\nlines\\udcff"),
    ],
)
def test_a_record_that_is_wrong_stops_nobody(
    written: LogFile, message: object, arguments: tuple[object, ...], shown: str
) -> None:
    """It is somebody else's mistake, and what can be said of it is."""
    written.configure()  # here, where pytest's own handlers are there already: they would raise
    logging.getLogger("other").warning(message, *arguments)
    assert written.record()["message"] == shown


def test_a_long_message_is_cut(logged: LogFile) -> None:
    """A library that prints what it was given does not fill the stream."""
    logging.getLogger("other").warning("x" * 1_000_000)
    assert logged.record()["message"] == "x" * 4096


def test_pythons_warnings_are_records(logged: LogFile) -> None:
    """They would go to stderr otherwise, where nobody looks."""
    warnings.simplefilter("always")
    warnings.warn("it will be removed", DeprecationWarning, stacklevel=1)
    record = logged.record()
    assert (record["event"], record["level"], record["logger"]) == ("log", "warning", "py.warnings")
    assert "DeprecationWarning: it will be removed" in record["message"]


def test_earlier_handlers_are_gone(written: LogFile, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing writes beside the stream."""
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    written.configure()
    logging.getLogger("other").warning("text")
    get_logger("x").warning("some.thing")
    assert capfd.readouterr() == ("", "")
    assert len(written.records()) == 2


def _console(written: LogFile) -> str:
    return written.raw().decode()


def test_the_console_is_for_people(written: LogFile) -> None:
    """One record a line, with its time, level, name and fields, and no colours."""
    written.configure(format="console")
    with structlog.contextvars.bound_contextvars(event_name="iris"):
        get_logger("x").info("submission.queued", position=1, score=float("nan"), names=["a"])
    logging.getLogger("other").warning("their text")
    first, second = _console(written).splitlines()
    assert "info" in first
    assert "submission.queued" in first
    for words in ("event_name=iris", "position=1", "score=None", "names=['a']"):
        assert words in first
    assert first[:4].isdecimal()
    assert "warning" in second
    assert "their text" in second
    assert "\x1b" not in first + second


def test_the_console_obeys_the_level_too(written: LogFile) -> None:
    """As the JSON does, submission.finished included."""
    written.configure(format="console", level="error")
    get_logger("x").info("some.thing")
    get_logger("x").info("submission.finished")
    (line,) = _console(written).splitlines()
    assert "submission.finished" in line


def test_an_exception_on_the_console_is_indented(written: LogFile) -> None:
    """One record, whose further lines cannot be taken for records; and no warning comes of it."""
    written.configure(format="console")
    warnings.simplefilter("always")
    get_logger("x").error("lifecycle.failed", exc_info=ValueError("mine\nDaemon stopped"))
    first, *more = _console(written).splitlines()
    assert "lifecycle.failed" in first
    assert any("ValueError: mine" in line for line in more)
    assert all(line.startswith("    ") for line in more)


def test_control_characters_do_not_reach_a_terminal(written: LogFile) -> None:
    """Neither from a field, nor from a message, nor from an exception."""
    written.configure(format="console")
    evil = "\x1b]0;evil\x07\x9b31m\r"
    get_logger("x").info("some.thing", name=evil, **{evil: [evil]})
    logging.getLogger("other").warning(evil)
    get_logger("x").error("some.thing", exc_info=ValueError(evil))
    shown = _console(written)
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "evil" in shown


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, "\n" * 100_000, "😀x" * 50_000, "\x01" * 30_000])
def test_a_console_record_is_not_too_long_either(written: LogFile, text: str) -> None:
    """Nor is a character cut in two."""
    written.configure(format="console")
    get_logger("x").info("some.thing", value=text)
    get_logger("x").error("some.thing", exc_info=ValueError(text))
    raw = written.raw()
    assert len(raw) <= 2 * MAX_LINE_BYTES
    assert raw.decode().count("some.thing") == 2


def test_on_the_console_no_field_can_pose_as_another(written: LogFile) -> None:
    """A field that is called level is left out."""
    written.configure(format="console")
    get_logger("x").info("some.thing", level="critical", timestamp="never")
    shown = _console(written)
    assert "info" in shown
    assert "critical" not in shown
    assert "never" not in shown


def test_what_is_no_text_fits_the_console(written: LogFile) -> None:
    """Objects that fail, and halves of surrogate pairs."""
    written.configure(format="console")
    get_logger("x").info("some.thing", mute=_Mute(), half="\ud800", **{"\ud801": 1})
    shown = _console(written)
    assert "mute=<_Mute>" in shown
    assert "\\ud800" in shown
    assert "\\ud801" in shown
