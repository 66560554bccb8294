"""Strict YAML: one document, no duplicate keys, bounded, with the line of every key. Knows nothing of what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from rampd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_BYTES = 1 << 20
_MAX_NODES = 20_000
"""Aliases count as often as they are used: a few lines can stand for billions of nodes."""
_MAX_DEPTH = 50

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A YAML file's data, and where in the file each part of it stands."""

    data: Any
    lines: dict[KeyPath, int]
    """From 1; a key's line where it is a mapping's entry."""
    problems: tuple[str, ...]
    """What is wrong with the file although it can be read: duplicate keys, as `line: sentence`."""


def read_yaml(path: Path) -> YamlDocument:
    """Read one YAML file.

    Raises
    ------
    ConfigError
        It is missing, unreadable, no text, too large, no YAML, or more than one document.
    """
    text = _read_text(path)
    try:
        return _parse(text)
    except _UnreadableError as error:
        raise ConfigError([f"{path}:{error}"]) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError([f"{path}:{_sentence(error, text)}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: is no YAML: {' '.join(str(error).split())}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: is nested too deep; allowed: {_MAX_DEPTH} levels"]) from error


class WrittenInt(int):
    """A whole number that knows how it was written: `0123` is 83 to YAML, and a password to whoever wrote it."""

    written: str


class WrittenFloat(float):
    """A number that knows how it was written: `1.10` is 1.1 to YAML, and may be a version."""

    written: str


def as_written(value: object) -> str:
    """Return a value of a document as a text: a number as it stands in the file, wherever a text was meant."""
    return value.written if isinstance(value, WrittenInt | WrittenFloat) else str(value)


class _UnreadableError(Exception):
    """Carries `line: sentence`."""


class _Loader(yaml.SafeLoader):
    """Says where a value stands that Python cannot hold: PyYAML lets whatever its conversion raises go by."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.rpartition(":")[2]
            raise _UnreadableError(
                f"{node.start_mark.line + 1}: a value stands here that is no {kind}; put it into quotes if it is a text"
            ) from error

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value = super().construct_scalar(node)
        if value.isascii():
            return value
        # JSON, which YAML includes, writes what is beyond U+FFFF as two halves, and PyYAML leaves them apart.
        whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        try:
            whole.encode("utf-8", "surrogateescape")  # a path may have bytes that are no text
        except UnicodeEncodeError as error:
            raise _UnreadableError(f"{node.start_mark.line + 1}: a text has half of a character in it") from error
        return whole

    def construct_written_int(self, node: yaml.ScalarNode) -> WrittenInt:
        number = WrittenInt(self.construct_yaml_int(node))
        number.written = node.value
        return number

    def construct_written_float(self, node: yaml.ScalarNode) -> WrittenFloat:
        number = WrittenFloat(self.construct_yaml_float(node))
        number.written = node.value
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_written_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_written_float)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([f"{path}: is missing{_others_near(path)}"]) from None
    except IsADirectoryError:
        inside = path / "config.yml"
        hint = f"; did you mean {inside}?" if inside.is_file() else ""
        raise ConfigError([f"{path}: is a folder; allowed: a YAML file{hint}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError([f"{path}: is larger than {_MAX_BYTES >> 20} MiB; allowed: an event's config"])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 text (byte {raw[error.start]:#04x})"]) from error


def _others_near(path: Path) -> str:
    """Name the configs that a mistyped path may have meant."""
    for folder in path.absolute().parents[:4]:
        found = [*folder.glob("events/*/config.yml"), *(folder.glob("*/config.yml") if folder.name == "events" else ())]
        if found:
            return f"; there is: {', '.join(str(other) for other in sorted(set(found))[:5])}"
    return ""


def _parse(text: str) -> YamlDocument:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlDocument(None, {}, ())
        _check_size(node)
        lines: dict[KeyPath, int] = {}
        problems = tuple(_duplicates(node))
        _note_lines(node, (), lines)
        return YamlDocument(loader.construct_document(node), lines, problems)
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Refuse a document that its aliases make huge or endless, before anything is built from it."""
    seen = 0
    stack: list[tuple[yaml.Node, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        seen += 1
        if seen > _MAX_NODES or depth > _MAX_DEPTH:
            line = node.start_mark.line + 1
            raise _UnreadableError(
                f"{line}: is too large or too deep (aliases counted as often as they are used); "
                f"allowed: {_MAX_NODES} values, {_MAX_DEPTH} levels"
            )
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                stack += [(key, depth + 1), (value, depth + 1)]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(item, depth + 1) for item in node.value]


def _duplicates(root: yaml.Node) -> Iterator[str]:
    stack = [root]
    visited: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                stack.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in first and key.value != "<<":
                    yield f"{line}: {key.value}: stands twice (first on line {first[key.value]}); keep one"
                first.setdefault(key.value, line)


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                inner = (*path, key.value)
                lines[inner] = key.start_mark.line + 1
                _note_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), lines)


def _sentence(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.split("\n")
    content = lines[line - 1] if line <= len(lines) else ""
    if "\t" in content[: len(content) - len(content.lstrip())] or "'\\t'" in str(error.problem):
        return f"{line}: a tab stands here where YAML wants spaces; replace it by spaces"
    if "single document" in str(error.context) or "another document" in str(error.problem):
        return f"{line}: a second document begins here (---); allowed: one"
    # The file may hold secrets, and a half-written line does not say which of its words is one: keys are shown alone.
    problem = re.sub(r"'([^']*)'", _hidden, str(error.problem or error.context))
    key, colon, _ = content.strip().partition(":")
    return f"{line}: is no YAML: {problem}" + (f"; found: {key[:80] + colon!r} and more" if colon else "")


def _hidden(quoted: re.Match[str]) -> str:
    word = quoted[1]
    return quoted[0] if len(word) == 1 or word.startswith("<") else "(hidden)"
