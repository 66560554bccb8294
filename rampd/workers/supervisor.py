"""Watches over one submission, as PID 1 of its PID namespace, or as a subreaper where there is none.

Forked by `rampd.workers.launcher`, once a submission. It keeps the log, says how the submission ended and how much
memory it took, and sees to it that nothing outlives it:

- standard input is its lifeline. End of file means that the launcher, and so the daemon, is gone: everything is killed
  at once. The line ``stop`` means TERM to everything, and KILL five seconds later.
- standard output is the launcher's own, shared with others: each report is one short line that begins with the run's
  key: ``KEY started``, or ``KEY failed ERRNO AT`` (at its user, folder or program), and at the end
  ``KEY ended STATUS SIGNAL MAX_RSS_BYTES LOG_BYTES CAPPED LOG_ERRNO``.

What it imports, the launcher has to carry: the standard library's smallest parts only.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import stat
import time

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself would be carried by every run
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import NoReturn, TypedDict

    class Spec(TypedDict):
        """What one run is: a line of JSON on its way from the daemon."""

        key: str
        command: list[str]
        environment: dict[str, str]
        folder: str
        log: str
        max_log_bytes: int
        niceness: int
        identity: tuple[int, int, list[int]] | None
        """uid, gid and groups to run as; None for the daemon's own."""


GRACE_S = 5.0
CHUNK = 1 << 16


def supervise(spec: Spec, *, in_namespace: bool) -> None:
    """Run the submission to its last process's end. Returns when there is nothing left of it."""
    key = spec["key"]
    wake_read, wake_write = os.pipe()
    for descriptor in (wake_read, wake_write):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    log = Log(spec["log"], spec["max_log_bytes"])
    output, output_end = os.pipe()
    failure, failure_end = os.pipe()
    child = os.fork()
    if child == 0:
        become(spec, output_end, failure_end)
    os.close(output_end)
    os.close(failure_end)
    error = os.read(failure, 16)
    os.close(failure)
    if error:
        report(f"{key} failed {error.decode()}")
        return
    report(f"{key} started")
    os.set_blocking(output, False)
    Run(key, child, output, wake_read, log, in_namespace=in_namespace).watch()


def become(spec: Spec, output: int, failure: int) -> NoReturn:
    """Turn the forked child into the submission."""
    command = spec["command"]
    step = "user"
    try:
        os.setsid()
        os.nice(spec["niceness"])  # on top of the daemon's own, which nobody but root could go below
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.set_wakeup_fd(-1)
        # Python ignores the first two, and what is ignored stays so through exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        if spec["identity"] is not None:
            uid, gid, groups = spec["identity"]
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
        step = "folder"
        os.chdir(spec["folder"])
        step = "program"
        os.execve(command[0], command, spec["environment"])
    except OSError as error:
        os.write(failure, f"{error.errno} {step}".encode())
    finally:
        os._exit(127)


def report(line: str) -> None:
    """Tell the daemon, in one write; if it is gone, the lifeline says so as well."""
    try:
        os.write(1, f"{line}\n".encode())
    except OSError:
        pass


class Log:
    """The submission's output on disk, up to a limit."""

    def __init__(self, path: str, limit: int) -> None:
        self.errno = 0
        self.descriptor = -1
        try:
            self.descriptor = open_log(path)
        except OSError as error:
            self.errno = error.errno or 0
        self.limit = limit
        self.size = 0
        self.capped = False

    def write(self, data: bytes) -> None:
        """Keep what fits; what does not is counted."""
        room = self.limit - self.size
        self.size += len(data)
        if room > 0:
            self._write(data[:room])
        if self.size > self.limit and not self.capped:
            self.capped = True
            self._write(f"\n[rampd] the log ends here: only the first {self.limit} bytes are kept\n".encode())

    def _write(self, data: bytes) -> None:
        # A full disk costs the log, never the submission.
        try:
            while data and not self.errno:
                data = data[os.write(self.descriptor, data) :]
        except OSError as error:
            self.errno = error.errno or 0


def open_log(path: str) -> int:
    """Return a descriptor of an empty regular file at `path`: the older log's, or a new one's.

    Whatever else lies there is removed, and neither followed nor written to: a link, a fifo (whose opening would wait
    for a reader), a device, or a file that has another name as well. A folder stays, and costs the log.
    """
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            descriptor = os.open(path, flags)
            if os.path.samestat(found, os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                return descriptor
            os.close(descriptor)
        os.unlink(path)
    except FileNotFoundError:
        pass
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)


class Run:
    """One submission, from its start to its last process's end."""

    def __init__(self, key: str, child: int, output: int, wake: int, log: Log, *, in_namespace: bool) -> None:
        self.key = key
        self.in_namespace = in_namespace
        self.child = child
        self.output = output
        self.wake = wake
        self.log = log
        self.status = 0
        self.max_rss_bytes = 0
        self.is_over = False
        self.kill_at = 0.0

    def watch(self) -> None:
        """Pump, obey and reap until the submission's own process has ended; then end what is left, and report."""
        poll = select.poll()
        for descriptor in (0, self.output, self.wake):
            poll.register(descriptor, select.POLLIN)
        while not self.is_over:
            timeout_ms = None if not self.kill_at else max(0.0, self.kill_at - time.monotonic()) * 1000
            for descriptor, _ in poll.poll(timeout_ms):
                if descriptor == self.output:
                    if not self.pump():
                        poll.unregister(self.output)
                elif descriptor == 0:
                    self.obey(poll)
                else:
                    self.on_signal()
            if self.kill_at and time.monotonic() >= self.kill_at:
                self.signal_all(signal.SIGKILL)
                self.kill_at = time.monotonic() + 0.1
        # In this order: something that prints for ever would never let the log end.
        self.end_all()
        while self.pump():
            pass
        code = os.waitstatus_to_exitcode(self.status)
        number = -code if code < 0 else 0
        status = 128 + number if number else code
        report(
            f"{self.key} ended {status} {number} {self.max_rss_bytes} "
            f"{self.log.size} {int(self.log.capped)} {self.log.errno}"
        )

    def pump(self) -> bool:
        """Move one chunk into the log; False when there is nothing now, or ever again."""
        try:
            data = os.read(self.output, CHUNK)
        except BlockingIOError:
            return False
        self.log.write(data)
        return bool(data)

    def obey(self, poll: select.poll) -> None:
        """Read a command of the daemon's."""
        data = os.read(0, 64)
        if b"stop" in data:
            self.stop()
        if not data:
            poll.unregister(0)
            self.end_all()
            os._exit(1)

    def on_signal(self) -> None:
        """Reap; a TERM or INT that was sent to this program means the same as the daemon's stop."""
        numbers = os.read(self.wake, 64)
        self.reap()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.stop()

    def reap(self) -> bool:
        """Take in whatever has ended; return whether any child is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.max_rss_bytes = max(self.max_rss_bytes, usage.ru_maxrss * 1024)
            if pid == self.child:
                self.status = status
                self.is_over = True

    def stop(self) -> None:
        """Ask everything to end, and note when to make it."""
        if not self.kill_at:
            self.kill_at = time.monotonic() + GRACE_S
            self.signal_all(signal.SIGTERM)

    def end_all(self) -> None:
        """Kill until nothing is left: what forks meanwhile is killed in the next round."""
        while self.reap():
            self.signal_all(signal.SIGKILL)
            time.sleep(0.001)

    def signal_all(self, number: int) -> None:
        """Send a signal to everything below this program."""
        if self.in_namespace:
            try:
                os.kill(-1, number)  # PID 1's "everybody" is its namespace without itself
            except ProcessLookupError:
                pass
            return
        for pid in descendants():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


def descendants(*, spare: Collection[int] = ()) -> list[int]:
    """Return the pids below this process, but for trees to spare; orphans are its children: it is a subreaper."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    stack = [os.getpid()]
    while stack:
        below = [pid for pid in children.get(stack.pop(), []) if pid not in spare]
        found += below
        stack += below
    return found
