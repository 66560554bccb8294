"""Scores as a text that a database column keeps."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from rampd.models import StepScore

if TYPE_CHECKING:
    from rampd.models import Scores


def dump_scores(scores: Scores) -> str:
    """Return scores as JSON; NaN and infinities, which JSON has not, are texts."""
    plain = {
        score: {
            step: {"mean": _kept(figures.mean), "std": _kept(figures.std), "bagged": _kept(figures.bagged)}
            for step, figures in steps.items()
        }
        for score, steps in scores.items()
    }
    return json.dumps(plain, allow_nan=False)


def _kept(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value


def load_scores(text: str | None) -> Scores:
    """Return the scores that `dump_scores` wrote; none for None."""
    plain = json.loads(text) if text else {}
    return {
        score: {
            step: StepScore(
                float(figures["mean"]),
                float(figures["std"]),
                None if figures["bagged"] is None else float(figures["bagged"]),
            )
            for step, figures in steps.items()
        }
        for score, steps in plain.items()
    }
