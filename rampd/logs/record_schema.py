"""The catalogue as a JSON Schema, and as a check of single records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rampd.logs.catalogue import CATALOGUE
from rampd.logs.specs import BASE, BOUND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rampd.logs.specs import EventSpec, FieldSpec

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
