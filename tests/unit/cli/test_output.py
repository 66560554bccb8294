from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from rampd.cli import output
from rampd.models import StepScore
from rampd.states import SubmissionState

if TYPE_CHECKING:
    import pytest


@given(st.text())
def test_escaped_text_cannot_steer_a_terminal(text: str) -> None:
    """Whatever a participant wrote, what is shown is printable, and can be encoded."""
    shown = output.escaped(text)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_printable_text_stays_as_it_is() -> None:
    """Umlauts and square brackets are no danger."""
    assert output.escaped("naïve [bold]Müller[/bold] 花") == "naïve [bold]Müller[/bold] 花"


def test_lines_stay_lines() -> None:
    """A traceback keeps its shape and loses its colours."""
    assert output.escaped_lines("one\r\n\ttwo\x1b[0m") == "one\n\ttwo\\x1b[0m"


def test_json_has_null_for_what_json_has_not() -> None:
    """NaN and infinities, enums, paths, dataclasses and lone surrogates all have a place."""
    value = {
        "score": StepScore(math.nan, math.inf, None),
        "state": SubmissionState.NEW,
        "path": Path("/a"),
        "text": "\udcff",
        "pair": (1, 2),
    }
    assert json.loads(output.to_json(value)) == {
        "score": {"mean": None, "std": None, "bagged": None},
        "state": "new",
        "path": "/a",
        "text": "\\udcff",
        "pair": [1, 2],
    }


def test_timestamps_are_rfc_3339() -> None:
    """In UTC, with a Z."""
    assert output.timestamp(0.25) == "1970-01-01T00:00:00.250Z"
    assert output.timestamp(None) is None


def test_a_piped_table_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers to the right, no trailing spaces, control characters escaped."""
    output.print_table(("name", "n"), [("a\nb", "1"), ("c", "20")], numbers=("n",))
    assert capsys.readouterr().out == "NAME   N\na\\nb   1\nc     20\n"
