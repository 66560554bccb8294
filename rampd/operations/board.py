"""What an operator does with a RAMP board: looks whether it can be served, and lets it wake daemons up."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rampd.errors import ConfigError, RampdError
from rampd.event import build_store
from rampd.models import Finding

if TYPE_CHECKING:
    from rampd.board_config import BoardSettings
    from rampd.config import Settings
    from rampd.stores.rampboard import RampBoardStore

TRIGGER_HINT = "new submissions are looked for every 5 s; rampctl board install-trigger has the database say so at once"


async def examine_board(settings: Settings, board: BoardSettings) -> list[Finding]:
    """Look at everything that serving a board needs, and write nothing.

    Returns
    -------
    list of Finding
        The connection, the schema, the event, its folder, the leases, the trigger, the leaderboards' interpreter.
    """
    findings = [Finding("database-config", is_ok=True, detail=str(board.path))]
    mode = _mode(board.path)
    if mode & 0o004 and board.has_password_in_file:
        detail = f"{board.path} has a password in it and everybody may read it (mode {mode:03o}); chmod o-r"
        findings.append(Finding("database-config", is_ok=True, detail=detail, is_warning=True))
    try:
        store = _store_of(settings)
        async with AsyncExitStack() as stack:
            await store.open(stack)
            await store.scan()
            findings += await _board(settings, store)
    except RampdError as error:
        findings.append(Finding("board", is_ok=False, detail=str(error)))
        return findings
    findings.append(await _leaderboards(board))
    return findings


def _normal(path: Path) -> Path:
    """Return a path without its dots."""
    return Path(os.path.normpath(path))


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode & 0o777  # noqa: PTH116 -- a mode alone
    except OSError:
        return 0


async def _board(settings: Settings, store: RampBoardStore) -> list[Finding]:
    counts = ", ".join(f"{count} {state}" for state, count in (await store.counts()).items() if count)
    event = store.board.row
    is_open = "open" if event.is_open else "closed: its submissions are run anyway"
    findings = [
        Finding("board", is_ok=True, detail=f"{store.board.database.where}: {counts or 'no submissions yet'}"),
        Finding(
            "event",
            is_ok=True,
            detail=f"{settings.ramp.event_name} is {is_open}",
            is_warning=not event.is_open,
        ),
    ]
    theirs = _normal(settings.deployment_dir / event.submissions_dir)
    if theirs != settings.ramp.submissions_dir:
        detail = (
            f"ramp-frontend puts submissions into {theirs}, ramp.submissions_dir is {settings.ramp.submissions_dir}: "
            f"they must be the same folder"
        )
        findings.append(Finding("submissions_dir", is_ok=False, detail=detail))
    if event.sandbox != settings.ramp.sandbox_dir:
        detail = (
            f"the board's sandbox is {event.sandbox!r} and counts, ramp.sandbox_dir is {settings.ramp.sandbox_dir!r}"
        )
        findings.append(Finding("sandbox", is_ok=True, detail=detail, is_warning=True))
    if store.board.holding.is_leased:
        findings.append(Finding("leases", is_ok=True, detail="several daemons may serve this event"))
    elif await store.board.may_make_tables():
        findings.append(Finding("leases", is_ok=True, detail="their tables will be made at the first start"))
    else:
        detail = "this user may not make tables: one daemon an event (GRANT CREATE ON SCHEMA allows more)"
        findings.append(Finding("leases", is_ok=True, detail=detail, is_warning=True))
    detail = "installed: a new submission wakes the daemon up" if event.has_trigger else TRIGGER_HINT
    findings.append(Finding("trigger", is_ok=True, detail=detail))
    return findings


async def _leaderboards(board: BoardSettings) -> Finding:
    from rampd.stores.board_leaderboards import find_python  # noqa: PLC0415 -- only where there is a board

    try:
        python = await find_python(board.python)
    except LookupError as error:
        return Finding("leaderboards", is_ok=True, detail=f"not built: {error}", is_warning=True)
    return Finding("leaderboards", is_ok=True, detail=f"built by {python}")


async def set_trigger(settings: Settings, *, installed: bool) -> None:
    """Have the database notify daemons of new submissions, or have it stop that. Both may be repeated.

    Raises
    ------
    ConfigError
        There is no --database-config.
    StoreError
        This user may not, or the database is away.
    """
    if settings.board is None:
        raise ConfigError(["rampctl board: --database-config FILE is missing: which board?"])
    store = _store_of(settings)
    async with AsyncExitStack() as stack:
        await store.open(stack)
        await store.board.set_trigger(installed=installed)


def _store_of(settings: Settings) -> RampBoardStore:
    store = build_store(settings)
    from rampd.stores.rampboard import RampBoardStore  # noqa: PLC0415 -- only where there is a board

    assert isinstance(store, RampBoardStore)  # noqa: S101 -- settings.board is set
    return store
