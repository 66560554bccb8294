"""Finding submissions as they arrive: complete at once where a rename brings them, else once they have settled."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import structlog

from rampd import clock
from rampd.errors import StoreError, SubmissionRefusedError
from rampd.stores.folders import Seen, check_name, is_ignored, look, printable
from rampd.watch import FolderWatch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rampd.states import SubmissionState

log = structlog.get_logger("rampd.stores.arrivals")

_BATCH = 200
"""So many folders are looked at and registered between two breaths of the loop."""
_NAMES = 200
"""So many names are read, and looked up, at once."""
_CHANGE_CHECKS = 200
"""So many ended submissions are looked at for changes in one rescan."""
_STALE_S = 60.0
"""A folder that has not settled for so long is left to the rescans."""
_STORE_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A submission that is complete."""

    name: str
    fingerprint: str
    newest: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something in submissions_dir that is no submission."""

    name: str
    key: str
    """The name as ASCII, one key a name: two names may be shown alike."""
    shown: str
    """The name as it can be logged."""
    stamp: str
    """Changes when the thing does: a changed one is looked at, and rejected, again."""
    reason: str
    message: str


@dataclass(slots=True)
class _Pending:
    """A folder that was seen and is not taken yet."""

    fingerprint: str
    unchanged_since: float
    """time.monotonic()"""
    has_file: bool
    due: float
    """time.monotonic()"""


@dataclass(frozen=True, slots=True)
class Known:
    """What a submission's row says."""

    id: int
    state: SubmissionState
    fingerprint: str
    """Of its folder, when it was last looked at."""


class Registry(Protocol):
    """What the store lets `Arrivals` write; see `DirectoryRegistry`."""

    changed: asyncio.Event
    scanned: asyncio.Event

    async def adopt(self) -> None: ...  # noqa: D102
    async def known(self, names: Sequence[str]) -> Mapping[str, Known]: ...  # noqa: D102
    async def waiting(self) -> Mapping[str, int]: ...  # noqa: D102
    async def ended(self, after: str, limit: int) -> Mapping[str, Known]: ...  # noqa: D102
    async def register(self, arrivals: Sequence[Arrival]) -> set[str]: ...  # noqa: D102
    async def forget(self, submission_id: int, name: str) -> None: ...  # noqa: D102
    async def note_change(self, submission_id: int, state: SubmissionState, found: Arrival) -> None: ...  # noqa: D102
    async def rejections(self) -> dict[str, str]: ...  # noqa: D102
    async def reject(self, rejections: Sequence[Rejection]) -> None: ...  # noqa: D102
    async def unreject(self, keys: Iterable[str]) -> None: ...  # noqa: D102


class Arrivals:
    """Looks at submissions_dir, when told by the kernel and every `rescan_interval_s`."""

    def __init__(
        self,
        registry: Registry,
        submissions_dir: Path,
        *,
        sandbox_dir: str,
        settle_time_s: float,
        rescan_interval_s: float,
        poll: bool | None,
    ) -> None:
        self._registry = registry
        self._submissions_dir = submissions_dir
        self._sandbox_dir = sandbox_dir
        self.settle_time_s = settle_time_s
        self._rescan_interval_s = rescan_interval_s
        self._poll = poll
        self._pending: dict[str, _Pending] = {}
        self._rejected: dict[str, str] | None = None
        self._change_cursor = ""

    @property
    def settling(self) -> int:
        """How many folders with files in them were seen that are not taken yet."""
        return sum(pending.has_file for pending in self._pending.values())

    async def watch(self) -> None:
        """Look for ever. Trouble with the database or the folder delays, and never ends, this."""
        async with FolderWatch(self._submissions_dir, poll=self._poll) as folder:
            next_scan = 0.0
            failing_since = 0.0
            said: set[str] = set()
            while True:
                try:
                    if time.monotonic() >= next_scan:
                        next_scan = time.monotonic() + self._rescan_interval_s
                        await self.scan()
                        self._registry.scanned.set()
                        if said:
                            log.info("store.recovered", down_s=clock.boottime() - failing_since)
                            said.clear()
                    moved_in: set[str] = set()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._until_next_look_s(next_scan)):
                            changes = await folder.changes()
                            moved_in = changes.moved_in
                            self._note_appeared(changes.appeared)
                            if changes.rescan:
                                next_scan = 0.0
                    await self._take(moved_in, complete=True)
                    await self._take(self._due(), complete=False)
                except (StoreError, OSError) as error:
                    if not said:
                        failing_since = clock.boottime()
                    if str(error) not in said:  # once, however long it lasts
                        said.add(str(error))
                        log.error("store.unavailable", error=str(error), delay_s=_STORE_RETRY_S)  # noqa: TRY400 -- the sentence says it all
                    await asyncio.sleep(_STORE_RETRY_S)
                    next_scan = 0.0

    def _until_next_look_s(self, next_scan: float) -> float:
        dues = [next_scan, *(pending.due for pending in self._pending.values())]
        return max(0.0, min(dues) - time.monotonic())

    def _due(self) -> set[str]:
        now = time.monotonic()
        return {name for name, pending in self._pending.items() if pending.due <= now}

    def _note_appeared(self, names: Iterable[str]) -> None:
        """Look soon at what was made in place, or went."""
        now = time.monotonic()
        for name in names:
            if not is_ignored(name):
                self._pending.setdefault(name, _Pending("", now, has_file=False, due=now)).due = now

    async def scan(self) -> None:
        """Look at everything once: new names, ended ones that changed, waiting ones that went.

        The names are read and asked for in batches: what ended long ago costs time, and no memory.
        """
        await self._registry.adopt()
        # Before the names: what is registered meanwhile is missed by neither.
        waiting = dict(await self._registry.waiting())
        rejected, pending = set(await self._rejections()), set(self._pending)
        unknown: set[str] = set()
        names = self._iterate_names()  # which closes the folder when the last thread lets go of it
        while batch := await asyncio.to_thread(_read_some, names):
            unknown.update(batch - (await self._registry.known(list(batch))).keys())
            # The sandbox has a row only where `rampctl run` made one, and never waits for a daemon.
            for name in batch - {self._sandbox_dir}:
                waiting.pop(name, None)
            pending -= batch
            rejected.difference_update(map(ascii, batch))
        await self._forget_gone(waiting)
        await self._forget_rejections(rejected)
        await self._take(unknown, complete=False)
        await self._check_for_changes()
        for name in pending:
            self._pending.pop(name, None)

    async def admit(self, name: str) -> None:
        """Register one folder at once, by the operator's word: unsettled or the sandbox, but nothing that is refused.

        Raises
        ------
        SubmissionRefusedError
            It is no submission.
        """
        if await self._registry.known([name]):
            return
        check_name(name)
        try:
            seen = await asyncio.to_thread(look, self._submissions_dir / name)
        except FileNotFoundError:
            return
        if seen.has_file:
            await self._registry.register([Arrival(name, seen.fingerprint, seen.newest)])
            self._pending.pop(name, None)

    def _iterate_names(self) -> Iterator[str]:
        """Read the folder's names, one after the other. Blocking."""
        try:
            with os.scandir(self._submissions_dir) as entries:
                yield from (entry.name for entry in entries if not is_ignored(entry.name))
        except FileNotFoundError:
            self._submissions_dir.mkdir(parents=True, exist_ok=True)

    async def _forget_gone(self, waiting: Mapping[str, int]) -> None:
        """Forget what waits and was not seen, unless another folder has taken its place meanwhile."""
        gone = await asyncio.to_thread(lambda: [name for name in waiting if self._is_gone(name)])
        for name in gone:
            await self._registry.forget(waiting[name], name)

    def _is_gone(self, name: str) -> bool:
        try:
            (self._submissions_dir / name).lstat()
        except FileNotFoundError:
            return True
        return name == self._sandbox_dir

    async def _forget_rejections(self, keys: Collection[str]) -> None:
        if keys:
            await self._registry.unreject(keys)
            for key in keys:
                (await self._rejections()).pop(key, None)

    async def _rejections(self) -> dict[str, str]:
        if self._rejected is None:
            self._rejected = await self._registry.rejections()
        return self._rejected

    async def _take(self, names: set[str], *, complete: bool) -> None:
        """Look at names, and register those that are complete submissions, oldest first."""
        ordered = sorted(names)
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            rejected = await self._rejections()
            # The ages of what is seen go by the clocks of before: what is written during the look is younger.
            now, wall = time.monotonic(), clock.wall()
            looks = await asyncio.to_thread(self._look_at, batch, rejected)
            arrivals: list[Arrival] = []
            rejections: list[Rejection] = []
            for name, found in looks:
                match found:
                    case Seen():
                        if self._is_settled(name, found, complete=complete, now=now, wall=wall):
                            arrivals.append(Arrival(name, found.fingerprint, found.newest))
                    case Rejection():
                        self._pending.pop(name, None)
                        rejections.append(found)
                    case None:
                        self._pending.pop(name, None)
            if rejections:
                await self._registry.reject(rejections)
                rejected.update((one.key, one.stamp) for one in rejections)
            if arrivals:
                arrivals.sort(key=lambda arrival: (arrival.newest, arrival.name))
                known_before = await self._registry.register(arrivals)
                await self._note_replaced([one for one in arrivals if one.name in known_before])
                for arrival in arrivals:
                    self._pending.pop(arrival.name, None)

    def _look_at(self, names: Sequence[str], rejected: dict[str, str]) -> list[tuple[str, Seen | Rejection | None]]:
        """Look at names. Blocking. None: nothing to say of it, now or again."""
        return [(name, self._look_at_one(name, rejected)) for name in names]

    def _look_at_one(self, name: str, rejected: dict[str, str]) -> Seen | Rejection | None:
        path = self._submissions_dir / name
        if is_ignored(name):
            return None
        try:
            try:
                self._check_name(name)
                return look(path)
            except SubmissionRefusedError as refusal:
                key = ascii(name)
                info = path.lstat()
                # The sandbox is rejected once and for all, however often it is edited.
                stamp = refusal.reason if refusal.reason == "sandbox" else f"{info.st_ino}:{info.st_ctime_ns}"
                if rejected.get(key) == stamp:
                    return None
                return Rejection(name, key, printable(name), stamp, refusal.reason, str(refusal))
        except OSError:
            return None  # gone meanwhile, or not readable yet: the rescan comes back to it

    def _check_name(self, name: str) -> None:
        check_name(name)
        if name == self._sandbox_dir:
            raise SubmissionRefusedError("sandbox", "the sandbox is never run")

    def _is_settled(self, name: str, seen: Seen, *, complete: bool, now: float, wall: float) -> bool:
        """Say whether a folder is complete; if not, when to look again. `now` (monotonic) and `wall`: the look's."""
        if not seen.has_file:
            complete = False
        elif complete:
            return True
        age_s = wall - seen.newest
        if seen.has_file and age_s >= self.settle_time_s:
            return True
        pending = self._pending.get(name)
        if pending is None or pending.fingerprint != seen.fingerprint:
            pending = _Pending(seen.fingerprint, now, has_file=seen.has_file, due=now)
            self._pending[name] = pending
        unchanged_s = now - pending.unchanged_since
        # A clock that runs ahead (a network file system's) would keep a folder young for ever: then watching decides.
        if seen.has_file and age_s < 0 and unchanged_s >= self.settle_time_s:
            return True
        if unchanged_s > _STALE_S:
            pending.due = math.inf
            return False
        left_s = self.settle_time_s - (max(0.0, age_s) if seen.has_file else 0.0)
        # What has no file yet is looked at less and less often: it may never have one.
        rarer_s = 0.0 if seen.has_file else unchanged_s / 10
        pending.due = now + max(min(left_s, self.settle_time_s), rarer_s, 0.005)
        return False

    async def _note_replaced(self, arrivals: Sequence[Arrival]) -> None:
        """Say of what was renamed over an ended submission that it changed."""
        known = await self._registry.known([arrival.name for arrival in arrivals]) if arrivals else {}
        for arrival in arrivals:
            one = known.get(arrival.name)
            if one is None:
                continue  # a claim has forgotten it meanwhile: the rescan finds it anew
            if one.state.is_final and one.fingerprint != arrival.fingerprint:
                await self._registry.note_change(one.id, one.state, arrival)

    async def _check_for_changes(self) -> None:
        """Look at some of the ended submissions that are there; the next rescan looks at the next ones."""
        left = _CHANGE_CHECKS
        while left > 0:
            ended = await self._registry.ended(self._change_cursor, _CHANGE_CHECKS)
            self._change_cursor = max(ended) if len(ended) == _CHANGE_CHECKS else ""
            for name, found in await asyncio.to_thread(self._look_at, list(ended), {}):
                left -= found is not None
                one = ended[name]
                if isinstance(found, Seen) and found.fingerprint != one.fingerprint:
                    await self._registry.note_change(one.id, one.state, Arrival(name, found.fingerprint, found.newest))
            if not self._change_cursor:
                return


def _read_some(names: Iterator[str]) -> set[str]:
    """Take the next names, if there are any left. Blocking."""
    return set(islice(names, _NAMES))
