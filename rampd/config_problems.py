"""From a validation's findings to lines that a new user can mend a file by: where, what was found, what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from rampd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import ValidationError

    from rampd.yaml_document import KeyPath, YamlDocument

_SECRET = re.compile(r"secret|password|passwd|token|credential|access_key", re.IGNORECASE)

# What pydantic's error types mean to somebody who writes YAML (pydantic docs, "Validation errors").
_ALLOWED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_type": "a text",
    "byte_size": 'a size in bytes, or a text such as "64 MiB"',
    "invalid_key": "keys that are texts",
    "byte_size_unit": 'a size in bytes, or a text such as "64 MiB"',
}


class Problems:
    """Everything that is wrong with one file, in its order."""

    def __init__(self, path: Path, document: YamlDocument) -> None:
        self._path = path
        self._lines = document.lines
        self._found: list[tuple[int, str]] = []
        for problem in document.problems:
            line, _, rest = problem.partition(":")
            self._found.append((int(line), f"{path}:{line}:{rest}"))

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, where: KeyPath, what: str, allowed: str = "") -> None:
        """Note one problem at a key path."""
        line = self._line_of(where)
        dotted = ".".join(str(part) for part in where)
        parts = [
            f"{self._path}:{line}",
            *([dotted] if dotted else []),
            what + (f"; allowed: {allowed}" if allowed else ""),
        ]
        self._found.append((line, ": ".join(parts)))

    def _line_of(self, where: KeyPath) -> int:
        while where and where not in self._lines:
            where = where[:-1]
        return self._lines.get(where, 1)

    def check_keys(self, where: KeyPath, data: Mapping[Any, object], known: Sequence[str]) -> None:
        """Note every key that is not known, with the nearest one that is."""
        for key in data:
            if key in known:
                continue
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
            self.add((*where, str(key)), f"is no key of rampd's; {hint}")

    def add_validation(self, where: KeyPath, error: ValidationError, data: Mapping[Any, object]) -> None:
        """Note what pydantic found, in words without pydantic."""
        told: set[KeyPath] = set()
        for detail in error.errors(include_url=False):
            inner = tuple(part for part in detail["loc"] if not str(part).startswith("function-"))
            location = (*where, *inner[:1])
            if location in told:
                continue
            told.add(location)
            if detail["type"] == "missing":
                self.add(location, "is missing", "a value, without which the event cannot be served")
                continue
            found = "(hidden)" if _is_secret(inner) else shown(data.get(inner[0]) if inner else data)
            self.add(location, f"found {found}", _allowed(detail))

    def error(self) -> ConfigError:
        """Return them as the one error to raise."""
        return ConfigError([text for _, text in sorted(self._found, key=lambda item: item[0])])


def _is_secret(inner: KeyPath) -> bool:
    return any(str(part) == "env" or _SECRET.search(str(part)) for part in inner)


def masked(name: str, value: object) -> object:
    """Return what a plug-in's own key says, as JSON has it, with whatever sounds like a secret hidden."""
    if _SECRET.search(name):
        return None if value is None else "**********"
    match value:
        case dict():
            return {str(key): masked(str(key), inner) for key, inner in value.items()}
        case list() | tuple() | set():
            return [masked(name, inner) for inner in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def _allowed(detail: Any) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "enum":
            return str(context["expected"]).replace("'", "").replace(" or ", ", ") + ", null"
        case "greater_than":
            return f"a number above {context['gt']:g}"
        case "greater_than_equal":
            return f"a number of at least {context['ge']:g}"
        case known if known in _ALLOWED:
            return _ALLOWED[known]
        case _:
            return str(detail["msg"])


def shown(value: object) -> str:
    """Render a value that was found: short, and never what is inside of a mapping or list, which may be secret."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"{value[:80]!r}"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return str(value)[:80]
