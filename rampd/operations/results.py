"""What an event's submissions achieved: the leaderboard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.errors import RampdError
from rampd.operations.opening import opened
from rampd.states import SubmissionState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rampd.config import Settings
    from rampd.models import Scores


@dataclass(frozen=True, slots=True)
class Entry:
    """One submission's place."""

    rank: int
    name: str
    id: int
    scores: Scores

    def figure(self, score: str, step: str) -> float | None:
        """Return the bagged score; the mean over the folds for train, which is not bagged."""
        figures = self.scores.get(score, {}).get(step)
        if figures is None:
            return None
        return figures.mean if step == "train" else figures.bagged


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Every scored submission, the best first."""

    event: str
    by: str | None
    """The score that it is ranked by; None where nothing is scored."""
    step: str
    scores: Sequence[str]
    steps: Sequence[str]
    entries: Sequence[Entry]


async def leaderboard(settings: Settings, *, by: str | None, step: str, ascending: bool) -> Leaderboard:
    """Rank an event's scored submissions.

    Parameters
    ----------
    settings
        The event's.
    by
        The score to rank by; None for the first.
    step
        The step to rank by; valid where there is no such step.
    ascending
        Whether the lowest is the best. Which it is, only the kit's own code knows, and that is never run here.

    Raises
    ------
    RampdError
        There is no such score.
    """
    async with opened(settings) as files:
        if files.store is None:
            return Leaderboard(settings.ramp.event_name, by, step, (), (), ())
        names = {one.id: one.name for one in await files.store.list({SubmissionState.SCORED})}
        found = {key: scores for key, scores in (await files.store.scores()).items() if scores and key in names}
    columns = list(dict.fromkeys(score for scores in found.values() for score in scores))
    if by is not None and columns and by not in columns:
        raise RampdError(f"there is no score {by!r}; there is: {', '.join(columns)}")
    present = {name for scores in found.values() for steps in scores.values() for name in steps}
    ranked_step = step if step in present else "valid"
    ranked_by = by or (columns[0] if columns else None)

    def badness(scores: Mapping[str, object], entry: Entry) -> float:
        value = entry.figure(ranked_by, ranked_step) if ranked_by and scores else None
        if value is None or math.isnan(value):
            return math.inf
        return value if ascending else -value

    entries = [Entry(0, names[key], key, scores) for key, scores in found.items()]
    entries.sort(key=lambda entry: (badness(entry.scores, entry), entry.id))
    return Leaderboard(
        settings.ramp.event_name,
        ranked_by,
        ranked_step,
        columns,
        [name for name in ("valid", "test") if name in present],
        [Entry(rank, entry.name, entry.id, entry.scores) for rank, entry in enumerate(entries, start=1)],
    )
