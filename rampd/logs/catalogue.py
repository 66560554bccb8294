"""The catalogue of the log stream: every record's name, level and fields, as one table that other programs may rely on.

`rampctl schema` prints it as a JSON Schema, and every record that the test suite sees is held against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rampd.states import Outcome, SubmissionState

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


def _text(doc: str, **more: Any) -> FieldSpec:
    return FieldSpec("string", doc, **more)


def _whole(doc: str, **more: Any) -> FieldSpec:
    return FieldSpec("integer", doc, **more)


def _number(doc: str, **more: Any) -> FieldSpec:
    return FieldSpec("number", doc, **more)


def _flag(doc: str, **more: Any) -> FieldSpec:
    return FieldSpec("boolean", doc, **more)


def _object(doc: str, **more: Any) -> FieldSpec:
    return FieldSpec("object", doc, **more)


def _texts(doc: str, **more: Any) -> FieldSpec:
    return FieldSpec("array", doc, **more)


_STATES = tuple(SubmissionState)
_OUTCOMES = tuple(Outcome)
_FINAL_OUTCOMES = tuple(outcome for outcome in Outcome if outcome is not Outcome.INTERRUPTED)
_ERROR = _text("what went wrong, for the operator")
_WHERE = {
    "pid": _whole("the process group of the run, where it is on this machine", nullable=True),
    "host": _text("the host of the run, where it is on another", nullable=True),
}

BASE: Final[Mapping[str, FieldSpec]] = {
    "timestamp": _text("RFC 3339, UTC, microseconds"),
    "level": _text("", values=("debug", "info", "warning", "error")),
    "event": _text("the stable, dotted name of the record"),
    "logger": _text("the module, or another library's logger"),
    "run": _text("a random id of the process"),
    "seq": _whole("from 1 in each run, up by one: what is missing was dropped, and a log.dropped record says so"),
}
"""What every record has."""

BOUND: Final[Mapping[str, FieldSpec]] = {
    "event_name": _text("the RAMP event", required=False),
    "submission": _text("the submission's name", required=False),
    "submission_id": _whole("the store's integer", required=False),
    "worker_type": _text("which kind of worker", required=False),
    "attempt": _whole("1, 2, …", required=False),
    "exception": _text("a traceback of rampd's own", required=False),
    "truncated": _texts("fields that were shortened to fit the line", required=False),
}
"""What any record may have, where it applies."""

CATALOGUE: Final[Mapping[str, EventSpec]] = {
    "daemon.started": EventSpec(
        "info",
        "The daemon has opened everything; submissions are looked for next.",
        {
            "version": _text("rampd's version"),
            "pid": _whole("the daemon's pid"),
            "python": _text("the interpreter's version"),
            "uvloop": _flag("whether the loop is uvloop's"),
            "events": _texts("the events that are served"),
            "state_dir": _text("the first event's state_dir"),
            "n_workers": _whole("how many submissions run at once, over all events"),
            "n_threads": _whole("threads a submission's libraries may use", nullable=True),
            "containment": _text("how local runs are contained; null where nothing runs locally", nullable=True),
            "worker": _object("by event: facts about its worker"),
        },
    ),
    "daemon.ready": EventSpec(
        "info",
        "Submissions are taken from now on.",
        {"startup_s": _number("since the start"), "counts": _object("submissions by state")},
    ),
    "daemon.reloaded": EventSpec("info", "A new config is in force.", {}),
    "daemon.stopping": EventSpec(
        "info",
        "A signal came: no more is claimed.",
        {
            "signal": _text("its name", nullable=True),
            "reason": _text("why"),
            "running": _whole("how many submissions run"),
            "grace_s": _number("how long they are given"),
        },
    ),
    "daemon.stopped": EventSpec(
        "info",
        "The last record of a daemon that stopped as it should.",
        {
            "exit_status": _whole("the process's"),
            "uptime_s": _number("since the start"),
            "finished": _whole("submissions that came to their end"),
        },
    ),
    "daemon.failed": EventSpec("error", "The last record of a daemon that could not go on.", {"error": _ERROR}),
    "config.rejected": EventSpec(
        "error",
        "One of several configs cannot be used; the others are served.",
        {"path": _text("the file"), "problems": _texts("one sentence each")},
    ),
    "config.warning": EventSpec(
        "warning",
        "A config works, but says something that is ignored or outdated.",
        {"path": _text("the file"), "message": _text("what, and what replaces it")},
    ),
    "event.adopted": EventSpec(
        "info",
        "The very first start on an event that another dispatcher served.",
        {
            "scored": _whole("taken over with predictions"),
            "training_error": _whole("taken over with only a log"),
            "new": _whole("left to run"),
        },
    ),
    "event.held": EventSpec(
        "error",
        "Nothing of this event can run; submissions wait, and it is looked again every 5 s.",
        {
            "missing": _text("what is missing"),
            "existing": _texts("what there is instead"),
            "timeout_s": _number("after which waiting ones become checking_error", nullable=True),
        },
    ),
    "event.released": EventSpec("info", "A held event runs again.", {"held_s": _number("for how long it was held")}),
    "event.drained": EventSpec("info", "By the operator's word nothing is claimed any more.", {}),
    "event.resumed": EventSpec("info", "By the operator's word submissions are claimed again.", {}),
    "event.failed": EventSpec("error", "One of several events cannot go on; the others do.", {}),
    "submission.detected": EventSpec("info", "A complete submission was found.", {}),
    "submission.rejected": EventSpec(
        "warning",
        "Something in submissions_dir is no submission; said once.",
        {
            "name": _text("its name, made printable"),
            "reason": _text(
                "which rule it breaks",
                values=(
                    "bad_name",
                    "dangling_link",
                    "escaping_link",
                    "hard_link",
                    "link",
                    "not_a_folder",
                    "sandbox",
                    "special_file",
                    "too_large",
                ),
            ),
            "message": _text("the rule, as a sentence"),
        },
    ),
    "submission.queued": EventSpec(
        "info", "A submission waits for its turn.", {"position": _whole("1 for the next one")}
    ),
    "submission.forgotten": EventSpec("info", "A waiting submission's folder is gone, and so is the submission.", {}),
    "submission.changed": EventSpec(
        "warning",
        "A submission's folder changed after its end; it is not run again by itself.",
        {"state": _text("its state", values=_STATES)},
    ),
    "submission.started": EventSpec("info", "Once an attempt: the submission's process exists.", _WHERE),
    "submission.resumed": EventSpec("info", "A run was taken over from an earlier daemon.", _WHERE),
    "submission.recovered": EventSpec(
        "info", "A submission that was claimed by an earlier daemon, and never begun, was put back.", {}
    ),
    "submission.timed_out": EventSpec(
        "info", "A submission is over its time and is being ended.", {"timeout_s": _number("how long it was given")}
    ),
    "submission.cancelled": EventSpec("info", "A running submission was ended by the organizers.", {}),
    "submission.retried": EventSpec(
        "warning",
        "An attempt ended through no fault of the participant's, and the submission waits again.",
        {
            "reason": _text("what happened"),
            "outcome": _text("what kind of failure", values=_OUTCOMES),
            "delay_s": _number("for how long it backs off"),
            "counted": _flag("whether the attempt counts against max_attempts"),
            "exit_status": _whole("ramp-test's", nullable=True),
            "attempts": _whole("how many there were"),
        },
    ),
    "submission.scored": EventSpec(
        "info",
        "Its scores.",
        {"scores": _object("{score: {train|valid|test: {mean, std, bagged}}}; NaN and infinities are null")},
    ),
    "submission.finished": EventSpec(
        "info",
        "The canonical line: a submission came to a final state. Deduplicate on (submission, attempt).",
        {
            "outcome": _text("how", values=_FINAL_OUTCOMES),
            "state": _text("its final state", values=tuple(state for state in SubmissionState if state.is_final)),
            "exit_status": _whole("ramp-test's, 124 for a timeout, 128+n for signal n", nullable=True),
            "queued_s": _number("from the queue to the attempt"),
            "setup_s": _number("preparing the run", nullable=True),
            "run_s": _number("the run", nullable=True),
            "collect_s": _number("fetching and checking its results", nullable=True),
            "attempts": _whole("how many there were"),
            "max_rss_bytes": _whole("peak memory of its largest process", nullable=True),
            "log_bytes": _whole("how much it printed", nullable=True),
            "log_path": _text("where the log is"),
            "reason": _text("for the operator, where the platform failed", nullable=True),
            "replayed": _flag("written again after a restart: it may have been lost", required=False),
        },
    ),
    "request.refused": EventSpec(
        "warning",
        "What an operator asked for cannot be done.",
        {"kind": _text("cancel or retry"), "answer": _text("why")},
    ),
    "worker.uncontained": EventSpec(
        "warning",
        "What the platform does not protect from submissions; once at a start.",
        {"message": _text("what, and what to do about it")},
    ),
    "worker.setup_failed": EventSpec(
        "warning",
        "A worker could not run an attempt.",
        {"error": _ERROR, "outcome": _text("what kind of failure", values=_OUTCOMES)},
    ),
    "worker.lost": EventSpec(
        "warning",
        "A run, or a part of it, is gone.",
        {"error": _ERROR, "outcome": _text("what kind of failure", values=_OUTCOMES)},
    ),
    "worker.reclaimed": EventSpec(
        "info", "Something that an earlier daemon left was ended or removed.", {"what": _text("what it was")}
    ),
    "watch.polling": EventSpec(
        "warning",
        "inotify has no more to give; the folder is polled.",
        {"path": _text("the folder"), "error": _ERROR},
    ),
    "store.unavailable": EventSpec(
        "error",
        "The store or the journal could not be used; it is tried again.",
        {"error": _ERROR, "delay_s": _number("until the next try", required=False, nullable=True)},
    ),
    "store.recovered": EventSpec(
        "info", "The store or the journal works again.", {"down_s": _number("for how long it did not")}
    ),
    "lifecycle.failed": EventSpec("error", "An unexpected error inside one submission's task: please report it.", {}),
    "log.dropped": EventSpec(
        "warning",
        "Records were lost because nobody read the stream.",
        {
            "count": _whole("how many"),
            "first_seq": _whole("the first number that is missing"),
            "last_seq": _whole("the last one; between the two, every gap is one of the lost"),
        },
    ),
    "log": EventSpec("warning", "Another library's record.", {"message": _text("what it says")}),
    "aws.instance_launched": EventSpec(
        "info",
        "An instance was launched.",
        {"instance_id": _text("EC2's id"), "instance_type": _text("its type"), "spot": _flag("whether it is spot")},
    ),
    "aws.instance_terminated": EventSpec(
        "info", "An instance was terminated.", {"instance_id": _text("EC2's id"), "reason": _text("why")}
    ),
    "aws.spot_interrupted": EventSpec("warning", "AWS takes a spot instance back.", {"instance_id": _text("EC2's id")}),
    "ssh.connected": EventSpec(
        "info", "A connection is open.", {"host": _text("the host"), "connect_s": _number("how long it took")}
    ),
    "ssh.lost": EventSpec("warning", "A connection broke.", {"host": _text("the host"), "error": _ERROR}),
    "dask.connected": EventSpec(
        "info",
        "The scheduler is there.",
        {"scheduler": _text("its address"), "workers": _whole("how many workers it has")},
    ),
    "dask.lost": EventSpec("warning", "The scheduler is gone.", {"scheduler": _text("its address"), "error": _ERROR}),
}
"""Every record that rampd writes, by name."""

_ANY_LEVEL = frozenset({"log"})


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema (draft 2020-12) of one line of the stream."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of rampd's log stream",
        "type": "object",
        "required": list(BASE),
        "properties": {name: _field_schema(spec) for name, spec in BASE.items()},
        "oneOf": [_event_schema(name, spec) for name, spec in CATALOGUE.items()],
    }


def _event_schema(name: str, spec: EventSpec) -> dict[str, Any]:
    fields = {**BASE, **BOUND, **spec.fields}
    properties = {field: _field_schema(inner) for field, inner in fields.items()}
    properties["event"] = {"const": name}
    if name not in _ANY_LEVEL:
        properties["level"] = {"const": spec.level}
    return {
        "title": name,
        "description": spec.doc,
        "type": "object",
        "properties": properties,
        "required": [*BASE, *(field for field, inner in spec.fields.items() if inner.required)],
        "additionalProperties": False,
    }


def _field_schema(spec: FieldSpec) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": [spec.type, "null"] if spec.nullable else spec.type, "description": spec.doc}
    if spec.type == "array":
        schema["items"] = {"type": "string"}
    if spec.values:
        schema["enum"] = [*(str(value) for value in spec.values), *([None] if spec.nullable else [])]
    return schema


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def problems_of(record: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one record of the stream, by the catalogue: nothing, for a good one.

    A quicker and clearer check than a JSON Schema validator's, for tests and for tools that read the stream.
    """
    name = record.get("event")
    spec = CATALOGUE.get(str(name))
    if spec is None:
        return [f"no such event: {name!r}"]
    known = {**BASE, **BOUND, **spec.fields}
    problems = [f"{name} has no field {field!r}" for field in record if field not in known]
    for field, inner in known.items():
        if field not in record:
            if inner.required and (field in BASE or field in spec.fields):
                problems.append(f"{name} lacks {field}")
            continue
        problem = _problem_of(record[field], inner)
        if problem:
            problems.append(f"{name}.{field} {problem}")
    if name not in _ANY_LEVEL and record.get("level") != spec.level:
        problems.append(f"{name} has level {record.get('level')!r} instead of {spec.level!r}")
    return problems


def _problem_of(value: Any, spec: FieldSpec) -> str:
    """Return what is wrong with one value; empty for a good one."""
    if value is None:
        return "" if spec.nullable else "is null"
    if not isinstance(value, _TYPES[spec.type]) or (isinstance(value, bool) and spec.type != "boolean"):
        return f"is no {spec.type}: {value!r}"
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        return "has items that are no texts"
    if spec.values and value not in spec.values:
        return f"is {value!r}, not one of {', '.join(spec.values)}"
    return ""
