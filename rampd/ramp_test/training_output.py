"""training_output, as ramp-workflow 0.7.0 saves it: checked, kept, and read for its scores.

Sources: rampwf/utils/submission.py (`save_submissions_output`, a fold's files), rampwf/utils/scoring.py
(`score_matrix`, `mean_score_matrix`: std with ddof 0).
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.copying import UnsafeTreeError, is_of_this_machine, move_tree, secure_tree
from rampd.errors import BadResultsError, IncompleteResultsError, ResultsError
from rampd.files import opened_regular, remove_tree
from rampd.models import Figures, FoldFigures, StepScore
from rampd.ramp_test.npz import check_npz

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Scores

_FOLD = re.compile(r"fold_(0|[1-9][0-9]{0,5})")
_STEPS = ("train", "valid", "test")
_MAX_TEXT_BYTES = 1 << 20
_MAX_ROWS = 10_000
_MAX_NAME = 100


def keep_training_output(source: Path, staging: Path, *, max_bytes: int, max_files: int) -> Scores:
    """Check what ramp-test left, move it to a folder of ours, and return its scores.

    Parameters
    ----------
    source
        The attempt's training_output; untrusted, but every process that could write to it has ended.
    staging
        Where it goes; it exists afterwards if and only if the output is complete. An older one is removed.
    max_bytes, max_files
        Bounds on the whole.

    Raises
    ------
    BadResultsError
        The output is not complete, or has something in it that is refused. The participant's; it stays where it is.
    ResultsError
        It could not be moved. The platform's.
    """
    try:
        remove_tree(staging)
        secure_tree(source, max_bytes=max_bytes, max_files=max_files)
        scores = check_training_output(source)
        move_tree(source, staging, max_bytes=max_bytes, max_files=max_files)
    except UnsafeTreeError as error:
        raise BadResultsError(f"training_output was refused: {error}.") from error
    except OSError as error:
        raise ResultsError(f"{error.filename or staging}: {error.strerror}") from error
    return scores


def check_training_output(folder: Path) -> Scores:
    """Check a training_output of regular files and return its scores.

    Every fold that there is must be complete, folds are numbered from 0 without a gap, every number parses, every
    .npz is a zip of arrays with plain dtypes. Further files are left as they are.

    Raises
    ------
    BadResultsError
        With a sentence that a participant may see.
    """
    if not folder.is_dir():
        raise IncompleteResultsError("ramp-test left no training_output.")
    numbers = sorted(
        int(match[1]) for path in folder.iterdir() if (match := _FOLD.fullmatch(path.name)) and path.is_dir()
    )
    if not numbers:
        raise IncompleteResultsError("training_output has no fold.")
    if numbers != list(range(len(numbers))):
        raise BadResultsError("training_output lacks a fold.")
    folds = [_check_fold(folder / f"fold_{number}") for number in numbers]
    if any(set(fold) != set(folds[0]) or _steps(fold) != _steps(folds[0]) for fold in folds):
        raise BadResultsError("the folds of training_output have different scores.")
    return _summarize(folds, _last_bags(_read_bags(folder / "bagged_scores.csv")))


def read_scores(folder: Path) -> Scores:
    """Return the scores of predictions that were kept before (by any dispatcher); see `check_training_output`."""
    return check_training_output(folder)


def read_figures(folder: Path) -> Figures:
    """Return everything that predictions which were checked before say in numbers: folds, times and all bags.

    Raises
    ------
    BadResultsError
        They are not what was checked.
    """
    folds: list[FoldFigures] = []
    while (fold := folder / f"fold_{len(folds)}").is_dir():
        scores = _read_fold_scores(fold / "scores.csv", fold.name)
        times_s = {
            step: _number(_read_text(path, fold.name), f"{fold.name}/{path.name}")
            for step in _STEPS
            if (path := fold / f"{step}_time").is_file()
        }
        folds.append(FoldFigures(scores, times_s))
    if not folds:
        raise IncompleteResultsError("training_output has no fold.")
    bags: dict[str, dict[str, list[float]]] = {}
    for bag in sorted(_read_bags(folder / "bagged_scores.csv"), key=lambda bag: bag.number):
        for name, value in bag.values.items():
            bags.setdefault(name, {}).setdefault(bag.step, []).append(value)
    return Figures(folds, bags)


_Fold = dict[str, dict[str, float]]
"""score -> step -> value."""


def _steps(fold: _Fold) -> set[str]:
    return {step for steps in fold.values() for step in steps}


def _check_fold(fold: Path) -> _Fold:
    where = fold.name
    state = _read_text(fold / "state.txt", where).strip()
    if state != "scored":
        raise IncompleteResultsError(f"{where} is not complete: its state is {state[:40]!r}.")
    scores = _read_fold_scores(fold / "scores.csv", where)
    has_test = "test" in _steps(scores)
    for name in ("train_time", "valid_time", *(["test_time"] if has_test else [])):
        _number(_read_text(fold / name, where), f"{where}/{name}")
    if not (fold / "y_pred_train.npz").is_file():
        raise IncompleteResultsError(f"{where} is not complete: y_pred_train.npz is missing.")
    for path in fold.iterdir():
        if path.suffix == ".npz":
            check_npz(path)
    return scores


def _read_fold_scores(path: Path, where: str) -> _Fold:
    header, rows = _read_table(path, where)
    names = [name for name in header[1:] if name != "time"]
    if header[:1] != ["step"] or not names:
        raise BadResultsError(f"{where}/scores.csv has no scores.")
    if not all(name.isprintable() and 0 < len(name) <= _MAX_NAME for name in names):
        raise BadResultsError(f"{where}/scores.csv has a score without a proper name.")
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for row in rows:
        if row[0] not in _STEPS or row[0] in found[names[0]]:
            raise BadResultsError(f"{where}/scores.csv has a row that is not train, valid or test.")
        for name, text in zip(header[1:], row[1:], strict=True):
            value = _number(text, f"{where}/scores.csv")
            if name != "time":
                found[name][row[0]] = value
    if not {"train", "valid"} <= set(found[names[0]]):
        raise BadResultsError(f"{where}/scores.csv lacks the train or the valid row.")
    return found


@dataclass(frozen=True, slots=True)
class _Bag:
    step: str
    number: float
    values: dict[str, float]


def _read_bags(path: Path) -> list[_Bag]:
    header, rows = _read_table(path, "training_output")
    if header[:2] != ["step", "n_bag"]:
        raise BadResultsError("bagged_scores.csv has no bags.")
    bags = []
    for row in rows:
        number = _number(row[1], "bagged_scores.csv")
        if not math.isfinite(number):
            raise BadResultsError(f"bagged_scores.csv has {row[1][:40]!r} where a number belongs.")
        values = {name: _number(text, "bagged_scores.csv") for name, text in zip(header[2:], row[2:], strict=True)}
        bags.append(_Bag(row[0], number, values))
    return bags


def _last_bags(bags: list[_Bag]) -> dict[tuple[str, str], float]:
    """Return the last bag's value by score and step."""
    ordered = sorted(bags, key=lambda bag: bag.number)
    return {(name, bag.step): value for bag in ordered for name, value in bag.values.items()}


def _read_table(path: Path, where: str) -> tuple[list[str], list[list[str]]]:
    text = _read_text(path, where)
    try:
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    except csv.Error as error:
        raise BadResultsError(f"{where}: {path.name} is no table.") from error
    if not rows or len(rows) > _MAX_ROWS or any(len(row) != len(rows[0]) for row in rows):
        raise BadResultsError(f"{where}: {path.name} is no table.")
    if len(set(rows[0])) != len(rows[0]):
        raise BadResultsError(f"{where}: {path.name} has two columns of one name.")
    return rows[0], rows[1:]


def _read_text(path: Path, where: str) -> str:
    try:
        # What another dispatcher kept (adoption) may be a fifo, at which an open would wait for ever.
        with opened_regular(path) as file:
            raw = file.read(_MAX_TEXT_BYTES + 1)
        if len(raw) > _MAX_TEXT_BYTES:
            raise BadResultsError(f"{where}: {path.name} is too large.")
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and is_of_this_machine(error):
            raise
        what = "missing" if isinstance(error, FileNotFoundError) else "not readable"
        raise IncompleteResultsError(f"{where} is not complete: {path.name} is {what}.") from error


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except (ValueError, OverflowError) as error:
        raise BadResultsError(f"{where} has {text.strip()[:40]!r} where a number belongs.") from error


def _summarize(folds: list[_Fold], bagged: dict[tuple[str, str], float]) -> Scores:
    scores: Scores = {}
    for name in folds[0]:
        scores[name] = {}
        for step in _STEPS:
            if step not in folds[0][name]:
                continue
            bag = bagged.get((name, step)) if step != "train" else None
            scores[name][step] = summarize([fold[name][step] for fold in folds], bag)
    return scores


def summarize(values: list[float], bagged: float | None) -> StepScore:
    """Return what the folds' values of one score at one step come to."""
    mean, std = _mean_std(values)
    return StepScore(mean, std, bagged)


def _mean_std(values: list[float]) -> tuple[float, float]:
    """Return mean and population standard deviation; NaN and infinities go through."""
    if not all(math.isfinite(value) for value in values):
        return sum(values) / len(values), math.nan
    try:
        mean = math.fsum(values) / len(values)
        return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    except OverflowError:  # a model that diverged; numpy says inf too
        return sum(value / len(values) for value in values), math.inf
