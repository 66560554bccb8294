"""What polling many instances costs, beside the original's way: an `ssh` process a poll."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from rampd.remote import detached_run as detached
from rampd.remote.ssh import SshHost
from support.sshd import Sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent


def polling(root: Path, *, instances: int, interval_s: float, seconds: float, rival_polls: int) -> dict[str, Any]:
    """Poll so many instances through the pool, and one by `ssh` processes, in one run.

    The rival logs in to a real sshd, as on every instance: most of its time is OpenSSH's own key exchange
    (sntrup761x25519). To the benchmark's asyncssh servers it takes a cheaper one; that figure is given as well.

    Parameters
    ----------
    root
        A folder for keys.
    instances
        asyncssh servers in another process, each at an address of its own.
    interval_s, seconds
        How often each is polled, and for how long.
    rival_polls
        How many `ssh` processes to run, one after the other.
    """
    key = root / "client_key"
    pair = asyncssh.generate_private_key("ssh-rsa", key_size=2048)  # as EC2 makes them
    key.write_bytes(pair.export_private_key("pkcs1-pem"))
    key.chmod(0o400)
    (root / "authorized_keys").write_bytes(pair.export_public_key("openssh"))
    with _machines(instances, root / "authorized_keys") as machines:
        poller = subprocess.run(
            [
                sys.executable,
                str(_HERE / "ssh_poller.py"),
                json.dumps(machines),
                str(key),
                str(interval_s),
                str(seconds),
            ],
            stdout=subprocess.PIPE,
            check=True,
            env=_environment(),
        )
        figures: dict[str, Any] = json.loads(poller.stdout)
        one = SshHost("i-0", machines["addresses"][0], machines["port"], "ubuntu", machines["host_key"])
        same_cpu_ms = _rival_cpu_ms(one, key, root / "known_hosts", rival_polls)
    with Sshd(root / "machine", authorized_key=pair.export_public_key("openssh").decode()) as sshd:
        one = SshHost("i-0", sshd.address, sshd.port, sshd.user, sshd.host_key)
        real_cpu_ms = _rival_cpu_ms(one, key, root / "known_hosts", rival_polls)
    return figures | {
        "ssh_process_cpu_ms": round(real_cpu_ms, 1),
        "times_less_cpu": round(real_cpu_ms / figures["poll_cpu_ms"], 1),
        "ssh_process_to_asyncssh_cpu_ms": round(same_cpu_ms, 1),
        "times_less_cpu_to_asyncssh": round(same_cpu_ms / figures["poll_cpu_ms"], 1),
    }


@contextmanager
def _machines(count: int, authorized: Path) -> Iterator[dict[str, Any]]:
    with subprocess.Popen(
        [sys.executable, str(_HERE / "ssh_machines.py"), str(count), str(authorized)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def _rival_cpu_ms(host: SshHost, key: Path, known_hosts: Path, polls: int) -> float:
    """Return the processor time of one poll by an `ssh` process, and of starting that."""
    known_hosts.write_text(f"[{host.address}]:{host.port} {host.host_key}\n", encoding="utf-8")
    command = detached.poll(detached.DetachedRun("5f" * 16, "first", "/home/ubuntu/ramp-kits/iris"), 0, 65536)
    argv = ["ssh", "-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={known_hosts}", "-o", "IdentitiesOnly=yes"]
    argv += ["-o", "BatchMode=yes", "-p", str(host.port), f"{host.user}@{host.address}", command]
    before_s = _cpu_s()
    for _ in range(polls):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        assert done.stdout.startswith(b"rampd-run 1 ")
    return (_cpu_s() - before_s) / polls * 1000


def _cpu_s() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _environment() -> dict[str, str]:
    root = _HERE.parent.parent
    return {key: text for key, text in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPATH": str(root)
    }
