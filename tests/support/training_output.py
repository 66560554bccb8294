"""A valid training_output without numpy, as ramp-workflow 0.7.0 saves one; broken ones start from it."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_SCORES = {"acc": (0.97, 0.95, 0.96), "nll": (0.1, 0.2, 0.15)}


def npy(values: list[float], *, descr: str = "<f8", shape: tuple[int, ...] | None = None) -> bytes:
    """Return an .npy file, format version 1, of doubles."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape or (len(values),)})
    padded = header.ljust(-(len(header) + 11) % 64 + len(header)) + "\n"
    return (
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", len(padded))
        + padded.encode()
        + struct.pack(f"<{len(values)}d", *values)
    )


def npz(**arrays: bytes) -> bytes:
    """Return an .npz file of .npy members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def build_training_output(
    folder: Path,
    *,
    n_folds: int = 2,
    with_test: bool = True,
    scores: Mapping[str, tuple[float, float, float]] = DEFAULT_SCORES,
) -> None:
    """Write a complete training_output.

    Parameters
    ----------
    folder
        Made.
    n_folds
        How many folds; fold i's values are those of `scores` plus i / 100.
    with_test
        Whether there is a test set.
    scores
        Per score type its train, valid and test value in fold 0.
    """
    steps = ["train", "valid", *(["test"] if with_test else [])]
    folder.mkdir(parents=True)
    for fold in range(n_folds):
        path = folder / f"fold_{fold}"
        path.mkdir()
        rows = [",".join(["step", *scores, "time"])]
        for index, step in enumerate(steps):
            rows.append(",".join([step, *(str(values[index] + fold / 100) for values in scores.values()), "0.01"]))
            (path / f"{step}_time").write_text("0.01", encoding="utf-8")
        (path / "scores.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (path / "state.txt").write_text("scored", encoding="utf-8")
        for name in ("train", *(["test"] if with_test else [])):
            (path / f"y_pred_{name}.npz").write_bytes(npz(y_pred=npy([0.25, 0.5, 0.25])))
    rows = [",".join(["step", "n_bag", *scores])]
    for index, step in enumerate(steps[1:], start=1):
        rows += [
            ",".join([step, str(bag), *(str(values[index] + bag / 1000) for values in scores.values())])
            for bag in range(n_folds)
        ]
    (folder / "bagged_scores.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
