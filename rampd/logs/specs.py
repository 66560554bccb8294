"""The grammar of the catalogue: what is said of a record and of each field, and what every record has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rampd.states import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field: its JSON type, what it means, and whether it is always there."""

    type: str
    """A JSON Schema type: string, integer, number, boolean, object, or array (of strings)."""
    doc: str
    required: bool = True
    nullable: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventSpec:
    """One kind of record."""

    level: str
    doc: str
    fields: Mapping[str, FieldSpec]


def text(doc: str, **more: Any) -> FieldSpec:
    """Return the spec of a string."""
    return FieldSpec("string", doc, **more)


def whole(doc: str, **more: Any) -> FieldSpec:
    """Return the spec of an integer."""
    return FieldSpec("integer", doc, **more)


def number(doc: str, **more: Any) -> FieldSpec:
    """Return the spec of a number; NaN and infinities are written as null."""
    return FieldSpec("number", doc, **more)


def flag(doc: str, **more: Any) -> FieldSpec:
    """Return the spec of a boolean."""
    return FieldSpec("boolean", doc, **more)


def mapping(doc: str, **more: Any) -> FieldSpec:
    """Return the spec of an object."""
    return FieldSpec("object", doc, **more)


def texts(doc: str, **more: Any) -> FieldSpec:
    """Return the spec of an array of strings."""
    return FieldSpec("array", doc, **more)


OUTCOMES: Final = tuple(Outcome)
ERROR: Final = text("what went wrong, for the operator")

BASE: Final[Mapping[str, FieldSpec]] = {
    "timestamp": text("RFC 3339, UTC, microseconds"),
    "level": text("", values=("debug", "info", "warning", "error")),
    "event": text("the stable, dotted name of the record"),
    "logger": text("the module, or another library's logger"),
    "run": text("a random id of the process"),
    "seq": whole("from 1 in each run, up by one: what is missing was dropped, and a log.dropped record says so"),
}
"""What every record has."""

BOUND: Final[Mapping[str, FieldSpec]] = {
    "event_name": text("the RAMP event", required=False),
    "submission": text("the submission's name", required=False),
    "submission_id": whole("the store's integer", required=False),
    "worker_type": text("which kind of worker", required=False),
    "attempt": whole("1, 2, …", required=False),
    "exception": text("a traceback of rampd's own", required=False),
    "truncated": texts("fields that were shortened to fit the line", required=False),
}
"""What any record may have, where it applies."""
