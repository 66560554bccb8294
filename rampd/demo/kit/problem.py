"""The iris challenge: tell three species of iris apart by the measures of their flowers."""

from pathlib import Path

import pandas as pd
import rampwf as rw
from sklearn.model_selection import StratifiedShuffleSplit

problem_title = "Iris: three species told apart by their flowers"

SPECIES = ["setosa", "versicolor", "virginica"]
TARGET = "species"

# A submission is a file estimator.py with a function get_estimator() that returns a scikit-learn estimator.
workflow = rw.workflows.Estimator()
Predictions = rw.prediction_types.make_multiclass(label_names=SPECIES)
score_types = [
    rw.score_types.Accuracy(name="acc", precision=3),
    rw.score_types.NegativeLogLikelihood(name="nll", precision=3),
]


def get_cv(X, y):
    """Split the training data three times; each fold is trained and scored by itself."""
    return StratifiedShuffleSplit(n_splits=3, test_size=0.3, random_state=57).split(X, y)


def get_train_data(path="."):
    """Return what a submission is trained and validated on."""
    return _read(path, "train.csv")


def get_test_data(path="."):
    """Return what participants do not have."""
    return _read(path, "test.csv")


def _read(path, name):
    table = pd.read_csv(Path(path) / "data" / name)
    return table.drop(columns=TARGET), table[TARGET].to_numpy()
