"""An event served by a synchronous plug-in, with a real store, journal and lifecycle, in a folder of the test's own."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import yaml

from rampd.event import Event, load_settings
from support.plug_ins import ScriptedWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rampd.config import Settings


class PlugInRoom:
    """Its folders below `root`; submissions go by their scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.worker: dict[str, Any] = {"timeout": 60}
        self.dispatcher: dict[str, Any] = {}

    def settings(self) -> Settings:
        """Write the config and read it."""
        path = self.root / "events" / "iris" / "config.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        sections = {
            "ramp": {"problem_name": "iris", "event_name": "iris"},
            "dispatcher": {
                "n_workers": 2,
                "settle_time": 0,
                "hunger_policy": "exit",
                "time_between_collection": 0.01,
                **self.dispatcher,
            },
            "worker": {"worker_type": "support.plug_ins:ScriptedWorker", "max_attempts": 1, **self.worker},
        }
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return load_settings(path)

    def submit(self, name: str, **script: Any) -> None:
        """Have a submission arrive by one rename, with what its methods do."""
        ScriptedWorker.scripts[name] = script
        staging = self.root / f"staging-{name}"
        staging.mkdir(parents=True)
        (staging / "estimator.py").write_text(f"# {name}\n", encoding="utf-8")
        submissions = self.root / "events" / "iris" / "submissions"
        submissions.mkdir(parents=True, exist_ok=True)
        staging.rename(submissions / name)

    @property
    def attempts(self) -> Path:
        """Where the attempts' folders are."""
        return self.root / "events" / "iris" / "state" / "attempts"

    def log(self, name: str) -> bytes:
        """Return what the event has of a submission's output."""
        return (self.root / "events" / "iris" / "logs" / name / "log").read_bytes()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Event]:
        """Give the open event; its store has looked once."""
        event = Event.build(self.settings())
        async with AsyncExitStack() as stack:
            await event.open(stack)
            await event.store.scan()
            yield event
