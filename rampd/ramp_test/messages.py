"""What a participant may see of a failure: a traceback or a sentence, never the log (it shows test scores)."""

from __future__ import annotations

import os
import re
import signal
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Exit

_MAX_NAMES = 10_000
_MAX_LAST_WORDS = 4096
_MAX_MESSAGE_BYTES = 64 * 1024
_MAX_LOG_BYTES = 1 << 20
"""How much of a log's end is searched for a traceback."""
_BEGINNING = "Traceback (most recent call last):"
_OF_RAMP_TEST = re.compile(r"^(?:\t(?:score|train|valid|test)\s|CV fold \d|-{28}$)", re.MULTILINE)
"""What ramp-test itself prints after a fold: the beginning of what no participant may see."""

# ECMA-48 control sequences and strings; every alternative is linear and bounded.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[@-Z\\-_])?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def error_message(*, training_output: Path | None, log_path: Path | None, hide: Path | None = None) -> str:
    """Return the participant's own traceback, or nothing.

    Parameters
    ----------
    training_output
        As ramp-test left it: a fold's error.txt comes first.
    log_path
        The run's log: else the last traceback in it.
    hide
        A folder of ours that the traceback may name (the private copy's); its name is left out.

    Returns
    -------
    str
        Without colours, NULs and other control characters, invalid bytes replaced; the last 64 KiB at most.
    """
    text = ""
    if training_output is not None:
        text = clean(_read_error_txt(training_output))
    if not text.strip() and log_path is not None:
        text = last_traceback(clean(_read_end(log_path, _MAX_LOG_BYTES)))
    if hide is not None:
        text = text.replace(f"{hide}/", "")
    return _last_bytes(text.strip("\n"), _MAX_MESSAGE_BYTES)


def end_of_log(log_path: Path) -> str:
    """Return the last few lines of a run's log, cleaned: for what programs say that leave no traceback."""
    return clean(_read_end(log_path, _MAX_LAST_WORDS))


def _read_error_txt(training_output: Path) -> bytes:
    if training_output.is_symlink():
        return b""
    try:
        # A flood of names must not keep a thread, and with it the interpreter, busy for seconds.
        names = [path.name for path in islice(training_output.iterdir(), _MAX_NAMES)]
        folds = sorted(name for name in names if name.startswith("fold_"))
    except OSError:
        return b""
    for fold in folds[:1000]:
        text = _read_end(training_output / fold / "error.txt", _MAX_MESSAGE_BYTES * 4)
        if text:
            return text
    return b""


def _read_end(path: Path, size: int) -> bytes:
    """Return the last `size` bytes of a regular file, or nothing."""
    try:
        # A link instead of the fold's folder must not lead outside either.
        if path.parent.is_symlink():
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        # Not `os.fdopen(descriptor)`: it raises for a folder, and leaves the descriptor open.
        with open(descriptor, "rb", closefd=False) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            return file.read(size)
    except OSError:  # a folder, a fifo: nothing that ramp-test wrote
        return b""
    finally:
        os.close(descriptor)


def clean(raw: bytes) -> str:
    """Return text without colours and control characters but newlines and tabs; invalid bytes are replaced."""
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def last_traceback(text: str) -> str:
    """Return the last traceback in a log, chained ones whole, through its last line and nothing after it.

    ramp-workflow prints an empty line between frames; a frame's lines are indented, so the first line that is not
    is the exception itself, with what follows it until an empty line, or until ramp-test says something.
    """
    begin = text.rfind(_BEGINNING)
    if begin < 0:
        return ""
    if said := _OF_RAMP_TEST.search(text, begin):
        text = text[: said.start()]
    chain = _chained_beginning(text, begin)
    lines = text[begin:].split("\n")
    end = 1
    while end < len(lines) and (not lines[end].strip() or lines[end][0] in " \t"):
        end += 1
    if end == len(lines):
        return text[chain:].rstrip()
    while end < len(lines) and lines[end].strip():
        end += 1
    return text[chain:begin] + "\n".join(lines[:end])


_CHAINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


def _chained_beginning(text: str, begin: int) -> int:
    """Follow a chain of exceptions back to where its first traceback begins."""
    for _ in range(100):
        before = text[:begin].rstrip()
        if not before.endswith(_CHAINS):
            break
        earlier = text.rfind(_BEGINNING, 0, begin)
        if earlier < 0 or _OF_RAMP_TEST.search(text, earlier, begin):
            break
        begin = earlier
    return begin


def shown_message(text: str) -> str:
    """Return what a participant may see of a text that somebody else put together of a run's output.

    Its last traceback; without one the text itself, up to where ramp-test begins to print scores.
    """
    text = clean(text.encode("utf-8", "replace"))
    if _BEGINNING in text:
        text = last_traceback(text)
    elif said := _OF_RAMP_TEST.search(text):
        text = text[: said.start()]
    return _last_bytes(text.strip("\n"), _MAX_MESSAGE_BYTES)


def _last_bytes(text: str, size: int) -> str:
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= size else raw[-size:].decode("utf-8", "ignore")


def explain_exit(ended: Exit, *, has_output: bool) -> str:
    """Return a sentence for a participant whose submission ended without a traceback."""
    if ended.signal == signal.SIGKILL:
        return "The submission was killed (SIGKILL), most likely because it used more memory than there is."
    if ended.signal is not None:
        return f"The submission was ended by signal {ended.signal} ({_signal_name(ended.signal)})."
    if ended.status == 0:
        made = "an incomplete training_output" if has_output else "no training_output"
        return (
            f"ramp-test ended with status 0 but left {made}: the submission probably ended the process itself "
            "(sys.exit or os._exit)."
        )
    return (
        f"ramp-test ended with status {ended.status} and no traceback: the submission probably ended the process "
        "itself (sys.exit or os._exit)."
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


def timeout_message(timeout_s: float) -> str:
    """Return the sentence that RAMP's participants know: the time as it stands in the config."""
    return f"Worker killed due to timeout after {timeout_s:.15g}s."
