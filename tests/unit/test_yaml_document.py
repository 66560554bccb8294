"""Strict YAML: what is refused and in which words, and on which line each key stands."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rampd.errors import ConfigError
from rampd.yaml_document import YamlDocument, as_written, read_yaml

if TYPE_CHECKING:
    from pathlib import Path

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where the file is written."""
    return tmp_path / "config.yml"


def read(file: Path, text: str | bytes) -> YamlDocument:
    """Read a file of this content."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


def problem(file: Path, text: str | bytes | None = None) -> str:
    """Return the one sentence that a file is refused with, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read_yaml(file) if text is None else read(file, text)
    (line,) = caught.value.problems
    assert line.startswith(f"{file}:")
    return line.removeprefix(f"{file}:").strip()


def test_a_missing_file_is_told(file: Path) -> None:
    """Nothing near it looks like a config: one word is enough."""
    assert problem(file) == "is missing"


def test_a_missing_file_names_the_configs_near_it(tmp_path: Path) -> None:
    """Who mistypes the event's name sees which events there are."""
    for event in ("iris", "mars"):
        (tmp_path / "events" / event).mkdir(parents=True)
        (tmp_path / "events" / event / "config.yml").touch()
    there = ", ".join(str(tmp_path / "events" / event / "config.yml") for event in ("iris", "mars"))
    assert problem(tmp_path / "events" / "irsi" / "config.yml") == f"is missing; there is: {there}"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder is refused as one."""
    assert problem(tmp_path) == "is a folder; allowed: a YAML file"


def test_a_folder_names_the_config_inside(file: Path) -> None:
    """Who gives the event's folder is told its file."""
    file.touch()
    assert problem(file.parent) == f"is a folder; allowed: a YAML file; did you mean {file}?"


def test_a_file_is_no_folder_on_the_way(file: Path) -> None:
    """What the system says of an unusable path is passed on."""
    file.touch()
    assert problem(file / "config.yml") == "cannot be read: Not a directory"


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    """No file can be called so."""
    assert problem(tmp_path / ("x" * 300)) == "cannot be read: File name too long"


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "---\n", "\ufeff"])
def test_an_empty_file_has_no_data(file: Path, text: str) -> None:
    """Empty is no error here: what it means is the reader's business."""
    found = read(file, text)
    assert (found.data, found.problems) == (None, ())


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    """Windows editors write one."""
    assert read(file, b"\xef\xbb\xbfa: 1\r\n").data == {"a": 1}


@pytest.mark.parametrize(("text", "line"), [("a:\n\tb: 1\n", 2), ("a:\n  b: 1\n \tc: 2\n", 3), ("a: 1\nb:\t- c\n", 2)])
def test_a_tab_is_told(file: Path, text: str, line: int) -> None:
    """The most frequent mistake has its own sentence."""
    assert problem(file, text) == f"{line}: a tab stands here where YAML wants spaces; replace it by spaces"


def test_a_second_document_is_told(file: Path) -> None:
    """One file is one config."""
    assert problem(file, "a: 1\n---\nb: 2\n") == "2: a second document begins here (---); allowed: one"


def test_broken_yaml_is_told_with_its_line(file: Path) -> None:
    """The parser's words, the line, and the key that stands there."""
    told = problem(file, "a: 1\nb: [1, 2\nc: 3\n")
    assert told == "3: is no YAML: expected ',' or ']', but got ':'; found: 'c:' and more"


@pytest.mark.parametrize(
    "text",
    [
        "key: hunter2: x",
        "key: *hunter2",
        "key: !hunter2 x",
        "key: !hunter2!x y",
        'key: "hunter2\nother: 1',
        "env: {TOKEN: hunter2, @}",
        'key: "x\n  hunter2" y',
        "key: &hunter2 1\nother: &hunter2 2\nx: *y",
        "key: |hunter2",
        "key: @hunter2",
        "key: `hunter2",
        "key: %hunter2",
        "- hunter2\nkey: 1",
        "hunter2\nkey: 1",
        "key: !!float hunter2",
        "key: !!int hunter2",
        "key: !!timestamp hunter2",
        "key: !!bool hunter2",
        "key: !!binary hünter2",
        "key: !!map hunter2",
        "key: hunter2\n  more: 1",
        'key: "hunter2\\z"',
        "key: hunter2\x07",
        "? [hunter2]\n: 1",
    ],
)
def test_broken_yaml_tells_no_value(file: Path, text: str) -> None:
    """Half-written secrets stay where they are: only keys are repeated."""
    assert "hunter2" not in problem(file, text)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "&a {b: *a}", "- " * 100, "[" * 60 + "]" * 60, "[" * 20_000])
def test_a_bomb_is_refused(file: Path, text: str) -> None:
    """Aliases that stand for millions of values, that hold themselves, and deep nesting end as one sentence."""
    assert problem(file, text).endswith("50 levels")


def test_a_bomb_of_merges_is_refused(file: Path) -> None:
    """Merge keys count like aliases."""
    lines = [f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 10)}]}}" for n in range(1, 8)]
    assert "allowed: 20000 values" in problem(file, "\n".join(["k0: &k0 {a: 1}", *lines]))


def test_what_is_below_the_bounds_is_read(file: Path) -> None:
    """Aliases as such are fine, and so are thousands of values."""
    found = read(file, "a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\nf: [" + "1, " * 15_000 + "]\n")
    assert (found.data["c"], found.data["d"], len(found.data["f"])) == ({"b": 1}, {"b": 1, "e": 2}, 15_000)


def test_a_large_file_is_refused_unread(file: Path) -> None:
    """A file that is no config costs one mebibyte at most; the size is looked at, not the content."""
    with file.open("wb") as large:
        os.truncate(large.fileno(), 1 << 40)
    assert problem(file) == "is larger than 1 MiB; allowed: an event's config"


def test_a_file_of_just_the_allowed_size_is_read(file: Path) -> None:
    """The bound is one mebibyte."""
    assert read(file, b"a: 1\n#" + b"x" * ((1 << 20) - 6)).data == {"a": 1}


def test_other_encodings_are_refused(file: Path) -> None:
    """The line and the byte say where the text is not UTF-8."""
    assert problem(file, b"a: 1\nb: caf\xe9\n") == "2: is not UTF-8 text (byte 0xe9)"


def test_control_characters_are_refused(file: Path) -> None:
    """A NUL is no YAML, and no crash."""
    assert problem(file, "a: \0").startswith("is no YAML: ")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("2026-99-99", "timestamp"),
        ("!!timestamp now", "timestamp"),
        ("1" * 5000, "int"),
        ("!!int x", "int"),
        ("!!float x", "float"),
        ("!!bool maybe", "bool"),
    ],
)
def test_a_value_that_python_cannot_hold_is_told(file: Path, value: str, kind: str) -> None:
    """Wherever it stands, its line is named."""
    told = f"2: a value stands here that is no {kind}; put it into quotes if it is a text"
    assert problem(file, f"a:\n- b: {value}\n") == told


def test_an_object_is_refused(file: Path) -> None:
    """Nothing is ever made but plain values."""
    assert problem(file, "a: !!python/object/apply:os.getpid []").startswith("1: is no YAML: could not determine")


def test_duplicate_keys_are_problems(file: Path) -> None:
    """Every repetition is named with both its lines, at any depth, in lists too, and the file is read nevertheless."""
    found = read(file, "a: 1\nb: {c: 1, d: 2, c: 3}\na: 2\ne:\n- f: 1\n  f: 2\na: 3\n")
    assert sorted(found.problems) == [
        "2: c: stands twice (first on line 2); keep one",
        "3: a: stands twice (first on line 1); keep one",
        "6: f: stands twice (first on line 5); keep one",
        "7: a: stands twice (first on line 1); keep one",
    ]
    assert found.data["a"] == 3


def test_an_aliased_duplicate_is_told_once(file: Path) -> None:
    """It stands in the file once, however often it is used."""
    assert len(read(file, "a: &a {b: 1, b: 2}\nc: [*a, *a]\n").problems) == 1


def test_two_merges_are_no_duplicate(file: Path) -> None:
    """A merge key may be repeated."""
    assert read(file, "a: &a {b: 1}\nc: &c {d: 2}\ne:\n  <<: *a\n  <<: *c\n").problems == ()


def test_every_part_has_its_line(file: Path) -> None:
    """An entry of a mapping has its key's line, one of a list its own."""
    lines = read(file, "# head\na:\n  b:\n    1\n  c: {d: 2,\n      e: 3}\nf:\n- x\n- y: 1\n1: z\n").lines
    assert lines == {
        (): 2,
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 5,
        ("a", "c", "d"): 5,
        ("a", "c", "e"): 6,
        ("f",): 7,
        ("f", 0): 8,
        ("f", 1): 9,
        ("f", 1, "y"): 9,
        ("1",): 10,
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@#,? \n\t<=1.~\0\x85", max_size=25) | st.binary(max_size=25))
def test_whatever_the_bytes_are_it_is_data_or_problems(file: Path, text: str | bytes) -> None:
    """No file gets beyond the two answers."""
    try:
        found = read(file, text)
    except ConfigError as error:
        assert str(error).startswith(f"{file}:")  # noqa: PT017 -- either answer is right
    else:
        assert all(line >= 1 for line in found.lines.values())


@pytest.mark.parametrize("written", ["0123", "1_000", "0x1F", "12:30:00", "-7", "1.10", "1.5e+3", ".inf"])
def test_a_number_knows_how_it_was_written(file: Path, written: str) -> None:
    """What is a number to YAML may be a password, a version or a name to whoever wrote it."""
    value = read(file, f"a: {written}").data["a"]
    assert isinstance(value, int | float)
    assert as_written(value) == written


def test_what_is_beyond_the_first_65536_characters_is_one_character(file: Path) -> None:
    """JSON, which YAML includes, writes it as two halves; the bytes of a path that are no text stay what they are."""
    assert read(file, json.dumps({"a": "😀", "b/\udcff": "é\udcff"})).data == {"a": "😀", "b/\udcff": "é\udcff"}


@pytest.mark.parametrize("text", [r'a: "\ud83d"', r'"\ude00\ud83d": 1', r'a: ["\ud800"]'])
def test_half_of_a_character_is_no_text(file: Path, text: str) -> None:
    """Nothing that it could be handed on to takes it: no process, no file, no database."""
    assert problem(file, text) == "1: a text has half of a character in it"
