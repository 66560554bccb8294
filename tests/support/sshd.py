"""A real OpenSSH server on a loopback address, in the part of an instance: its own keys, home, kit and processes.

Who logs in is whoever runs the tests; everything else is made up on the spot. Nothing of the machine's own sshd, and
nothing of the user's own home, is touched.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import asyncssh
import psutil

from support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PATIENCE_S = 20.0
_ADDRESSES = itertools.count(2)
_STUB = """#!/bin/sh
# Stands in for ramp-test: says what it was asked for, then does what the submission's `script` says, in sh.
echo "ramp-test $*"
while [ "$1" != --submission ]; do shift; done
cd "submissions/$2" || exit 1
. ./script
"""


def free_address() -> str:
    """Return a loopback address that no other test of this process has."""
    number = next(_ADDRESSES)
    return f"127.0.{number // 250}.{number % 250 + 2}"


class Sshd:
    """A machine that can be logged in to. Use it as a context manager: whatever happens, nothing of it is left.

    Parameters
    ----------
    folder
        Where it lives; does not exist yet.
    address
        Where it listens; None: an address of its own.
    port
        None: one that is free there.
    authorized_key
        The public key line that is let in; None: a new pair is made, see `client_key`.
    profile
        The far user's `~/.profile`; None: one with `bin` of the home on PATH, where a stub ramp-test is that runs the
        submission's `script`.
    options
        Further lines of sshd_config.
    prefix
        What sshd is run by, such as ``unshare``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str | None = None,
        port: int | None = None,
        authorized_key: str | None = None,
        profile: str | None = None,
        options: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.address = address or free_address()
        self.port = port or _free_port(self.address)
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.home = folder / "home"
        self.kit = self.home / "kit"
        self.client_key = folder / "client_key"
        """The private key's file, where no authorized_key was given."""
        self._options = dict(options or {})
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        self._make(authorized_key, profile)

    def _make(self, authorized_key: str | None, profile: str | None) -> None:
        (self.kit / "submissions").mkdir(parents=True)
        if authorized_key is None:
            pair = asyncssh.generate_private_key("ssh-ed25519")
            self.client_key.write_bytes(pair.export_private_key("openssh"))
            self.client_key.chmod(0o400)
            authorized_key = pair.export_public_key("openssh").decode()
        (self.folder / "authorized_keys").write_text(authorized_key, encoding="utf-8")
        if profile is None:
            profile = 'PATH="$HOME/bin:$PATH"; export PATH\n'
            stub = self.home / "bin" / "ramp-test"
            stub.parent.mkdir()
            stub.write_text(_STUB, encoding="utf-8")
            stub.chmod(0o755)
        (self.home / ".profile").write_text(profile, encoding="utf-8")
        self.change_host_key()

    @property
    def path(self) -> str:
        """What PATH is before the profile has its say."""
        tools = self.folder / "tools"
        return f"{self.folder / 'sh'}:{tools if tools.is_dir() else '/usr/local/bin:/usr/bin:/bin'}"

    def hide(self, *commands: str) -> None:
        """Have none of these over there."""
        tools = self.folder / "tools"
        tools.mkdir()
        for place in (Path("/bin"), Path("/usr/bin")):
            for program in place.iterdir():
                if program.name not in commands and not (tools / program.name).is_symlink():
                    (tools / program.name).symlink_to(program)
        self.stop_listening()
        self.start()

    def write_profile(self, text: str) -> None:
        """Have this as the far user's `~/.profile`."""
        (self.home / ".profile").write_text(text, encoding="utf-8")

    def use_shell(self, name: str) -> None:
        """Have `sh` be this shell over there."""
        program = shutil.which(name)
        assert program is not None
        (self.folder / "sh").mkdir(exist_ok=True)
        (self.folder / "sh" / "sh").unlink(missing_ok=True)
        (self.folder / "sh" / "sh").symlink_to(program)

    def change_host_key(self) -> None:
        """Give it another host key, from the next connection on: sshd reads its files for each."""
        pair = asyncssh.generate_private_key("ssh-ed25519")
        file = self.folder / "host_key"
        file.unlink(missing_ok=True)
        file.write_bytes(pair.export_private_key("openssh"))
        file.chmod(0o600)
        self.host_key = " ".join(pair.export_public_key("openssh").decode().split()[:2])
        """Its public key line."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def start(self) -> None:
        """Start to listen."""
        needs("sshd", package="openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a root's sshd goes before the login
        config = self.folder / "sshd_config"
        lines = {
            "ListenAddress": f"{self.address}:{self.port}",
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PrintMotd": "no",
            "SetEnv": f"HOME={self.home} PATH={self.path}",
        } | self._options
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()), encoding="utf-8")
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        assert program is not None
        log = self.folder / "sshd.log"
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*self._prefix, program, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        deadline = time.monotonic() + _PATIENCE_S
        while b"Server listening" not in log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not listen: {log.read_text(encoding='utf-8')}")
            time.sleep(0.01)

    def _listener_and_sessions(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            listener = psutil.Process(self._process.pid)
            below = listener.children(recursive=True)
            return [listener, *(process for process in below if name_of(process).startswith("sshd"))]
        return []

    def cut_connections(self) -> None:
        """Kill every session's sshd, so that all connections break; what runs in them goes on, and it still listens."""
        for process in self._listener_and_sessions()[1:]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop_listening(self) -> None:
        """Kill the listener and its sessions; what was started through them goes on."""
        processes = self._listener_and_sessions()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Become a black hole: connections stay, connecting works, and nothing is answered (SIGSTOP)."""
        for process in self._listener_and_sessions():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """End `freeze`."""
        for process in self._listener_and_sessions():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def processes(self) -> list[psutil.Process]:
        """Return what lives on the machine but its sshd: whatever was started through a login."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def terminate(self) -> None:
        """End the machine: everything on it is killed."""
        self.thaw()
        self.stop_listening()
        deadline = time.monotonic() + _PATIENCE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(left, timeout=0.5)

    def write_submission(self, name: str, script: str) -> Path:
        """Put a submission straight into the kit, for the stub ramp-test to run."""
        folder = self.kit / "submissions" / name
        folder.mkdir(parents=True)
        (folder / "script").write_text(script, encoding="utf-8")
        return folder


def name_of(process: psutil.Process) -> str:
    """Return a process's name; empty if it has gone."""
    try:
        return process.name()
    except psutil.Error:
        return ""


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def environment_profile(prefix: Path) -> str:
    """Return a `~/.profile` that puts an environment's programs on PATH, as a prepared image's does."""
    return f"PATH={shlex.quote(str(prefix / 'bin'))}:$PATH; export PATH\n"


@contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """Give a folder on a disk of its own, so small that it can be filled; needs a root that may mount."""
    needs("mount", "umount")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
