"""A log as `rampctl logs` shows it while it grows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rampd.cli.commands import watching

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_lines_are_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever pieces they come; the last one at the end, though it lacks its own."""
    monkeypatch.setattr(watching, "_CHUNK", 4)
    log = tmp_path / "log"
    shown = watching._Shown(log, as_json=False)
    shown.go_on()
    for text, expected in (("one and on", ""), ("ly\n\ntwo", "one and only\n\n"), ("\nthree", "two\n"), ("!", "")):
        with log.open("a") as file:
            file.write(text)
        shown.go_on()
        assert capsys.readouterr().out == expected
    log.write_text("anew\nfour")
    shown.go_on()
    shown.end()
    assert capsys.readouterr().out == "anew\nfour\n"


def test_a_long_line_costs_what_its_length_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A progress bar without a newline may be megabytes: it costs little more than as much in lines."""
    monkeypatch.setattr(watching, "_CHUNK", 512)
    log = tmp_path / "log"
    took_s = []
    for data in (b"x" * 63 + b"\n", b"x" * 64):
        log.write_bytes(data * (1 << 16))
        shown = watching._Shown(log, as_json=False)
        begun = time.process_time()
        shown.go_on()
        took_s.append(time.process_time() - begun)
        shown.end()
        assert len(capsys.readouterr().out) >= 1 << 22
    in_lines_s, in_one_s = took_s
    assert in_one_s < 2 * in_lines_s
