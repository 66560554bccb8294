"""Write data/train.csv and data/test.csv from the measurements that come with scikit-learn.

Usage: python prepare_data.py [FOLDER]
"""

import sys
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split


def main(folder):
    bunch = load_iris(as_frame=True)
    table = bunch.data.rename(columns=lambda name: name.removesuffix(" (cm)").replace(" ", "_") + "_cm")
    table["species"] = bunch.target_names[bunch.target]
    train, test = train_test_split(table, test_size=0.2, stratify=table["species"], random_state=7)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train.csv", train), ("test.csv", test)):
        part.to_csv(folder / name, index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "data")
