"""A detached run on a machine of the tests', spoken to as a worker would."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.remote import detached_run as detached
from rampd.remote.detached_run import DetachedRun, RunSettings, RunState, RunStatus
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.remote.ssh import SshHost, SshPool
    from support.sshd import Sshd

_PATIENCE_S = 60.0


def archive_of(name: str, files: dict[str, bytes]) -> bytes:
    """Return a submission's archive, as `rampd.remote.archive.pack_submission` writes it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo(name)
        folder.type = tarfile.DIRTYPE
        folder.mode = 0o755
        tar.addfile(folder)
        for file, data in files.items():
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


@dataclass
class Far:
    """One run on one machine."""

    pool: SshPool
    host: SshHost
    machine: Sshd
    run: DetachedRun
    scratch: Path

    @property
    def folder(self) -> Path:
        """Where the far side keeps what it knows of the run."""
        return self.machine.home / ".rampd" / self.run.run_id

    @property
    def submission(self) -> Path:
        """The submission over there."""
        return self.machine.kit / "submissions" / self.run.submission

    async def ask(self, command: str, data: bytes = b"") -> tuple[RunStatus, bytes]:
        """Run one of the run's commands and read the answer."""
        answer = await self.pool.run(
            self.host, command, input=data, timeout_s=_PATIENCE_S, max_output_bytes=detached.MAX_SAID_BYTES + (1 << 20)
        )
        return detached.parse(self.run, answer)

    async def install(self, settings: RunSettings) -> RunStatus:
        """Make the run's folder."""
        command = detached.install(self.run, settings)
        return (await self.ask(command.command, command.input))[0]

    async def upload(self, archive: bytes) -> RunStatus:
        """Bring the submission there."""
        file = self.scratch / "archive"
        file.write_bytes(archive)
        answer = await self.pool.send(self.host, detached.upload(self.run), file, timeout_s=_PATIENCE_S)
        return detached.parse(self.run, answer)[0]

    async def launch(self) -> RunStatus:
        """Start it, if nobody has."""
        return (await self.ask(detached.launch(self.run)))[0]

    async def poll(self, offset: int = 0, limit: int = 1 << 20) -> tuple[RunStatus, bytes]:
        """Look at it."""
        return await self.ask(detached.poll(self.run, offset, limit))

    async def state(self) -> RunStatus:
        """Look at it, without its log."""
        return (await self.poll(0, 0))[0]

    async def stop(self) -> RunStatus:
        """End it."""
        return (await self.ask(detached.stop(self.run)))[0]

    async def cleanup(self) -> RunStatus:
        """Remove it."""
        return (await self.ask(detached.cleanup(self.run)))[0]

    async def begin(self, script: str, settings: RunSettings) -> RunStatus:
        """Install, upload and launch a submission that the stub ramp-test runs."""
        await self.install(settings)
        await self.upload(archive_of(self.run.submission, {"script": script.encode()}))
        return await self.launch()

    async def ended(self) -> RunStatus:
        """Wait for its end."""
        await until((self.folder / "ended").exists, what="the end of the run")
        status = await self.state()
        assert status.state is RunState.EXITED
        return status

    async def log(self) -> bytes:
        """Return its whole log, piece by piece."""
        text = b""
        while True:
            status, more = await self.poll(len(text), 1000)
            if not more:
                assert len(text) == status.log_bytes
                return text
            text += more
