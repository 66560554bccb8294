"""What a training_output says in numbers: as the parameters of one bulk statement, and read back from the board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rampd.ramp_test import summarize
from rampd.stores.board_arrays import stored_array, stored_none

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rampd.models import Figures, Scores
    from rampd.stores.board_database import Row

_STEPS = ("train", "valid", "test")
_BAGGED = ("valid", "test")


def bulk_parameters(figures: Figures, scores: Scores) -> dict[str, Any]:
    """Return the parameters of `Statements.set_scored`.

    Parameters
    ----------
    figures
        Of folds and bags; fold i is the i-th row of the board.
    scores
        What was decided: its last bags count.

    Returns
    -------
    dict
        Arrays of plain floats, None where a step is missing: what the board has then stays (the score type's worst).
    """
    cells = [
        (number, name, *(values.get(step) for step in _STEPS))
        for number, fold in enumerate(figures.folds)
        for name, values in fold.scores.items()
    ]
    parameters: dict[str, Any] = {
        "numbers": list(range(len(figures.folds))),
        "fold_numbers": [cell[0] for cell in cells],
        "fold_scores": [cell[1] for cell in cells],
        "scores": list(scores),
    }
    for place, step in enumerate(_STEPS, start=2):
        parameters[f"{step}_times"] = [fold.times_s.get(step) for fold in figures.folds]
        parameters[f"fold_{step}"] = [cell[place] for cell in cells]
    for step in _BAGGED:
        parameters[step] = [steps[step].bagged if step in steps else None for steps in scores.values()]
        parameters[f"{step}_bags"] = [_bags(figures.bags.get(name, {}), step) for name in scores]
    return parameters


def _bags(of_score: Mapping[str, Any], step: str) -> bytes:
    values = of_score.get(step)
    return stored_array(values) if values else stored_none()


def by_submission(rows: Iterable[Row]) -> dict[int, Scores]:
    """Return the scores of submissions, by their ids, from the rows of `Statements.figures`."""
    found: dict[int, Scores] = {}
    for row in rows:
        steps = found.setdefault(row["id"], {})[row["name"]] = {}
        bags = {"train": None, "valid": row["valid_bag"], "test": row["test_bag"]}
        for step, bag in bags.items():
            values = [value for value in row[step] if value is not None]
            if values and (step != "test" or row["has_test"]):
                steps[step] = summarize(values, bag)
    return found
