"""What a participant may see of a failure."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampd.models import Exit
from rampd.ramp_test import error_message, explain_exit, shown_message, timeout_message
from rampd.ramp_test.messages import clean, last_traceback

if TYPE_CHECKING:
    from pathlib import Path

TRACEBACK = """Traceback (most recent call last):
  File "estimator.py", line 3, in fit
    raise ValueError("mine")
ValueError: mine"""

# As ramp-test prints one: every frame is a print() of its own.
SPACED = """Traceback (most recent call last):

  File "testing.py", line 100, in run
    fit()

  File "estimator.py", line 3, in fit
    raise ValueError("mine")

ValueError: mine
"""

SCORES = "\tscore    acc    nll\n\ttrain  0.333  1.099\n\tvalid  0.333  1.099\n\ttest   0.777  1.099\n"


def _log(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "log"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _output(tmp_path: Path, **errors: str | bytes) -> Path:
    """Make a training_output whose folds have these error.txt."""
    folder = tmp_path / "training_output"
    folder.mkdir()
    for fold, text in errors.items():
        (folder / fold).mkdir()
        (folder / fold / "error.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_error_txt_comes_before_the_log(tmp_path: Path) -> None:
    """A fold's error.txt is the participant's own; the log's tracebacks do not matter beside it."""
    log = _log(tmp_path, TRACEBACK.replace("mine", "another"))
    assert error_message(training_output=_output(tmp_path, fold_0=TRACEBACK), log_path=log) == TRACEBACK


def test_the_first_fold_that_has_an_error_speaks(tmp_path: Path) -> None:
    """Folds before it went well, and what else lies in training_output says nothing."""
    output = _output(tmp_path, fold_1="second", fold_2="third", other="no fold")
    (output / "fold_0").mkdir()
    assert error_message(training_output=output, log_path=None) == "second"


def test_an_empty_error_txt_leaves_the_word_to_the_log(tmp_path: Path) -> None:
    """Blanks are no message."""
    output = _output(tmp_path, fold_0="\n \x00\n")
    assert error_message(training_output=output, log_path=_log(tmp_path, TRACEBACK)) == TRACEBACK


@pytest.mark.parametrize("given_paths", [False, True])
def test_without_a_traceback_nothing_is_said(tmp_path: Path, *, given_paths: bool) -> None:
    """Neither missing files nor a log of scores make a message."""
    assert error_message(training_output=None, log_path=_log(tmp_path, SCORES)) == ""
    missing = tmp_path / "missing" if given_paths else None
    assert error_message(training_output=missing, log_path=missing) == ""


def test_only_the_last_traceback_of_a_log_is_shown(tmp_path: Path) -> None:
    """What was printed before and after it stays in the log."""
    earlier = TRACEBACK.replace("mine", "earlier")
    log = _log(tmp_path, f"secret before\n{earlier}\n{SCORES}{TRACEBACK}\n\nsecret after\n")
    assert error_message(training_output=None, log_path=log) == TRACEBACK


def test_frames_with_empty_lines_between_them_are_one_traceback(tmp_path: Path) -> None:
    """ramp-workflow prints frame by frame, with an empty line after each."""
    log = _log(tmp_path, f"CV fold 0\n{SPACED}\nsecret after\n")
    assert error_message(training_output=None, log_path=log) == SPACED.strip()


def test_scores_right_after_a_printed_traceback_are_not_shown() -> None:
    """A submission that prints a traceback and goes on is followed by ramp-test's table without an empty line."""
    assert last_traceback(f"CV fold 0\n{TRACEBACK}\n{SCORES}CV fold 1\n") == TRACEBACK


@pytest.mark.parametrize("heading", ["CV fold 1", "-" * 28 + "\nMean CV scores"])
def test_ramp_tests_headings_end_a_traceback(heading: str) -> None:
    """What ramp-test says next is not the exception's message."""
    assert last_traceback(f"{TRACEBACK}\n{heading}\n0.777\n") == TRACEBACK


def test_scores_do_not_pass_for_a_frame() -> None:
    """A traceback that stops before its exception does not take the indented table for one of its frames."""
    begun = 'Traceback (most recent call last):\n  File "estimator.py", line 3, in fit\n'
    assert "0.777" not in last_traceback(begun + SCORES)


def test_a_faked_chain_does_not_show_the_scores_between() -> None:
    """The words of a chain, printed by a submission, reach no further back than ramp-test's own lines."""
    faked = f"{TRACEBACK}\n{SCORES}During handling of the above exception, another exception occurred:\n\n{TRACEBACK}\n"
    assert "0.777" not in last_traceback(faked)
    assert last_traceback(faked).strip() == TRACEBACK


@pytest.mark.parametrize(
    "words",
    [
        "During handling of the above exception, another exception occurred:",
        "The above exception was the direct cause of the following exception:",
    ],
)
def test_chained_exceptions_are_kept_whole(words: str) -> None:
    """The cause is often what the participant needs."""
    chain = f"{TRACEBACK}\n\n{words}\n\n{SPACED.strip()}\n\n{words}\n\n{TRACEBACK}"
    assert last_traceback(f"secret\n{chain}\n\nsecret\n") == chain


def test_a_message_of_several_lines_is_kept_until_an_empty_one() -> None:
    """Libraries explain themselves at length, with dashes too."""
    text = f"{TRACEBACK}\nAll the 5 fits failed.\n{'-' * 80}\n  Fit 1: it is broken"
    assert last_traceback(f"{text}\n\nsecret\n") == text


def test_a_syntax_error_is_shown_with_its_caret() -> None:
    """The lines below the last frame belong to it."""
    text = """Traceback (most recent call last):
  File "testing.py", line 1, in load
    import estimator
  File "estimator.py", line 2
    def fit(
           ^
SyntaxError: '(' was never closed"""
    assert last_traceback(f"before\n{text}\n\nafter") == text


def test_a_log_that_was_cut_inside_a_traceback_shows_what_there_is() -> None:
    """A killed process may not come to the exception's line."""
    begun = 'Traceback (most recent call last):\n  File "estimator.py", line 3, in fit\n'
    assert last_traceback(f"secret\n{begun}\n\n") == begun.rstrip()


def test_colours_and_control_characters_are_stripped(tmp_path: Path) -> None:
    """Nothing of it reaches a terminal or a database that has no NUL."""
    coloured = "\x1b[38;5;178m\x1b[1mred\x1b[0m\x00 \x1b]0;title\x07\x08\tb\r\nc\rd \x1bMe\x7f \x9b \x1b]2;x\x1b\\f\x1b"
    output = _output(tmp_path, fold_0=coloured)
    assert error_message(training_output=output, log_path=None) == "red \tb\nc\nd e  f"


def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    """A message is always text."""
    output = _output(tmp_path, fold_0=b"caf\xe9 \xff\xfe \xc3\xa9")
    assert error_message(training_output=output, log_path=None) == "caf\ufffd \ufffd\ufffd é"


@pytest.mark.parametrize("letter", ["x", "é", "€", "😀"])
def test_a_long_message_keeps_its_last_64_kib(tmp_path: Path, letter: str) -> None:
    """The end says what happened; no character is cut in two."""
    output = _output(tmp_path, fold_0=letter * 100_000 + "ValueError: the end")
    message = error_message(training_output=output, log_path=None)
    assert 65536 - 4 < len(message.encode()) <= 65536
    assert message.endswith("ValueError: the end")
    assert set(message[:-19]) == {letter}


def test_a_traceback_is_found_at_the_end_of_a_huge_log(tmp_path: Path) -> None:
    """Only the end is read, however much a submission printed."""
    log = _log(tmp_path, b"x" * (3 << 20) + b"\n" + TRACEBACK.encode())
    assert error_message(training_output=None, log_path=log) == TRACEBACK


@pytest.mark.parametrize("name", ["training_output", "log"])
def test_our_own_paths_are_left_out(tmp_path: Path, name: str) -> None:
    """The private copy's place is nobody's business; the submission's file is."""
    hidden = tmp_path / "attempts" / "a1"
    text = TRACEBACK.replace("estimator.py", f"{hidden}/submissions/mine/estimator.py")
    output = _output(tmp_path, fold_0=text) if name == "training_output" else None
    message = error_message(training_output=output, log_path=_log(tmp_path, text), hide=hidden)
    assert message == TRACEBACK.replace("estimator.py", "submissions/mine/estimator.py")


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "linked fold", "linked output", "device"])
def test_what_is_no_file_of_ramp_tests_says_nothing(tmp_path: Path, what: str) -> None:
    """A participant who puts a link, a fifo or a folder there learns nothing and holds nobody up."""
    secret = tmp_path / "secret" / "fold_0"
    secret.mkdir(parents=True)
    (secret / "error.txt").write_text("a secret")
    output = tmp_path / "training_output"
    error = output / "fold_0" / "error.txt"
    if what == "linked output":
        output.symlink_to(secret.parent)
    elif what == "linked fold":
        output.mkdir()
        (output / "fold_0").symlink_to(secret)
    else:
        error.parent.mkdir(parents=True)
    match what:
        case "link":
            error.symlink_to(secret / "error.txt")
        case "fifo":
            os.mkfifo(error)
        case "folder":
            error.mkdir()
        case "device":
            error.symlink_to("/dev/zero")
    assert error_message(training_output=output, log_path=None) == ""


@given(st.binary())
def test_clean_leaves_no_control_character(raw: bytes) -> None:
    """Any bytes become text of printable characters, newlines and tabs."""
    kept = {character for character in clean(raw) if ord(character) < 32 or 127 <= ord(character) < 160}
    assert kept <= {"\n", "\t"}


@pytest.mark.parametrize("piece", ["\x1b[", "\x1b]", "\x1b", "\x1b[0;", f"{TRACEBACK}\n", "\n", "\r"])
def test_a_hostile_log_takes_no_time(tmp_path: Path, piece: str) -> None:
    """A megabyte of beginnings of escape sequences or tracebacks is read in linear time."""
    log = _log(tmp_path, piece * ((1 << 20) // len(piece)))
    before = time.process_time()
    error_message(training_output=None, log_path=log)
    assert time.process_time() - before < 2.0


def test_a_sigkill_mentions_memory() -> None:
    """The kernel's most frequent reason is the one that a participant can act on."""
    assert "SIGKILL" in explain_exit(Exit(137, signal.SIGKILL), has_output=False)
    assert "memory" in explain_exit(Exit(137, signal.SIGKILL), has_output=False)


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (6, "SIGABRT"), (40, "real-time"), (0x7F, "real-time")])
def test_other_signals_are_named(number: int, name: str) -> None:
    """A segmentation fault is told by number and name, without a word about memory."""
    sentence = explain_exit(Exit(128 + number, number), has_output=True)
    assert f"signal {number} " in sentence
    assert name in sentence
    assert "memory" not in sentence


@pytest.mark.parametrize(("has_output", "words"), [(True, "an incomplete training"), (False, "no training")])
def test_status_0_without_results_is_explained(*, has_output: bool, words: str) -> None:
    """`os._exit(0)` is no success, and the sentence says what to look for."""
    sentence = explain_exit(Exit(0), has_output=has_output)
    assert words in sentence
    assert "os._exit" in sentence


def test_another_status_is_said() -> None:
    """`sys.exit(2)` is the participant's too."""
    assert "ended with status 2 " in explain_exit(Exit(2), has_output=True)


@pytest.mark.parametrize(("timeout_s", "shown"), [(7200.0, "7200"), (7200, "7200"), (0.5, "0.5"), (1.1, "1.1")])
def test_the_timeout_stands_as_in_the_config(timeout_s: float, shown: str) -> None:
    """RAMP's own sentence, word for word."""
    assert timeout_message(timeout_s) == f"Worker killed due to timeout after {shown}s."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("could not be had\n", "could not be had"),
        ("\x1b[31mred\x00\n", "red"),
        ("before\nCV fold 0\n\ttest  0.99\n", "before"),
        ("before\n\tscore  acc\n", "before"),
        (
            "x\nTraceback (most recent call last):\n  a\nValueError: no\n\ttest  0.99",
            "Traceback (most recent call last):\n  a\nValueError: no",
        ),
    ],
)
def test_a_message_of_a_plug_ins_is_cut(text: str, shown: str) -> None:
    """It may be a whole log: no more than a traceback, or what comes before the scores, is a participant's to read."""
    assert shown_message(text) == shown


def test_a_message_of_a_plug_ins_is_bounded() -> None:
    """The last 64 KiB at most."""
    assert len(shown_message("x" * 100_000)) == 64 * 1024
