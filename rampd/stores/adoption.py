"""An event that another dispatcher served before: what its folders say became of each submission."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rampd.errors import BadResultsError, SubmissionRefusedError
from rampd.states import SubmissionState
from rampd.stores.folders import check_name, is_ignored, look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rampd.models import Scores


@dataclass(frozen=True, slots=True)
class Finished:
    """A submission that has run under another dispatcher."""

    name: str
    state: SubmissionState
    finished_at: float
    fingerprint: str
    scores: Scores


@dataclass(slots=True)
class Adoption:
    """What a first start takes over."""

    finished: list[Finished] = field(default_factory=list)
    """In the order in which they ended."""
    new: int = 0

    @property
    def scored(self) -> int:
        """How many have predictions."""
        return sum(one.state is SubmissionState.SCORED for one in self.finished)

    @property
    def training_error(self) -> int:
        """How many have only a log."""
        return len(self.finished) - self.scored


def find_adoption(
    submissions_dir: Path,
    predictions_dir: Path,
    logs_dir: Path,
    sandbox_dir: str,
    read_scores: Callable[[Path], Scores] | None,
) -> Adoption | None:
    """Return what the folders of an event say; None where nobody served it before. Blocking, writes nothing.

    Predictions that cannot be read for scores are scored all the same, without any: they were once.
    """
    if not (_has_something(predictions_dir) or _has_something(logs_dir)):
        return None
    adoption = Adoption()
    for path in sorted(submissions_dir.iterdir()) if submissions_dir.is_dir() else []:
        if is_ignored(path.name) or path.name == sandbox_dir:
            continue
        try:
            check_name(path.name)
            seen = look(path)
        except (SubmissionRefusedError, OSError):
            continue  # the first scan says why it is none
        predictions, log_path = predictions_dir / path.name, logs_dir / path.name / "log"
        if predictions.is_dir() and any(predictions.iterdir()):
            scores = _read(predictions, read_scores)
            finished_at = predictions.stat().st_mtime
            adoption.finished.append(Finished(path.name, SubmissionState.SCORED, finished_at, seen.fingerprint, scores))
        elif log_path.is_file():
            finished_at = log_path.stat().st_mtime
            adoption.finished.append(
                Finished(path.name, SubmissionState.TRAINING_ERROR, finished_at, seen.fingerprint, {})
            )
        else:
            adoption.new += 1
    adoption.finished.sort(key=lambda one: one.finished_at)
    return adoption


def _has_something(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _read(predictions: Path, read_scores: Callable[[Path], Scores] | None) -> Scores:
    if read_scores is None:
        return {}
    try:
        return read_scores(predictions)
    except (BadResultsError, OSError):
        return {}
