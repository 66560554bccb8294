"""What an event needs, looked at before it is served: `rampctl check`."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from rampd import ramp_test
from rampd.errors import RampdError
from rampd.event import STORE_FILE, build_store, build_worker
from rampd.models import Finding
from rampd.operations.board import examine_board
from rampd.state_lock import is_held
from rampd.stores.adoption import find_adoption
from rampd.stores.directory import DirectoryStore
from rampd.watch import is_shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rampd.config import Settings

_LOW_DISK_BYTES = 1 << 30


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything that an event needs, and write nothing.

    Returns
    -------
    list of Finding
        Everything that was looked at, in a stable order.
    """
    findings = [Finding("config", is_ok=True, detail=str(settings.path))]
    findings += [Finding("config", is_ok=True, detail=text, is_warning=True) for text in settings.warnings]
    findings += _folders(settings)
    findings.append(_daemon(settings))
    findings += [finding async for finding in _worker(settings)]
    if settings.board is not None:
        findings += await examine_board(settings, settings.board)
    else:
        findings.append(await _adoption(settings))
    return findings


def _folders(settings: Settings) -> list[Finding]:
    ramp = settings.ramp
    findings = [
        _writable("submissions_dir", ramp.submissions_dir),
        _writable("predictions_dir", ramp.predictions_dir),
        _writable("logs_dir", ramp.logs_dir),
        _writable("state_dir", settings.dispatcher.state_dir),
    ]
    existing = _nearest(ramp.submissions_dir)
    if settings.board is None:
        findings.append(_arrivals(existing))
    state = _nearest(settings.dispatcher.state_dir)  # where attempts run, and the databases are
    free = shutil.disk_usage(state).free
    is_low = free < _LOW_DISK_BYTES
    detail = f"{free / 1e9:.1f} GB free at {state}"
    findings.append(Finding("disk", is_ok=not is_low, detail=detail))
    return findings


def _arrivals(existing: Path) -> Finding:
    polled = is_shared(existing)
    how = "polled (inotify does not work on its file system)" if polled else "watched by inotify"
    return Finding("arrivals", is_ok=True, detail=how, is_warning=polled)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that there is."""
    while not path.exists():
        path = path.parent
    return path


def _writable(name: str, path: Path) -> Finding:
    nearest = _nearest(path)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(name, is_ok=False, detail=f"{nearest} cannot be written by this user (uid {os.geteuid()})")
    return Finding(name, is_ok=True, detail=str(path) if nearest == path else f"{path} (will be made)")


def _daemon(settings: Settings) -> Finding:
    pid = is_held(settings.dispatcher.state_dir)
    return Finding("daemon", is_ok=True, detail="not running" if pid is None else f"running, pid {pid}")


async def _worker(settings: Settings) -> AsyncIterator[Finding]:
    worker = build_worker(settings)
    async with AsyncExitStack() as stack:
        try:
            await worker.open(stack)
        except RampdError as error:
            yield Finding("worker", is_ok=False, detail=str(error))
            return
        facts = ", ".join(f"{key} {value}" for key, value in worker.describe().items() if value is not None)
        yield Finding("worker", is_ok=True, detail=facts or settings.worker.worker_type)
        for warning in worker.warnings():
            yield Finding("worker", is_ok=True, detail=warning, is_warning=True)
        try:
            for finding in await worker.examine():
                yield finding
        except RampdError as error:
            yield Finding("worker", is_ok=False, detail=str(error))


async def _adoption(settings: Settings) -> Finding:
    store = build_store(settings)
    if not isinstance(store, DirectoryStore):  # a plug-in's, or a board's: looked at by `examine_board`
        return Finding("store", is_ok=True, detail=type(store).__name__)
    if (settings.dispatcher.state_dir / STORE_FILE).exists():
        try:
            async with AsyncExitStack() as stack:
                await store.open(stack, create=False)
        except RampdError as error:
            return Finding("store", is_ok=False, detail=str(error))
        return Finding("store", is_ok=True, detail="served before")
    try:
        adopted = await asyncio.to_thread(first_start, settings)
    except OSError as error:
        return Finding("store", is_ok=False, detail=f"{error.filename} cannot be read: {error.strerror}")
    return Finding("store", is_ok=True, detail=adopted or "a first start: nothing to adopt", is_warning=bool(adopted))


def first_start(settings: Settings) -> str:
    """Say what a very first start takes over from another dispatcher; empty where there is nothing. Blocking."""
    if settings.board is not None or (settings.dispatcher.state_dir / STORE_FILE).exists():
        return ""
    ramp = settings.ramp
    adoption = find_adoption(
        ramp.submissions_dir, ramp.predictions_dir, ramp.logs_dir, ramp.sandbox_dir, ramp_test.read_scores
    )
    if adoption is None:
        return ""
    return (
        f"a first start adopts {adoption.scored} as scored, {adoption.training_error} as training_error, "
        f"and leaves {adoption.new} to run"
    )
