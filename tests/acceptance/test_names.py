"""Names that are no submission's: rejected once, shown safely, never run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from support.daemon import RampdProcess
from support.deployment import Deployment

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = {
    b"with space": "with space",
    b"..hidden": None,
    b"-rf": "-rf",
    b"two\nlines": "two\\nlines",
    b"$(touch owned)": "$(touch owned)",
    b"x" * 255: "x" * 120 + "…",
    b"\xff\xfe": "\\xff\\xfe",
    b"`id`;": "`id`;",
}


def test_bad_names_are_rejected_once_and_never_run(tmp_path: Path) -> None:
    """Each has one submission.rejected with a name that cannot harm a reader; a good one beside them runs."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    for raw in _NAMES:
        folder = event.submissions / os.fsdecode(raw)
        folder.mkdir()
        (folder / "estimator.py").write_text("# nothing\n", encoding="utf-8")
    (event.submissions / "a_file.py").write_text("no folder", encoding="utf-8")
    (event.submissions / "dangling").symlink_to(tmp_path / "nowhere")
    (event.submissions / "starting_kit").mkdir()
    (event.submissions / "starting_kit" / "estimator.py").write_text("#\n", encoding="utf-8")
    event.submit("good")
    with RampdProcess(event.config) as daemon:
        daemon.finished("good")
        assert daemon.stop() == 0
    with RampdProcess(event.config) as again:
        again.wait_for("daemon.ready")
        assert again.stop() == 0
    rejected = [*daemon.find("submission.rejected"), *again.find("submission.rejected")]
    reasons = {record["name"]: record["reason"] for record in rejected}
    assert len(rejected) == len(reasons)
    expected = {shown: "bad_name" for shown in _NAMES.values() if shown}
    others = {"a_file.py": "not_a_folder", "dangling": "dangling_link", "starting_kit": "sandbox"}
    assert reasons == expected | others
    assert [record["submission"] for record in daemon.find("submission.started")] == ["good"]
    assert event.states() == {"good": "scored"}
