"""The short form of the fault campaign: every fault once, some kills, one seed. The long one is a benchmark."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from faults.campaign import STORES, Campaign, Plan, campaign_on, report
from faults.failing_daemon import POINTS
from support.requirements import needs_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from faults.checker import Finding

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _run(store: str, root: Path, seed: int, plan: Plan, capsys: pytest.CaptureFixture[str]) -> tuple[Campaign, Finding]:
    began = time.monotonic()
    with campaign_on(store, root, seed, plan) as campaign:
        finding = campaign.run()
    with capsys.disabled():
        print("\n" + report(campaign, finding, began=began))
    return campaign, finding


# What has nothing to do with the store comes once, and on a board in the long form only.
_OF_ANY_STORE = {"sigstop", "sighup", "locked", "reader_goes", "reader_stalls", "clock_jumps", "second_daemon"}


@pytest.mark.parametrize(
    ("store", "faults", "at_once"),
    [
        ("directory", STORES["directory"][1].names, 60),
        ("board", [name for name in STORES["board"][1].names if name not in _OF_ANY_STORE], 20),
    ],
    ids=["directory", "board"],
)
def test_a_daemon_that_meets_every_fault_loses_and_doubles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str, faults: Sequence[str], at_once: int
) -> None:
    """Kills at random and named moments, and each disturbance once: the checker finds nothing wrong."""
    needs_root()  # a file system of its own, which can be full
    plan = Plan(kills=8, submissions=16, faults=faults, at_once=at_once, n_workers=4, small_disk=True, patience_s=1.0)
    campaign, finding = _run(store, tmp_path, 1, plan, capsys)
    assert finding.problems == []
    assert finding.counts["kills"] >= 8
    assert set(campaign.disturbed) >= set(faults)
    assert finding.counts["submissions"] >= 16 + at_once - len(campaign.removed)


@pytest.mark.parametrize(
    ("store", "points"),
    [
        ("directory", ["journal.open_attempt:after:1", "journal.record_launch:before:1", "journal.decide:before:2"]),
        ("directory", ["store.claim:after:2", "journal.decide:after:1", "store.set_scored:before:1"]),
        ("directory", ["predictions.swap:after:1", "store.set_scored:after:1", "journal.close:before:1"]),
        ("board", ["board.claim:after:2", "board.set_training:after:1", "journal.decide:after:1"]),
        ("board", ["predictions.swap:after:1", "board.set_tested:after:1", "board.set_scored:after:1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(point.rpartition(":")[0] for point in value),
)
def test_a_kill_at_a_named_transition_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str, points: list[str]
) -> None:
    """The daemon dies exactly there, and the next one goes on."""
    with campaign_on(store, tmp_path, 2, Plan(kills=0, submissions=6, faults=())) as campaign:
        for _ in range(6):
            campaign.submit()
        for point in points:
            campaign._live(None, point, patience_s=30)
        campaign._let_it_end()
        finding = campaign.check()
    with capsys.disabled():
        print("\n" + json.dumps(dict(campaign.kills)))
    assert finding.problems == []
    assert set(campaign.kills) == {point.rpartition(":")[0] for point in points}


def test_every_point_names_something_that_there_is() -> None:
    """A method that is renamed takes its kill point along."""
    import importlib  # noqa: PLC0415 -- only here

    for target in POINTS.values():
        module, _, path = target.partition(":")
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found)


def test_the_product_knows_no_switch_of_these() -> None:
    """What kills a daemon for a test is not in what is installed."""
    package = Path(__file__).parent.parent.parent / "rampd"
    assert [path for path in package.rglob("*.py") if "RAMPD_FAULT" in path.read_text(encoding="utf-8")] == []
