"""What ramp-test leaves behind: checked, kept, and read for its scores."""

from __future__ import annotations

import math
import os
import shutil
import statistics
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rampd.errors import BadResultsError, IncompleteResultsError
from rampd.models import StepScore
from rampd.ramp_test import check_training_output, read_scores
from support.training_output import DEFAULT_SCORES, build_training_output, npy, npz

_PICKLE = npz(y_pred=npy([1.0], descr="|O"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return a complete training_output of three folds, with a test set."""
    folder = tmp_path / "submissions" / "mine" / "training_output"
    build_training_output(folder, n_folds=3)
    return folder


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_scores_are_ramp_workflows(output: Path) -> None:
    """Mean and std (ddof 0) over the folds, and the last bag; train is not bagged."""
    scores = check_training_output(output)
    assert set(scores) == set(DEFAULT_SCORES)
    for name, values in DEFAULT_SCORES.items():
        assert list(scores[name]) == ["train", "valid", "test"]
        for value, step in zip(values, scores[name], strict=True):
            folds = [value + fold / 100 for fold in range(3)]
            found = scores[name][step]
            assert found.mean == pytest.approx(statistics.fmean(folds), rel=1e-12)
            assert found.std == pytest.approx(statistics.pstdev(folds), rel=1e-12)
            assert found.bagged == (None if step == "train" else value + 2 / 1000)


def test_predictions_that_were_kept_are_read_alike(output: Path) -> None:
    """`read_scores` is for those of an earlier dispatcher."""
    assert read_scores(output) == check_training_output(output)


def test_without_a_test_set_there_are_no_test_scores(tmp_path: Path) -> None:
    """Neither test_time nor a test row is missed."""
    build_training_output(tmp_path / "training_output", with_test=False)
    scores = check_training_output(tmp_path / "training_output")
    assert {step for steps in scores.values() for step in steps} == {"train", "valid"}


def test_one_fold_has_no_deviation(tmp_path: Path) -> None:
    """With ddof 0 that is 0, not NaN."""
    build_training_output(tmp_path / "training_output", n_folds=1)
    assert check_training_output(tmp_path / "training_output")["acc"]["valid"] == StepScore(0.95, 0.0, 0.95)


def test_more_than_ten_folds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """fold_10 follows fold_9, and the last bag is the one with the highest number."""
    build_training_output(tmp_path / "training_output", n_folds=12)
    assert check_training_output(tmp_path / "training_output")["acc"]["test"].bagged == 0.96 + 11 / 1000


def test_the_last_bag_counts_wherever_it_stands(output: Path) -> None:
    """It is the number that says which is last, not the line."""
    path = output / "bagged_scores.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]))
    assert check_training_output(output)["acc"]["valid"].bagged == 0.95 + 2 / 1000


def test_train_is_never_bagged(output: Path) -> None:
    """Not even where a table says so."""
    with (output / "bagged_scores.csv").open("a") as file:
        file.write("train,0,0.5,0.5\n")
    assert check_training_output(output)["acc"]["train"].bagged is None


def test_a_score_without_bags_has_none(output: Path) -> None:
    """A bagged_scores.csv that says nothing of a score leaves it null."""
    (output / "bagged_scores.csv").write_text("step,n_bag,acc\nvalid,0,0.5\n")
    scores = check_training_output(output)
    assert scores["nll"]["valid"].bagged is None
    assert (scores["acc"]["valid"].bagged, scores["acc"]["test"].bagged) == (0.5, None)


@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-inf"])
def test_nan_and_infinities_are_kept(output: Path, word: str) -> None:
    """They are scores that happen; their deviation is NaN, the other scores' are not touched."""
    _replace(output / "fold_1" / "scores.csv", "valid,0.96,", f"valid,{word},")
    _replace(output / "bagged_scores.csv", "valid,2,0.952,", f"valid,2,{word},")
    scores = check_training_output(output)
    found = scores["acc"]["valid"]
    assert str(found.mean) == str(float(word))
    assert math.isnan(found.std)
    assert str(found.bagged) == str(float(word))
    assert math.isfinite(scores["nll"]["valid"].std)


@pytest.mark.parametrize("value", ["1e200", "1.7e308", "-1.7e308"])
def test_huge_scores_are_no_error(output: Path, value: str) -> None:
    """A model that diverges has scores whose square is no number any more."""
    for fold in range(2):
        _replace(output / f"fold_{fold}" / "scores.csv", f"valid,{0.95 + fold / 100},", f"valid,{value},")
    found = check_training_output(output)["acc"]["valid"]
    assert abs(found.mean) > 1e199
    assert not found.std < 1e199


@pytest.mark.parametrize(
    "missing",
    [
        "bagged_scores.csv",
        "fold_0/state.txt",
        "fold_1/scores.csv",
        "fold_2/train_time",
        "fold_0/test_time",
        "fold_1/y_pred_train.npz",
    ],
)
def test_a_missing_file_makes_it_incomplete(output: Path, missing: str) -> None:
    """The sentence names the file."""
    (output / missing).unlink()
    with pytest.raises(IncompleteResultsError, match=Path(missing).name):
        check_training_output(output)


def test_nothing_at_all_is_incomplete(tmp_path: Path) -> None:
    """No folder, an empty one, and one with an empty fold: what `os._exit(0)` leaves."""
    folder = tmp_path / "training_output"
    with pytest.raises(IncompleteResultsError, match="no training_output"):
        check_training_output(folder)
    folder.mkdir()
    with pytest.raises(IncompleteResultsError, match="no fold"):
        check_training_output(folder)
    (folder / "fold_0").mkdir()
    with pytest.raises(IncompleteResultsError, match="fold_0 is not complete"):
        check_training_output(folder)


@pytest.mark.parametrize("state", ["training_error", "trained", "", "scored!", "validated\x1b[0m"])
def test_an_unfinished_state_makes_it_incomplete(output: Path, state: str) -> None:
    """Each fold must say `scored`; what it says instead is shown escaped."""
    (output / "fold_2" / "state.txt").write_text(state)
    with pytest.raises(IncompleteResultsError, match="fold_2 is not complete") as caught:
        check_training_output(output)
    assert caught.value.reason.isprintable()


@pytest.mark.parametrize("gap", ["fold_0", "fold_1"])
def test_a_gap_in_the_folds_is_refused(output: Path, gap: str) -> None:
    """Folds are numbered from 0, and the mean is over all of them."""
    shutil.rmtree(output / gap)
    with pytest.raises(BadResultsError, match="lacks a fold"):
        check_training_output(output)


@pytest.mark.parametrize("name", ["fold_01", "fold_", "fold_x", "fold_9999999", "fold_-1", "bagged"])
def test_folders_that_are_no_folds_are_left_alone(output: Path, name: str) -> None:
    """Only ramp-test's own names count."""
    (output / name).mkdir()
    (output / "fold_3").write_text("a file")
    assert len(check_training_output(output)) == 2


@pytest.mark.parametrize("text", ["", "abc", "0.9.5", "1,5", "0x10", "--1", "None", "\x1b[31m"])
@pytest.mark.parametrize("name", ["scores.csv", "bagged_scores.csv", "train_time"])
def test_what_is_no_number_is_refused(output: Path, name: str, text: str) -> None:
    """In a score, a bag or a time; what stood there is shown escaped."""
    match name:
        case "scores.csv":
            _replace(output / "fold_1" / name, "valid,0.96,", f"valid,{text},")
        case "bagged_scores.csv":
            _replace(output / name, "valid,1,0.951,", f"valid,1,{text},")
        case _:
            (output / "fold_1" / name).write_text(text)
    with pytest.raises(BadResultsError) as caught:
        check_training_output(output)
    assert caught.value.reason.isprintable()


@pytest.mark.parametrize("bag", ["nan", "inf", "-inf", "", "x", "1e400"])
def test_a_bag_without_a_number_is_refused(output: Path, bag: str) -> None:
    """There is no last one among them."""
    _replace(output / "bagged_scores.csv", "valid,1,", f"valid,{bag},")
    with pytest.raises(BadResultsError, match="where a number belongs"):
        check_training_output(output)


@pytest.mark.parametrize(
    "table",
    [
        "",
        "\n\n",
        "step,acc,nll,time",
        "step,acc,nll,time\ntrain,1,1,1",
        "step,acc,nll,time\ntrain,1,1,1\ntest,1,1,1",
        "step,acc,nll,time\ntrain,1,1,1\nvalid,1,1",
        "step,acc,nll,time\ntrain,1,1,1\nvalid,1,1,1\nvalid,1,1,1\ntest,1,1,1",
        "step,acc,nll,time\ntrain,1,1,1\nvalid,1,1,1\nother,1,1,1",
        "step,acc,acc,time\ntrain,1,1,1\nvalid,1,1,1\ntest,1,1,1",
        "step,time\ntrain,1\nvalid,1\ntest,1",
        "fold,acc,nll,time\ntrain,1,1,1\nvalid,1,1,1\ntest,1,1,1",
        'step,acc,nll,time\ntrain,"1,1,1',
        'step,acc,nll,time\ntrain,"1"1,1,1\nvalid,1,1,1',
        "step,acc,nll,time\n" + "train,1,1,1\n" * 20_000,
        "x" * (2 << 20),
        f"step,{'x' * 200_000}",
        "step,,time\ntrain,1,1\nvalid,1,1\ntest,1,1",
        "step,a\0\x1bc,time\ntrain,1,1\nvalid,1,1\ntest,1,1",
        f"step,{'x' * 101},time\ntrain,1,1\nvalid,1,1\ntest,1,1",
    ],
)
def test_a_broken_table_is_refused(output: Path, table: str) -> None:
    """A fold has one train, one valid and at most one test row, of as many columns as its header."""
    (output / "fold_0" / "scores.csv").write_text(table)
    with pytest.raises(BadResultsError):
        check_training_output(output)


@pytest.mark.parametrize(
    "table", ["", "step,acc\nvalid,1\n", "n_bag,step,acc\n0,valid,1\n", "step,n_bag,acc\nvalid,0\n"]
)
def test_a_broken_table_of_bags_is_refused(output: Path, table: str) -> None:
    """Its first columns are step and n_bag, its rows are whole."""
    (output / "bagged_scores.csv").write_text(table)
    with pytest.raises(BadResultsError):
        check_training_output(output)


@pytest.mark.parametrize(
    "table",
    [
        "step,acc,time\ntrain,1,1\nvalid,1,1\ntest,1,1\n",
        "step,acc,nll,f1,time\ntrain,1,1,1,1\nvalid,1,1,1,1\ntest,1,1,1,1\n",
        "step,acc,nll,time\ntrain,1,1,1\nvalid,1,1,1\n",
    ],
)
def test_folds_with_different_scores_are_refused(output: Path, table: str) -> None:
    """A mean needs every fold: other score types, or a test row that only some folds have."""
    (output / "fold_1" / "scores.csv").write_text(table)
    with pytest.raises(BadResultsError, match="different scores"):
        check_training_output(output)


@pytest.mark.parametrize("name", ["fold_1/scores.csv", "fold_0/state.txt", "bagged_scores.csv", "fold_2/train_time"])
def test_bytes_that_are_no_text_are_refused(output: Path, name: str) -> None:
    """ramp-test writes ASCII."""
    (output / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadResultsError):
        check_training_output(output)


@pytest.mark.parametrize("name", ["y_pred_train.npz", "y_pred_test.npz", "extra.npz"])
def test_a_pickle_among_the_predictions_is_refused(output: Path, name: str) -> None:
    """Any .npz of a fold is looked into, ramp-test's own or not."""
    (output / "fold_2" / name).write_bytes(_PICKLE)
    with pytest.raises(BadResultsError, match="pickle"):
        check_training_output(output)


@pytest.mark.parametrize("name", [b"\xff.npz", b"\x1b[31m.npz", "é.npz".encode()])
def test_a_strange_name_is_printable_in_the_reason(output: Path, name: bytes) -> None:
    """The reason goes into databases and onto terminals."""
    (output / "fold_0" / os.fsdecode(name)).write_bytes(_PICKLE)
    with pytest.raises(BadResultsError) as caught:
        check_training_output(output)
    assert caught.value.reason.isprintable()


_FILES = ["bagged_scores.csv", "fold_0/scores.csv", "fold_1/state.txt", "fold_1/train_time", "fold_0/y_pred_test.npz"]
_CELLS = st.sampled_from(
    ["step", "n_bag", "train", "valid", "time", "acc", "nan", "inf", "1e999", "-1", "1_0", "\0", '"']
)
_TABLES = st.lists(st.lists(_CELLS, max_size=4).map(",".join), max_size=5).map("\n".join).map(str.encode)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(_FILES), content=st.one_of(st.binary(max_size=60), _TABLES))
def test_damaged_files_raise_nothing_else(output: Path, name: str, content: bytes) -> None:
    """Whatever a participant writes into any of the files, it is theirs."""
    path = output / name
    before = path.read_bytes()
    path.write_bytes(content)
    with suppress(BadResultsError):
        check_training_output(output)
    path.write_bytes(before)
