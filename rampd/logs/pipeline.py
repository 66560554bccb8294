"""From a call of a logger to a line: structlog's processors, other libraries' records, and what can be JSON."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

import structlog

from rampd.logs.catalogue import CATALOGUE
from rampd.logs.stream import ESSENTIAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from rampd.logs.stream import LogStream

MAX_LINE_BYTES = 32 * 1024
_LONGEST_FIELD = 4 * 1024
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_ALWAYS = frozenset({"submission.finished", "log.dropped"})
"""Written whatever the level: other programs live on them."""
_FIRST = ("timestamp", "level", "event", "logger", "run", "seq")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def get_logger(name: str) -> Any:
    """Return a logger bound to a name, as every module of the house has one."""
    return structlog.get_logger(name)


def configure(
    stream: LogStream,
    *,
    format: Literal["json", "console"] = "json",  # noqa: A002 -- the command line's own word
    level: str = "info",
    run: str | None = None,
) -> None:
    """Send everything that this process logs into `stream`.

    Parameters
    ----------
    stream
        Started.
    format
        `json` for programs, `console` for people.
    level
        The lowest level of rampd's own records; other libraries' are written from warning on, whatever it is.
    run
        The random id of this process.
    """
    pipeline = _Pipeline(stream, run or secrets.token_hex(6), _LEVELS[level], console=format == "console")
    stream.on_dropped(pipeline.dropped)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, pipeline],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
        logger_factory=_Name,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_Foreign(pipeline))
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


class _Name:
    """All that is left of a logger once everything is one stream."""

    def __init__(self, name: str = "rampd") -> None:
        self.name = name

    def _accept(self, *_: object, **__: object) -> None:
        """Stand for every level's method: the pipeline has dealt with the record by then."""

    debug = info = warning = error = critical = exception = _accept


class _Pipeline:
    """The last structlog processor: numbers, renders and hands over. Raises nothing but DropEvent."""

    def __init__(self, stream: LogStream, run: str, threshold: int, *, console: bool) -> None:
        self._stream = stream
        self._run = run
        self._threshold = threshold
        # The plain formatter takes the traceback as we give it; the default one would warn about that.
        plain = structlog.dev.plain_traceback
        self._console = (
            structlog.dev.ConsoleRenderer(colors=False, sort_keys=False, exception_formatter=plain) if console else None
        )

    def __call__(self, named: object, method: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        record = dict(fields)
        level = "error" if method in ("exception", "critical") else method
        event = str(record.pop("event", ""))
        on_written = record.pop("on_written", None)
        if _LEVELS.get(level, 20) >= self._threshold or event in _ALWAYS:
            logger = getattr(named, "name", "rampd")
            self.put(level, event, logger, record, on_written)
        raise structlog.DropEvent

    def put(
        self,
        level: str,
        event: str,
        logger: str,
        fields: dict[str, Any],
        on_written: Callable[[], None] | None = None,
    ) -> None:
        """Hand one record over."""
        error = fields.pop("exc_info", None)
        if error:
            fields["exception"] = _traceback_of(error)
        head = {"timestamp": _now(), "level": level, "event": event, "logger": logger, "run": self._run}
        rank = ESSENTIAL if event in _ALWAYS else _LEVELS.get(level, 20)
        render = partial(self._render_console if self._console else _render_json, head, fields)
        self._stream.put(render, rank, on_written)

    def dropped(self, seq: int, count: int, first: int, last: int) -> bytes:
        """Render a log.dropped record."""
        level = CATALOGUE["log.dropped"].level
        head = {
            "timestamp": _now(),
            "level": level,
            "event": "log.dropped",
            "logger": "rampd.logs",
            "run": self._run,
        }
        fields = {"count": count, "first_seq": first, "last_seq": last}
        return (self._render_console if self._console else _render_json)(head, fields, seq)

    def _render_console(self, head: dict[str, Any], fields: dict[str, Any], _seq: int) -> bytes:
        assert self._console is not None  # noqa: S101 -- the caller looked
        shown = {str(_as_json(key, 0)): _as_json(value, 0) for key, value in fields.items() if key not in _FIRST}
        record = {"timestamp": head["timestamp"], "level": head["level"], "event": head["event"], **shown}
        text = str(self._console(None, head["level"], record)).replace("\n", "\n    ")
        line = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text).encode("utf-8", "backslashreplace")
        return line[: MAX_LINE_BYTES - 1].decode("utf-8", "ignore").encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _render_json(head: dict[str, Any], fields: dict[str, Any], seq: int) -> bytes:
    """Return one line; a field that is too long for it is shortened, and named in `truncated`."""
    record = {**head, "seq": seq, **{key: value for key, value in fields.items() if key not in _FIRST}}
    try:
        # The common case: nothing but what JSON knows, nothing too long.
        line = _dumps(record)
    except Exception:  # noqa: BLE001 -- a field may be anything, and fail in any way when it is looked at
        line = _dumps({str(_as_json(key, 0)): _as_json(value, 0) for key, value in record.items()})
    if len(line) < MAX_LINE_BYTES:
        return line
    plain = {str(_as_json(key, 0)): _as_json(value, 0) for key, value in record.items()}
    shortened: list[str] = []
    for key in sorted(plain, key=lambda key: -len(_dumps(plain[key]))):
        text = plain[key] if isinstance(plain[key], str) else json.dumps(plain[key])
        if len(text) <= _LONGEST_FIELD // 4:
            continue
        plain[key] = text[-_LONGEST_FIELD // 4 :] if key == "exception" else text[: _LONGEST_FIELD // 4]
        shortened.append(key)
        line = _dumps({**plain, "truncated": shortened})
        if len(line) < MAX_LINE_BYTES:
            return line
    return _dumps({**{key: plain[key] for key in _FIRST}, "truncated": ["*"]})


def _dumps(value: object) -> bytes:
    return f"{_ENCODER.encode(value)}\n".encode()


def _known_type(value: object) -> object:
    """Turn the types that our own records carry into JSON's; anything else takes the slow way."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_known_type)
"""Made once: `json.dumps` would make one a record."""


def _as_json(value: Any, depth: int) -> Any:
    """Return something that JSON has, whatever `value` is: NaN and infinities are null, surrogates are escaped."""
    try:
        return _plain(value, depth)
    except Exception:  # noqa: BLE001 -- a log line must not fail because a __str__ does
        return f"<{type(value).__name__}>"


def _plain(value: Any, depth: int) -> Any:  # noqa: C901, PLR0911 -- one rule a type, one after the other
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _as_json(value.value, depth)
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, os.PathLike):
        return _as_json(os.fspath(value), depth)
    if depth < 10:  # noqa: PLR2004 -- deeper is a cycle, or nothing that anybody reads
        if isinstance(value, Mapping):
            return {str(_as_json(key, depth + 1)): _as_json(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_as_json(inner, depth + 1) for inner in value]
    return _as_json(str(value)[:_LONGEST_FIELD], depth)


def _traceback_of(error: Any) -> str:
    """Return a traceback's text; its end is what matters."""
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if not isinstance(error, BaseException):
        return ""
    buffer = StringIO()
    traceback.print_exception(error, limit=-30, file=buffer)
    return buffer.getvalue()[-4 * _LONGEST_FIELD :]


class _Foreign(logging.Handler):
    """Takes the records of other libraries (and Python's warnings) into the same stream."""

    def __init__(self, pipeline: _Pipeline) -> None:
        super().__init__(logging.WARNING)
        self._pipeline = pipeline

    def emit(self, record: logging.LogRecord) -> None:
        """Put one record; whatever is wrong with it, it is somebody else's and must not raise here."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 -- arguments that do not fit their message
            message = str(_as_json(record.msg, 0))
        fields: dict[str, Any] = {"message": message[:_LONGEST_FIELD]}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        level = next(name for name, number in reversed(_LEVELS.items()) if record.levelno >= number)
        self._pipeline.put("error" if level == "critical" else level, "log", record.name, fields)
