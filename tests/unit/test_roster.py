"""Which events are served, where a plug-in of one of them breaks."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from rampd.config_files import ConfigFiles
from rampd.roster import Roster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    Record = dict[str, Any]

_PLUG_INS = """
from rampd.testing.workers import FakeWorker


class Speechless(FakeWorker):
    def describe(self):
        raise RuntimeError("no words")


class Stubborn(FakeWorker):
    def reconfigure(self, config, context):
        raise RuntimeError("never")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a deployment's folder whose events may use plug-ins that break."""
    (tmp_path / "breaking_plug_ins.py").write_text(_PLUG_INS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(root: Path, name: str, worker: str, **keys: object) -> Path:
    """Write an event's config."""
    path = root / "events" / name / "config.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = {
        "ramp": {"problem_name": "iris", "event_name": name},
        "worker": {"worker_type": worker, "timeout": 60, **keys},
    }
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[Roster]:
    """Give a roster of what is there, that has begun; end its events afterwards."""
    roster = Roster(
        ConfigFiles([], root / "events"),
        deployment_dir=root,
        run="run",
        shared=None,
        on_activity=lambda: None,
        on_end=lambda: None,
    )
    try:
        await roster.look()
        roster.begin()
        yield roster
    finally:
        for service in roster.services:
            service.stop()
            await service.ended()


async def test_a_worker_that_cannot_describe_itself_costs_its_event_alone(
    root: Path, log_records: list[Record]
) -> None:
    """It is rejected like any event that cannot be opened; the others are served, and can be introduced."""
    write(root, "good", "rampd.testing.workers:FakeWorker")
    bad = write(root, "bad", "breaking_plug_ins:Speechless")
    async with serving(root) as roster:
        assert {service.name: service.facts for service in roster.services} == {"good": {}}
        assert roster.rejected == [bad]
    (rejected,) = [record for record in log_records if record["event"] == "config.rejected"]
    assert rejected["problems"] == ["no words"]


async def test_a_worker_that_cannot_be_reconfigured_is_opened_anew(root: Path) -> None:
    """Its event alone is drained for that; the daemon goes on."""
    write(root, "event", "breaking_plug_ins:Stubborn")
    async with serving(root) as roster:
        (service,) = roster.services
        await service.ready()
        write(root, "event", "breaking_plug_ins:Stubborn", timeout=120)
        report = await roster.look(asked=True)
        assert report.reopening == {"event": ["worker.timeout"]}
        assert not report.changed
        await asyncio.wait_for(service.ended(), 10)
        await roster.collect()
        (again,) = roster.services
        assert again is not service
        assert again.settings.worker.timeout == 120
