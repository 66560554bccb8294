"""What becomes of a run on an instance when its connection, its instance or itself fails, one fault after the other."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.orders import Order
from support.aws import AwsRoom, end_of, until
from support.event import find, served
from support.requirements import needs_root
from support.sshd import name_of, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    Record = dict[str, Any]

WAITS = 'until [ -e "$HOME/go-on" ]; do sleep 0.05; done; echo over\n'
"""A submission that goes on when its machine has a file of that name."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what does not answer be noticed soon."""
    monkeypatch.setattr("rampd.workers.aws_shell._COMMAND_S", 1.0)
    monkeypatch.setattr("rampd.workers.aws_shell._STOP_REACH_S", 0.5)


def go_on(aws: AwsRoom, at: int = -1) -> None:
    """Have a submission that waits on a machine go on."""
    (aws.machine(at).home / "go-on").touch()


def log_of(aws: AwsRoom, name: str = "good") -> str:
    """Return what a submission printed, without the stub's first line."""
    return (aws.folder / "logs" / name / "log").read_text(encoding="utf-8").partition("\n")[2]


async def started(records: list[Record], count: int = 1) -> None:
    """Wait until so many attempts run."""
    await until(lambda: len(find(records, "submission.started")) == count, what="a start")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("word", ["mkdir", "upload", "launch", "poll", "collect", "deadman"])
async def test_a_connection_that_breaks(aws: AwsRoom, log_records: list[Record], word: str, after: bool) -> None:
    """Whichever command it was, and whether it ran or not: the same run goes on, once."""
    aws.submit("good", 'echo run >>"$HOME/runs"\necho one\n')
    aws.cut_at = (word, after)
    await aws.serve_out()
    assert (aws.root / "was-cut").exists()
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)
    assert find(log_records, "ssh.lost")
    assert log_of(aws) == "one\n"
    assert (aws.machine().home / "runs").read_text(encoding="utf-8") == "run\n"


async def test_the_log_grows_while_it_runs(aws: AwsRoom, log_records: list[Record]) -> None:
    """What a submission prints is here while it runs, once, whatever bytes they are."""
    aws.submit("good", f"printf 'one\\n\\377\\000\\n'\n{WAITS}")
    serving = asyncio.ensure_future(aws.serve_out())
    path = aws.folder / "logs" / "good" / "log"
    await until(lambda: path.exists() and path.read_bytes().endswith(b"one\n\xff\0\n"), what="the first lines")
    go_on(aws)
    await serving
    assert path.read_bytes().endswith(b"one\n\xff\0\nover\n")
    assert end_of(log_records)["log_bytes"] == len(path.read_bytes())


async def test_a_black_hole_that_comes_back(aws: AwsRoom, log_records: list[Record], impatient: None) -> None:
    """An instance that says nothing for a while, and runs as EC2 says, is waited for."""
    aws.submit("good", WAITS)
    serving = asyncio.ensure_future(aws.serve_out())
    await started(log_records)
    aws.machine().freeze()
    await until(lambda: find(log_records, "ssh.lost"), what="the loss")
    go_on(aws)
    aws.machine().thaw()
    await serving
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)
    assert log_of(aws) == "over\n"


async def test_a_black_hole_for_good(aws: AwsRoom, log_records: list[Record], impatient: None) -> None:
    """After reconnect_timeout the run counts as lost, its instance is ended, and the submission has another."""
    aws.submit("good", WAITS)
    serving = asyncio.ensure_future(aws.serve_out(reconnect_timeout=0.5))
    await started(log_records)
    aws.machine().freeze()
    await started(log_records, 2)
    go_on(aws)
    await serving
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 2)
    (retried,) = find(log_records, "submission.retried")
    assert "was out of reach for 0.5 s (EC2 says that it runs)" in retried["reason"]
    assert log_of(aws) == "over\n"


async def test_another_host_key(aws: AwsRoom, log_records: list[Record]) -> None:
    """Who answers with another key at an instance's address gets nothing: the submission has another instance."""
    aws.submit("good", WAITS)
    serving = asyncio.ensure_future(aws.serve_out())
    await started(log_records)
    machine = aws.machine()
    machine.stop_listening()
    machine.change_host_key()
    machine.start()
    await started(log_records, 2)
    go_on(aws)
    await serving
    (retried,) = find(log_records, "submission.retried")
    assert retried["outcome"] == "platform_error"
    assert "shows another key than the pinned one" in retried["reason"]
    assert end_of(log_records)["outcome"] == "ok"


async def test_a_host_key_made_for_the_launch(aws: AwsRoom, log_records: list[Record]) -> None:
    """With user_data the instance shows the key that it was given, and the key's private half is gone by the run."""
    aws.submit("good", WAITS)
    serving = asyncio.ensure_future(aws.serve_out(ssh_host_key="user_data"))
    await started(log_records)
    attempts = list((aws.folder / "state" / "attempts").iterdir())
    assert [path.name for attempt in attempts for path in attempt.iterdir()] == []
    go_on(aws)
    await serving
    assert end_of(log_records)["outcome"] == "ok"


async def test_a_host_key_that_is_not_the_one_made(aws: AwsRoom, log_records: list[Record]) -> None:
    """With user_data no other key is ever accepted, not even the first time."""
    aws.submit("good")
    aws.prepare_all(lambda sshd: sshd.change_host_key())
    await aws.serve_out(ssh_host_key="user_data", max_attempts=1)
    assert end_of(log_records)["state"] == "checking_error"
    assert "shows another key than the pinned one" in end_of(log_records)["reason"]
    assert not (aws.machine().home / ".rampd").exists()


async def test_an_instance_that_is_terminated(aws: AwsRoom, log_records: list[Record]) -> None:
    """Spot instances that AWS takes back twice are followed by one that it does not."""
    aws.submit("good", WAITS)
    serving = asyncio.ensure_future(aws.serve_out(use_spot_instance=True))
    for number in (1, 2):
        await started(log_records, number)
        aws.cloud.interrupt(find(log_records, "submission.started")[-1]["instance_id"])
    await started(log_records, 3)
    go_on(aws)
    await serving
    assert [record["spot"] for record in find(log_records, "submission.started")] == [True, True, False]
    assert len(find(log_records, "aws.spot_interrupted")) == 2
    assert [record["outcome"] for record in find(log_records, "submission.retried")] == ["lost_host"] * 2
    assert end_of(log_records)["outcome"] == "ok"


@pytest.mark.parametrize("status", [401, 404, 200])
async def test_the_spot_notice(aws: AwsRoom, log_records: list[Record], status: int) -> None:
    """A notice moves the submission to another instance; its absence, or a refusal, does nothing."""
    aws.submit("good", WAITS)
    with metadata_service(status) as (url, asked):
        serving = asyncio.ensure_future(aws.serve_out(use_spot_instance=True, metadata_url=url))
        await until(asked.is_set, what="a look for the notice")
        if status == 200:
            await until(lambda: find(log_records, "submission.retried"), what="the retry")
            assert find(log_records, "aws.spot_interrupted")
            await started(log_records, 2)
        go_on(aws)
        await serving
    assert end_of(log_records)["attempts"] == (2 if status == 200 else 1)
    assert end_of(log_records)["outcome"] == "ok"


@contextmanager
def metadata_service(status: int) -> Iterator[tuple[str, threading.Event]]:
    """Give a metadata service, and an event that says it was asked for the notice.

    The first answer has this status; later ones say that there is no notice.
    """
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._say(200, b"a-token")

        def do_GET(self) -> None:
            code = 404 if asked.is_set() else status
            assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
            self._say(code, json.dumps({"action": "terminate", "time": "2026-11-24T15:00:00Z"}).encode())
            asked.set()

        def _say(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("when", ["upload", "run"])
async def test_a_disk_that_is_full_over_there(aws: AwsRoom, log_records: list[Record], when: str) -> None:
    """It is the platform's, and the reason says what to change."""
    needs_root()
    disk = aws.root / "disk"
    with small_disk(disk, size_bytes=1 << 20):

        def prepare(sshd: Any) -> None:
            (sshd.kit / "submissions").rmdir()
            (sshd.kit / "submissions").symlink_to(disk)

        aws.prepare_all(prepare)
        if when == "upload":
            (disk / "filler").write_bytes(b"x" * ((1 << 20) - 4096))
        aws.submit("good", "cat /dev/zero >zeros || exit 1\n", data__bin="x" * 100_000)
        await aws.serve_out(max_attempts=1)
        # Nobody may have it open when it is unmounted.
        aws.machine().terminate()
    assert (end_of(log_records)["state"], end_of(log_records)["outcome"]) == ("checking_error", "platform_error")
    assert "is full; its image needs a larger root volume" in end_of(log_records)["reason"]


async def test_a_timeout(aws: AwsRoom, log_records: list[Record]) -> None:
    """It is ended with all its processes, and its log is whole."""
    aws.submit("hangs", "echo begun")
    await aws.serve_out(timeout=2)
    finished = end_of(log_records, "hangs")
    assert (finished["state"], finished["outcome"], finished["exit_status"]) == ("training_error", "timeout", 124)
    assert log_of(aws, "hangs") == "begun\n"


async def test_a_cancel(aws: AwsRoom, log_records: list[Record]) -> None:
    """The run is ended, and so is its instance."""
    aws.submit("hangs", "echo begun")
    async with aws.opened_event() as event, served(event) as dispatcher:
        await started(log_records)
        dispatcher._runs["hangs"].orders.give(Order.CANCEL)
        await until(lambda: find(log_records, "submission.finished"), what="the end")
    assert end_of(log_records, "hangs")["outcome"] == "cancelled"


async def test_a_stop_leaves_the_run_to_the_next_daemon(aws: AwsRoom, log_records: list[Record]) -> None:
    """A daemon that is stopped parks what runs; the next one goes on with the same instance, deadline and log."""
    aws.submit("good", f"echo begun\n{WAITS}")
    async with aws.opened_event(dispatcher={"shutdown_grace": 0}) as event, served(event):
        await started(log_records)
    assert len(aws.cloud.alive()) == 1
    go_on(aws)
    await aws.serve_out()
    (resumed,) = find(log_records, "submission.resumed")
    assert resumed["instance_id"] == find(log_records, "submission.started")[0]["instance_id"]
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)
    assert log_of(aws) == "begun\nover\n"


async def test_a_run_that_ended_while_nobody_looked(
    aws: AwsRoom, log_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in time, and is taken so by a daemon that comes after its deadline; its log is whole, once."""
    lines = "for i in $(seq 2000); do echo $i; done\n"
    aws.submit("good", WAITS + lines)
    async with aws.opened_event(dispatcher={"shutdown_grace": 0}) as event, served(event):
        await started(log_records)
    go_on(aws)
    await until(lambda: list(aws.machine().home.glob(".rampd/*/ended")), what="the run's end")
    now = clock.boottime
    monkeypatch.setattr(clock, "boottime", lambda: now() + 10_000)
    await aws.serve_out()
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)
    assert log_of(aws) == "over\n" + "".join(f"{number}\n" for number in range(1, 2001))


async def test_a_timeout_while_nobody_looks(aws: AwsRoom, log_records: list[Record]) -> None:
    """The instance keeps the deadline by itself, and the next daemon says what it was."""
    aws.submit("hangs", "echo begun")
    async with aws.opened_event(dispatcher={"shutdown_grace": 0}, timeout=3) as event, served(event):
        await started(log_records)
    await until(lambda: list(aws.machine().home.glob(".rampd/*/ended")), what="the run's end")
    assert "sleep" not in map(name_of, aws.machine().processes())
    await aws.serve_out(timeout=3)
    finished = end_of(log_records, "hangs")
    assert (finished["state"], finished["outcome"], finished["exit_status"]) == ("training_error", "timeout", 124)
    assert log_of(aws, "hangs") == "begun\n"


async def test_a_failure_is_the_participants(aws: AwsRoom, log_records: list[Record]) -> None:
    """ramp-test's status is the submission's."""
    aws.submit("bad", "echo 'no good' >&2")
    await aws.serve_out()
    finished = end_of(log_records, "bad")
    assert (finished["state"], finished["outcome"], finished["exit_status"]) == (
        "training_error",
        "participant_error",
        1,
    )
    assert log_of(aws, "bad") == "no good\n"


async def test_a_hostile_output_is_refused(aws: AwsRoom, log_records: list[Record]) -> None:
    """A link in training_output is not followed, not fetched, and the participant's."""
    aws.submit("good", "mkdir training_output; ln -s /etc/passwd training_output/passwd\n")
    await aws.serve_out()
    assert end_of(log_records)["outcome"] == "participant_error"
    assert not (aws.folder / "predictions" / "good").exists()


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [("profile", "puts no ramp-test on PATH"), ("kit", "the image has no folder ~/kit")],
)
async def test_an_image_that_is_not_prepared(
    aws: AwsRoom, log_records: list[Record], broken: str, sentence: str
) -> None:
    """It holds the event, costs the submission nothing, and no instance is launched again at once."""

    def prepare(sshd: Any) -> None:
        if broken == "profile":
            (sshd.home / ".profile").write_text("", encoding="utf-8")
        else:
            sshd.kit.rename(sshd.home / "elsewhere")

    aws.prepare_all(prepare)
    aws.submit("good")
    async with aws.opened_event(dispatcher={"hunger_policy": "sleep"}) as event, served(event):
        await until(lambda: find(log_records, "event.held"), what="the hold")
        assert sentence in find(log_records, "event.held")[0]["missing"]
        for _ in range(3):
            event.store.changed.set()
            await asyncio.sleep(0.1)
        assert len(aws.cloud.called("RunInstances")) == 1
        (submission,) = await event.store.list()
        assert submission.state == "new"
        assert (await event.journal.failures(submission.id)).counted == 0


async def test_no_deadman_is_said_once(aws: AwsRoom, log_records: list[Record]) -> None:
    """An instance that does not take the command runs all the same."""
    aws.submit("good")
    await aws.serve_out(deadman_command="echo no >&2; exit {minutes}", deadman_minutes=3)
    (warning,) = find(log_records, "aws.no_deadman")
    assert warning["error"] == "worker.deadman_command ended with status 3: no"
    assert end_of(log_records)["outcome"] == "ok"


async def test_memory_profiling(aws: AwsRoom, log_records: list[Record]) -> None:
    """The profiler runs around ramp-test, and what it wrote is kept beside the log."""

    def prepare(sshd: Any) -> None:
        mprof = sshd.home / "bin" / "mprof"
        mprof.write_text('#!/bin/sh\nshift 2; echo "MEM 1.0 2.0" >"$2"; shift 2; exec "$@"\n', encoding="utf-8")
        mprof.chmod(0o755)

    aws.prepare_all(prepare)
    aws.submit("good")
    await aws.serve_out(memory_profiling=True)
    assert end_of(log_records)["outcome"] == "ok"
    assert (aws.folder / "logs" / "good" / "mprof.dat").read_text(encoding="utf-8") == "MEM 1.0 2.0\n"
