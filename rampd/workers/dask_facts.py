"""What is known of a cluster, as plain data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SLOT = "slot"
"""The resource by which Dask workers say how many submissions they take."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What an encrypted connection needs, as files."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class DaskWorkerFacts:
    """One Dask worker, as the scheduler knows it."""

    address: str
    host: str
    name: str
    nthreads: int
    slots: int
    """How many of the resource `slot` it declares; 0 where it declares none."""

    @property
    def seats(self) -> int:
        """How many submissions run there at once: one, unless it declares more slots and has a thread for each."""
        return max(1, min(self.slots, self.nthreads))


def facts_of(address: str, identity: Mapping[str, Any]) -> DaskWorkerFacts:
    """Return what the scheduler says of a Dask worker (`WorkerState.identity`)."""
    resources = identity.get("resources") or {}
    return DaskWorkerFacts(
        address=address,
        host=str(identity.get("host", "")),
        name=str(identity.get("name", address)),
        nthreads=int(identity.get("nthreads", 1)),
        slots=int(resources.get(SLOT, 0)),
    )


def versions_of(versions: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of distributed by who has them: client, scheduler, and each Dask worker's address."""
    found = {}
    for who in ("client", "scheduler"):
        found[who] = _version(versions.get(who))
    for address, one in (versions.get("workers") or {}).items():
        found[f"worker {address}"] = _version(one)
    return {who: version for who, version in found.items() if version}


def _version(one: Any) -> str:
    packages = one.get("packages") if isinstance(one, dict) else None
    return str(packages.get("distributed", "")) if isinstance(packages, dict) else ""


def disagreements_of(versions: Mapping[str, str]) -> list[str]:
    """Return a sentence for each version of distributed in `versions_of` a cluster that is not the client's."""
    ours = versions.get("client")
    by_version: dict[str, list[str]] = {}
    for who, version in versions.items():
        if version != ours:
            by_version.setdefault(version, []).append(who)
    return [
        f"distributed {version} on {', '.join(who[:5])}{' and others' if len(who) > 5 else ''} "  # noqa: PLR2004
        f"and {ours} in this daemon: install the same version everywhere if anything misbehaves"
        for version, who in sorted(by_version.items())
    ]


def sentence(error: BaseException) -> str:
    """Return what went wrong, for people, on one line."""
    text = (
        (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "")
        or str(error).strip().partition("\n")[0]
        or type(error).__name__
    )
    return text[:300]
