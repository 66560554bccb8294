"""The resident program that starts runs, once an event, a child of the daemon: ``main`` with modes as arguments.

Forking a daemon of 60 MB on its event loop costs 3 ms a run, and a fresh interpreter for each supervisor 10 ms; this
program is small and forks its own supervisors in 4 ms, namespaces included, off the loop. (`setpriv` and `unshare`
take as long, and would leave nobody to measure memory, cap the log or tell status 137 from signal 9.)

- standard input takes a line each: ``run {…}`` (a `Spec`), ``stop KEY``, ``kill KEY``. End of file means that the
  daemon is gone: this program ends, and with it the lifelines of all supervisors.
- standard output first says ``ready MODE``, the best containment that works here (found by trying), then
  ``KEY pid PID`` for each run, what its supervisor reports (see `rampd.workers.supervisor`), and ``KEY gone`` once the
  supervisor has ended, whatever became of it.

It imports the standard library's smallest parts only: everything that it carries is copied on write for every run.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
from contextlib import suppress

from rampd.workers.supervisor import descendants, report, supervise

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself would be carried by every run
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from rampd.workers.supervisor import Spec

PID_NAMESPACE = "pid_namespace"
USER_AND_PID_NAMESPACE = "user_and_pid_namespace"
SUBREAPER = "subreaper"

# From prctl(2), unshare(2) and mount(2):
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
_MS_REC_PRIVATE = 0x4000 | 0x40000
_NOT_CONTAINED = 96
_ORPHANS_S = 5.0


class _Supervisor:
    def __init__(self, pid: int, lifeline: int) -> None:
        self.pid = pid
        self.lifeline = lifeline
        """The end that we write to: closing it ends the run."""


class Launcher:
    """Starts supervisors, passes words on to them, and says when they are gone.

    Parameters
    ----------
    modes
        Kinds of containment in order of preference: the first that works is in force, and the last one if none does.
    """

    def __init__(self, modes: list[str]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._supervisors: dict[str, _Supervisor] = {}
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1)  # supervisors outlive the process that makes their namespace
        self._wake, wake_end = os.pipe()
        for descriptor in (self._wake, wake_end):
            os.set_blocking(descriptor, False)
        self._wake_end = wake_end
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which ends us by the lifeline
        self.mode = next((mode for mode in modes[:-1] if self._works(mode)), modes[-1])

    def _prctl(self, option: int, value: int) -> None:
        if self._libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")

    def _works(self, mode: str) -> bool:
        """Try a namespace by starting a process that does nothing in one."""
        pid = self._fork_contained(mode, lambda: os._exit(0), is_trial=True)
        return pid is not None and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def serve(self) -> None:
        """Do as the daemon says, until it is gone."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        pending = b""
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if 0 in ready:
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._obey(line)

    def _obey(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if word == b"run":
            import json  # noqa: PLC0415 -- loaded by now: `main` says when

            self._run(json.loads(rest))
            return
        supervisor = self._supervisors.get(rest.decode())
        if supervisor is None:
            return
        if word == b"stop":
            with suppress(BrokenPipeError):
                os.write(supervisor.lifeline, b"stop\n")
        elif word == b"kill":
            with suppress(ProcessLookupError):
                os.kill(supervisor.pid, signal.SIGKILL)

    def _run(self, spec: Spec) -> None:
        key = spec["key"]
        try:
            supervisor = self._start_supervisor(spec)
        except OSError as error:
            # No more processes or descriptors: that costs this run its start, and no other run anything.
            report(f"{key} failed {error.errno} process")
            supervisor = None
        if supervisor is None:
            report(f"{key} gone")
            return
        self._supervisors[key] = supervisor
        report(f"{key} pid {supervisor.pid}")

    def _start_supervisor(self, spec: Spec) -> _Supervisor | None:
        read_end, lifeline = os.pipe()

        def begin() -> None:
            os.close(lifeline)
            self._become_supervisor(spec, read_end)

        pid: int | None = None
        try:
            pid = self._fork_contained(self.mode, begin)
        finally:
            os.close(read_end)
            if pid is None:
                os.close(lifeline)
        return None if pid is None else _Supervisor(pid, lifeline)

    def _become_supervisor(self, spec: Spec, lifeline: int) -> NoReturn:
        """Turn a fork into a supervisor. Others' lifelines are let go: it would keep them open for ever."""
        status = 1
        try:
            for other in self._supervisors.values():
                os.close(other.lifeline)
            os.dup2(lifeline, 0)
            os.setsid()
            # What runs as the same user may not trace us, nor look into our memory.
            self._prctl(_PR_SET_DUMPABLE, 0)
            if self.mode == SUBREAPER:
                self._prctl(_PR_SET_CHILD_SUBREAPER, 1)
            supervise(spec, in_namespace=self.mode != SUBREAPER)
            status = 0
        finally:
            os._exit(status)

    def _fork_contained(self, mode: str, begin: Callable[[], None], *, is_trial: bool = False) -> int | None:
        """Fork a process, as PID 1 of a namespace of its own where `mode` says so; return its pid, None on failure."""
        sys.stdout.flush()
        told, teller = os.pipe()
        try:
            first = os.fork()
        except OSError:
            os.close(told)
            os.close(teller)
            raise
        if first == 0:
            self._in_fork(mode, begin, teller, is_trial=is_trial)
        os.close(teller)
        try:
            text = os.read(told, 16)
        finally:
            os.close(told)
        if mode != SUBREAPER:
            os.waitpid(first, 0)
        return int(text) if text else None

    def _in_fork(self, mode: str, begin: Callable[[], None], teller: int, *, is_trial: bool) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for descriptor in (self._wake, self._wake_end):
                os.close(descriptor)
            if mode != SUBREAPER:
                self._unshare(mode)
                second = os.fork()
                if second != 0:
                    os.write(teller, str(second).encode())
                    os._exit(0)
                self._mount_proc()
            else:
                os.write(teller, str(os.getpid()).encode())
            os.close(teller)
            begin()
        except OSError as error:
            if not is_trial:
                os.write(2, f"rampd: a run cannot be contained ({mode}): {error}\n".encode())
        finally:
            os._exit(_NOT_CONTAINED)

    def _unshare(self, mode: str) -> None:
        flags = _CLONE_NEWNS | _CLONE_NEWPID
        uid, gid = os.geteuid(), os.getegid()
        if mode == USER_AND_PID_NAMESPACE:
            flags |= _CLONE_NEWUSER
        if self._libc.unshare(flags) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        if mode == USER_AND_PID_NAMESPACE:
            # user_namespaces(7): a process without privileges may map its own ids, once it gave setgroups(2) up.
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)

    def _mount_proc(self) -> None:
        """Let the namespace see its own processes, and nobody else's."""
        if self._libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        if self._libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None) != 0:
            raise OSError(ctypes.get_errno(), "mount /proc")

    def _reap(self) -> None:
        gone = self._collect()
        deadline = time.monotonic() + _ORPHANS_S
        # A supervisor that was killed leaves to us, the next subreaper, what it watched over, marked or not.
        while self.mode == SUBREAPER and any(gone.values()) and time.monotonic() < deadline:
            orphans = descendants(spare={supervisor.pid for supervisor in self._supervisors.values()})
            if not orphans:
                break
            for pid in orphans:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
            gone |= self._collect()
        for key in [key for key, supervisor in self._supervisors.items() if supervisor.pid in gone]:
            os.close(self._supervisors.pop(key).lifeline)
            report(f"{key} gone")

    def _collect(self) -> dict[int, int]:
        """Return what has ended, with its wait status by pid."""
        gone: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return gone
            if pid == 0:
                return gone
            gone[pid] = status


def main() -> None:
    """Serve the daemon at the other end of standard input."""
    # uvloop leaves copies of the daemon's own three open in every child: its log stream is nothing for submissions.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    import json  # noqa: F401, PLC0415 -- before anything is frozen: no run is to pay for it

    launcher = Launcher(sys.argv[1:])
    gc.collect()
    gc.freeze()
    gc.disable()
    report(f"ready {launcher.mode}")
    launcher.serve()


if __name__ == "__main__":
    main()
