"""What a new config changes: which keys, and whether they can change while the event is served."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rampd.config import Settings

LIVE_KEYS: Final = frozenset(
    {
        "dispatcher.hold_timeout",
        "dispatcher.hunger_policy",
        "dispatcher.n_threads",
        "dispatcher.n_workers",
        "dispatcher.settle_time",
        "dispatcher.shutdown_grace",
        "dispatcher.time_between_collection",
        "ramp.event_is_public",
        "ramp.event_title",
    }
)
"""What needs no event opened anew, besides the `live_keys` of its worker. Folders, state_dir and the kind of worker do:
what runs in the old ones must have ended."""


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """Return the key paths whose values differ, resolved: a default that is written out is no change. Never a value."""
    return list(_changed(old, new))


def _changed(old: Settings, new: Settings) -> Iterator[str]:
    if old.deployment_dir != new.deployment_dir:
        yield "deployment_dir"
    if old.board != new.board:
        yield "board"
    for section in ("ramp", "dispatcher"):
        before, after = getattr(old, section), getattr(new, section)
        for one in fields(before):
            if getattr(before, one.name) != getattr(after, one.name):
                yield f"{section}.{one.name}"
    if type(old.worker) is not type(new.worker):
        yield "worker.worker_type"
        return
    of_a_plug_ins_own = {*(old.worker.model_extra or {}), *(new.worker.model_extra or {})}
    for name in (*type(new.worker).model_fields, *sorted(of_a_plug_ins_own)):
        # These three are resolved into `ramp`, whichever section they stand in.
        if name in {"submissions_dir", "predictions_dir", "logs_dir"}:
            continue
        if getattr(old.worker, name, None) != getattr(new.worker, name, None):
            yield f"worker.{name}"


def needing_reopening(keys: Sequence[str], live_worker_keys: frozenset[str]) -> list[str]:
    """Return those of the changed keys that only take effect once the event is opened anew."""
    live = LIVE_KEYS | {f"worker.{name}" for name in live_worker_keys}
    return [key for key in keys if key not in live]
