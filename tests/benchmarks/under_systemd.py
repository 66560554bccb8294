"""The units under a real systemd: a Debian 12 of its own, booted in namespaces of its own, with the README followed.

As root, with Debian's debootstrap and systemd-container::

    python tests/benchmarks/under_systemd.py --directory /var/tmp/rampd-debian

It takes some minutes and the packages of Debian and Python; --keep leaves the root for the next time. Nothing is booted
on the machine's own root. The machine's certificates and PIP_* settings are used within.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent.parent
PACKAGES = "systemd,systemd-sysv,dbus,python3,sudo,ca-certificates,procps"
# A /run of its own: the program keeps its sockets there, and cleans it up.
BOOT = """mount -t tmpfs tmpfs /run
exec systemd-nspawn --directory="$1" --boot --register=no --keep-unit --console=pipe --link-journal=no \
    --resolv-conf=copy-host --machine=rampd </dev/null"""
CHECKOUT = "/usr/src/rampd"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CONFIG = """
ramp: {{problem_name: iris, event_name: {name}}}
dispatcher: {{n_workers: {n_workers}, shutdown_grace: 3}}
worker: {{worker_type: conda, conda_env: /opt/demo/environment, timeout: 600{more}}}
"""
PATIENCE_S = 90.0
NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--root", "--wd")


class Machine:
    """A Debian below a folder, booted while the context is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.since = 0
        """When the steps began (seconds since the epoch): a root that was kept has a journal already."""

    def make(self) -> None:
        """Install it, if it is not there."""
        if not (self.root / "etc" / "debian_version").exists():
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(self.root)]
            subprocess.run(command, check=True, stdout=sys.stderr)
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, f"{self.root}{CERTIFICATES}")

    def __enter__(self) -> Self:
        boot = ["unshare", "--mount", "--propagation", "private", "sh", "-c", BOOT, "sh", str(self.root)]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self._process = subprocess.Popen(boot, env=environment, stdout=sys.stderr, start_new_session=True)
        wait_until(lambda: self.says("systemctl is-system-running", "running"), timeout_s=PATIENCE_S, what="the boot")
        return self

    def __exit__(self, *_: object) -> None:
        self.try_run("systemctl poweroff")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        if self._process.poll() is None:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                process.kill()
            self._process.wait(PATIENCE_S)

    def try_run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command within."""
        children = psutil.Process(self._process.pid).children()
        settings = [f"{name}={text}" for name, text in os.environ.items() if name.startswith("PIP_")]
        within = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *settings]
        enter = ["nsenter", "--target", str(children[0].pid) if children else "0", *NAMESPACES]
        return subprocess.run([*enter, *within, "bash", "-c", command], check=False, capture_output=True, text=True)

    def run(self, command: str) -> str:
        """Run a command within that is to go well, and return what it prints."""
        done = self.try_run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def says(self, command: str, word: str) -> bool:
        """Return whether a command prints one line, this one."""
        return self.try_run(command).stdout.strip() == word

    def write(self, path: str, text: str) -> None:
        """Write a file within."""
        target = Path(f"{self.root}{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


class Unit:
    """A unit of rampd's on a machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def do(self, verb: str) -> None:
        """Have systemctl do something with it."""
        self.machine.run(f"systemctl {verb} {self.name}")

    def get(self, what: str) -> str:
        """Return one of its properties."""
        return self.machine.run(f"systemctl show --property {what} --value {self.name}").strip()

    def is_active(self) -> bool:
        """Return whether it runs, and is ready."""
        return self.get("ActiveState") == "active"

    def records(self, event: str) -> list[dict[str, Any]]:
        """Return its records of an event, read as the README says."""
        (show,) = re.findall(r"`journalctl -o cat -u rampd@iris (\| jq [^`]*)`", readme())
        printed = self.machine.run(
            f"journalctl --no-pager --since @{self.machine.since} -o cat -u {self.name} {show} -c"
        )
        return [one for one in map(json.loads, printed.splitlines()) if one["event"] == event]

    def wait_for(self, event: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """Return the `count`-th record of an event with these fields, waiting for it."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [one for one in self.records(event) if fields.items() <= one.items()]
            return len(found) >= count

        wait_until(is_there, timeout_s=PATIENCE_S, what=f"{count} {event} {fields} of {self.name}")
        return found[count - 1]


def readme() -> str:
    """Return the README."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def configure(machine: Machine, name: str, *, n_workers: int = 2, more: str = "") -> None:
    """Write an event's config."""
    machine.write(f"/srv/ramp/events/{name}/config.yml", CONFIG.format(name=name, n_workers=n_workers, more=more))


def submit(machine: Machine, name: str, *, event: str = "iris", user: str = "ramp") -> None:
    """Hand in one of the demo's submissions, as the daemon's user."""
    machine.run(
        f"cd /srv/ramp && sudo -u {user} /opt/rampd/bin/rampctl submit /opt/demo/events/iris/submissions/{name}"
        f" --config events/{event}/config.yml"
    )


def runs_of(machine: Machine) -> set[int]:
    """Return the pids of what runs for submissions, as the machine numbers them."""
    return set(map(int, machine.try_run("pgrep --full '[r]amp-test'").stdout.split()))


def is_installed(machine: Machine) -> None:
    """Follow the README's five lines from a checkout, for a deployment that root has made."""
    machine.run(f"systemctl stop 'rampd*'; rm -rf {CHECKOUT} /srv/ramp /opt/demo/events /etc/systemd/system/rampd*")
    machine.since = int(time.time())
    subprocess.run(["git", "clone", "--quiet", str(ROOT), f"{machine.root}{CHECKOUT}"], check=True)
    (lines,) = re.findall(r"### As a service\n.*?```sh\n(.*?)```", readme(), re.DOTALL)
    *install, enable = lines.strip().splitlines()
    assert len(install) == 4
    machine.run(f"cd {CHECKOUT} && set -e\n" + "\n".join(install))
    machine.run("cd /opt && /opt/rampd/bin/rampctl demo --directory /opt/demo --timeout 60")
    machine.run("mkdir -p /srv/ramp && cp -r /opt/demo/ramp-kits /opt/demo/ramp-data /srv/ramp")
    configure(machine, "iris")
    machine.run(enable)
    assert Unit(machine, "rampd@iris").is_active()


def a_submission_is_scored(machine: Machine) -> None:
    """Run a real one, in namespaces of its own, whatever the unit forbids."""
    unit = Unit(machine, "rampd@iris")
    assert unit.wait_for("daemon.started")["containment"] == "user_and_pid_namespace"
    submit(machine, "logistic_regression")
    assert unit.wait_for("submission.finished")["outcome"] == "ok"


def a_config_is_read_again(machine: Machine) -> None:
    """Put a good one in force; a wrong one leaves it so, and the status says it."""
    unit = Unit(machine, "rampd@iris")
    configure(machine, "iris", n_workers=3)
    unit.do("reload")
    unit.wait_for("daemon.reloaded")
    configure(machine, "iris", n_workers=0)
    unit.do("reload")
    unit.wait_for("config.rejected")
    wait_until(lambda: "config rejected" in unit.get("StatusText"), timeout_s=PATIENCE_S, what="the status")
    assert unit.is_active()
    configure(machine, "iris")
    unit.do("reload")
    wait_until(lambda: "rejected" not in unit.get("StatusText"), timeout_s=PATIENCE_S, what="the status")


def a_killed_daemon_is_back(machine: Machine) -> None:
    """Kill it: its submission is started anew, and nothing of the old run is left."""
    unit = Unit(machine, "rampd@iris")
    submit(machine, "never_converges")
    unit.wait_for("submission.started", submission="never_converges")
    before, runs = unit.get("MainPID"), runs_of(machine)
    assert runs
    unit.do("kill --signal KILL --kill-whom main")
    unit.wait_for("submission.retried", submission="never_converges", outcome="interrupted")
    unit.wait_for("submission.started", submission="never_converges", count=2)
    assert unit.get("MainPID") not in ("0", before)
    assert not runs & runs_of(machine)


def a_silent_daemon_is_ended(machine: Machine) -> None:
    """Have the watchdog end it, with an interval of ten seconds."""
    unit = Unit(machine, "rampd@iris")
    machine.write("/etc/systemd/system/rampd@iris.service.d/watchdog.conf", "[Service]\nWatchdogSec=10\n")
    machine.run("systemctl daemon-reload")
    unit.do("restart")
    before = unit.get("MainPID")
    machine.run(f"kill -STOP {before}")
    wait_until(lambda: unit.get("MainPID") not in ("0", before), timeout_s=PATIENCE_S, what="another daemon")
    wait_until(unit.is_active, timeout_s=PATIENCE_S, what="its start")
    assert "Watchdog timeout" in machine.run("journalctl --no-pager -u rampd@iris")
    machine.run("rm -r /etc/systemd/system/rampd@iris.service.d && systemctl daemon-reload")


def a_stop_drains(machine: Machine) -> None:
    """Stop it: it waits for shutdown_grace, puts the submission back, and ends well."""
    unit = Unit(machine, "rampd@iris")
    unit.wait_for("submission.started", submission="never_converges", count=4)
    begun = time.monotonic()
    unit.do("stop")
    assert 2.5 < time.monotonic() - begun < 15, time.monotonic() - begun
    assert (unit.get("ActiveState"), unit.get("Result")) == ("inactive", "success")
    unit.wait_for("daemon.stopped")


def a_wrong_config_is_not_tried_again(machine: Machine) -> None:
    """End with status 78, and without a restart."""
    unit = Unit(machine, "rampd@iris")
    configure(machine, "iris", n_workers=0)
    assert machine.try_run("systemctl start rampd@iris").returncode != 0
    assert (unit.get("ExecMainStatus"), unit.get("ActiveState"), unit.get("NRestarts")) == ("78", "failed", "0")
    configure(machine, "iris")


def secrets_are_handed_over(machine: Machine) -> None:
    """Have a file of the credentials store read by the daemon's user, and by nobody else."""
    machine.write("/etc/credstore/database_password", "made up")
    machine.run("chmod 600 /etc/credstore/database_password && systemctl reset-failed")
    unit = Unit(machine, "rampd@iris")
    unit.do("start")
    path = "/run/credentials/rampd@iris.service/database_password"
    assert machine.run(f"sudo -u ramp cat {path}") == "made up"
    assert machine.try_run(f"sudo -u nobody cat {path}").returncode != 0
    machine.run("rm /etc/credstore/database_password")


def all_events_are_served_by_one(machine: Machine) -> None:
    """Serve what no other daemon does, and that when it is free; close what goes."""
    one, every = Unit(machine, "rampd@iris"), Unit(machine, "rampd")
    configure(machine, "second")
    machine.run("chown -R ramp: /srv/ramp/events")
    every.do("start")
    every.wait_for("config.rejected", event_name="iris")
    submit(machine, "random_forest", event="second")
    assert every.wait_for("submission.finished", event_name="second")["outcome"] == "ok"
    one.do("stop")
    every.wait_for("event.opened", event_name="iris")
    Path(f"{machine.root}/srv/ramp/events/second/config.yml").unlink()
    every.wait_for("event.closed", event_name="second")
    every.do("stop")


def submissions_are_another_user(machine: Machine) -> None:
    """Put the lines of the drop-in for worker.run_as in force."""
    text = (ROOT / "systemd" / "example.conf").read_text(encoding="utf-8").replace("/data/challenges", "/srv/ramp")
    text = re.sub(r"^#(User=|Group=|CapabilityBoundingSet=)", r"\1", text, flags=re.MULTILINE)
    machine.write("/etc/systemd/system/rampd@third.service.d/local.conf", text)
    machine.run("systemctl daemon-reload && (id participant || useradd --system participant)")
    configure(machine, "third", more=", run_as: participant")
    unit = Unit(machine, "rampd@third")
    unit.do("start")
    submit(machine, "random_forest", event="third", user="root")
    assert unit.wait_for("submission.finished", event_name="third")["outcome"] == "ok"
    assert unit.wait_for("daemon.started")["worker"]["third"]["run_as"] == "participant"
    unit.do("stop")


def nothing_is_left(machine: Machine) -> None:
    """Look for processes of rampd's user and of submissions, and for an exposure above 4.0."""
    assert machine.try_run("pgrep --uid ramp; pgrep --uid participant").stdout == ""
    assert not runs_of(machine)
    for unit in ("rampd@iris", "rampd"):
        exposure = machine.run(f"systemd-analyze security --no-pager {unit} | tail --lines 1")
        assert float(re.findall(r"[0-9.]+", exposure.partition(":")[2])[0]) <= 4.0, exposure


STEPS: tuple[Callable[[Machine], None], ...] = (
    is_installed,
    a_submission_is_scored,
    a_config_is_read_again,
    a_killed_daemon_is_back,
    a_silent_daemon_is_ended,
    a_stop_drains,
    a_wrong_config_is_not_tried_again,
    secrets_are_handed_over,
    all_events_are_served_by_one,
    submissions_are_another_user,
    nothing_is_left,
)


def main() -> None:
    """Take every step, and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="where the root is made, and nothing else is")
    parser.add_argument("--keep", action="store_true", help="leave the root")
    arguments = parser.parse_args()
    machine = Machine(arguments.directory.absolute())
    machine.make()
    took: dict[str, float] = {}
    with machine:
        version = machine.run("systemctl --version").split()[1]
        for step in STEPS:
            begun = time.monotonic()
            step(machine)
            took[step.__name__] = round(time.monotonic() - begun, 1)
            print(f"{step.__name__} {took[step.__name__]:.1f} s", file=sys.stderr)
    if not arguments.keep:
        shutil.rmtree(machine.root)
    print(json.dumps({"systemd": int(version), "steps_s": took}))


if __name__ == "__main__":
    main()
