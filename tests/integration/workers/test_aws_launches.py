"""What becomes of a submission when EC2 fails, one fault after the other. No instance is ever left behind."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from rampd.orders import Order
from rampd.states import Outcome
from rampd.workers.aws import AwsWorker
from support.aws import AwsRoom, end_of, until
from support.ec2 import LostReply, Refusal
from support.event import find, served

if TYPE_CHECKING:
    from pathlib import Path

    Record = dict[str, Any]

NO_CAPACITY = Refusal("InsufficientInstanceCapacity", 500)
THROTTLED = Refusal("RequestLimitExceeded", 503)


def asked_for(aws: AwsRoom) -> list[tuple[str, bool]]:
    """Return type and market of each launch that was asked for."""
    return [
        (call.parameters["InstanceType"], "InstanceMarketOptions.MarketType" in call.parameters)
        for call in aws.cloud.called("RunInstances")
    ]


async def test_a_good_submission_is_scored(aws: AwsRoom, log_records: list[Record]) -> None:
    """From the folder to the score, with the log whole, the dead-man's switch set, and every tag in the launch."""
    aws.submit("good", "echo one; echo two >&2")
    await aws.serve_out()
    assert end_of(log_records)["state"] == "scored"
    log = (aws.folder / "logs" / "good" / "log").read_text(encoding="utf-8")
    assert log == "ramp-test --submission good --save-output --ignore-warning\none\ntwo\n"
    assert (aws.folder / "predictions" / "good" / "fold_0" / "scores.csv").is_file()
    assert (aws.machine().home / "deadman").read_text(encoding="utf-8").split() == ["61", "61"]
    (call,) = aws.cloud.called("RunInstances")
    assert call.parameters["InstanceInitiatedShutdownBehavior"] == "terminate"
    keys = {
        value for key, value in call.parameters.items() if key.startswith("TagSpecification.1.Tag") and ".Key" in key
    }
    assert keys == {"Name", "rampd:owner", "rampd:event", "rampd:submission", "rampd:attempt"}
    (started,) = find(log_records, "submission.started")
    assert started["instance_id"] in aws.machines
    assert (started["instance_type"], started["spot"]) == ("t2.micro", False)
    assert started["host"] == aws.machine().address
    assert [record["event"] for record in log_records if record["event"].startswith("aws.")] == [
        "aws.instance_launched",
        "aws.instance_terminated",
    ]


async def test_a_reply_that_is_lost(aws: AwsRoom, log_records: list[Record]) -> None:
    """The same call is made again, and brings the instance that was launched already."""
    aws.submit("good")
    aws.cloud.fail("RunInstances", LostReply())
    await aws.serve_out()
    assert end_of(log_records)["outcome"] == "ok"
    first, second = aws.cloud.called("RunInstances")
    assert first == second
    assert len(aws.machines) == 1


async def test_throttled_three_times(aws: AwsRoom, log_records: list[Record]) -> None:
    """It is asked again, with the same token, and the attempt goes on."""
    aws.submit("good")
    aws.cloud.fail("RunInstances", THROTTLED, THROTTLED, THROTTLED)
    await aws.serve_out()
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)
    assert len({call.parameters["ClientToken"] for call in aws.cloud.called("RunInstances")}) == 1


async def test_no_capacity_for_the_first_type(aws: AwsRoom, log_records: list[Record]) -> None:
    """The next type is asked for at once, by a call of its own."""
    aws.submit("good")
    aws.cloud.fail("RunInstances", NO_CAPACITY)
    await aws.serve_out(instance_type=["t2.large", "t2.micro"])
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)
    assert asked_for(aws) == [("t2.large", False), ("t2.micro", False)]
    assert len({call.parameters["ClientToken"] for call in aws.cloud.called("RunInstances")}) == 2


async def test_no_capacity_at_all_for_a_while(aws: AwsRoom, log_records: list[Record]) -> None:
    """It costs the participant nothing: the submission waits until there is an instance to be had."""
    aws.submit("good")
    aws.cloud.fail("RunInstances", *[NO_CAPACITY] * 8)
    await aws.serve_out(instance_type=["t2.large", "t2.micro"])
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 5)
    retried = find(log_records, "submission.retried")
    assert [(record["outcome"], record["counted"]) for record in retried] == [("no_capacity", False)] * 4
    assert "t2.large: InsufficientInstanceCapacity; t2.micro: InsufficientInstanceCapacity" in retried[0]["reason"]


async def test_spot_is_refused(aws: AwsRoom, log_records: list[Record]) -> None:
    """Where no spot instance is to be had an on-demand one is asked for."""
    aws.submit("good")
    aws.cloud.fail("RunInstances", Refusal("MaxSpotInstanceCountExceeded"))
    await aws.serve_out(use_spot_instance=True)
    assert end_of(log_records)["outcome"] == "ok"
    assert asked_for(aws) == [("t2.micro", True), ("t2.micro", False)]


async def test_an_instance_that_never_boots(aws: AwsRoom, log_records: list[Record]) -> None:
    """It is ended after connect_timeout, and its submission is not the participant's failure."""
    aws.submit("good")
    aws.cloud.never_boots.set()
    await aws.serve_out(connect_timeout=0.5, max_attempts=2)
    finished = end_of(log_records)
    assert (finished["state"], finished["outcome"], finished["attempts"]) == ("checking_error", "platform_error", 2)
    assert "is still pending after worker.connect_timeout (0.5 s)" in finished["reason"]


async def test_an_sshd_that_refuses(aws: AwsRoom, log_records: list[Record]) -> None:
    """The reason says what to look at."""
    aws.submit("good")
    aws.answers = False
    await aws.serve_out(connect_timeout=0.5, max_attempts=1)
    finished = end_of(log_records)
    assert (finished["state"], finished["outcome"]) == ("checking_error", "platform_error")
    assert "worker.security_group" in finished["reason"]


async def test_a_refusal_holds_the_event(aws: AwsRoom, log_records: list[Record]) -> None:
    """What a person must mend stops every launch, costs nothing, and is said in one line."""
    aws.submit("good")
    aws.cloud.fail(
        "RunInstances", Refusal("UnauthorizedOperation", 403, "You are not. Encoded authorization failure message: x")
    )
    async with aws.opened_event() as event, served(event):
        await until(lambda: bool(find(log_records, "event.held")), what="the hold")
        (held,) = find(log_records, "event.held")
        assert "may not call RunInstances; docs/aws.md" in held["missing"]
        assert "Encoded" not in held["missing"]
        (submission,) = await event.store.list()
        failures = await event.journal.failures(submission.id)
        assert failures.counted == 0
        assert isinstance(event.worker, AwsWorker)
        event.worker._refused_until = 0.0
        await until(lambda: bool(find(log_records, "submission.finished")), what="the end")
    assert find(log_records, "event.released")


async def test_a_type_that_there_is_not(aws: AwsRoom, log_records: list[Record]) -> None:
    """A misspelling holds the event, and says which key."""
    aws.submit("good")
    async with aws.opened_event(instance_type="x9.huge") as event, served(event):
        await until(lambda: find(log_records, "event.held"), what="the hold")
    assert "worker.instance_type: EC2 has no such type" in find(log_records, "event.held")[0]["missing"]


async def test_an_instance_that_ends_while_it_boots(aws: AwsRoom, log_records: list[Record]) -> None:
    """It is lost like any other, and the submission has another one."""
    aws.submit("good")
    aws.cloud.never_boots.set()
    serving = asyncio.ensure_future(aws.serve_out())
    await until(lambda: len(aws.machines) == 1, what="an instance")
    aws.cloud.interrupt(next(iter(aws.machines)), "Server.InternalError")
    aws.cloud.never_boots.clear()
    await serving
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 2)
    assert find(log_records, "submission.retried", outcome="lost_host")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_cancel_while_ec2_is_asked(aws: AwsRoom, log_records: list[Record], after: bool) -> None:
    """Whether the launch had taken effect or not, no instance is left."""
    aws.submit("good")
    pause = aws.cloud.pause("RunInstances", after=after)
    async with aws.opened_event() as event, served(event) as dispatcher:
        await until(pause.reached.is_set, what="the launch")
        (run,) = dispatcher._runs.values()
        run.orders.give(Order.CANCEL)
        await asyncio.sleep(0)
        pause.go_on.set()
        await until(lambda: bool(find(log_records, "submission.finished")), what="the end")
    assert end_of(log_records)["outcome"] == Outcome.CANCELLED
    assert end_of(log_records)["state"] == "checking_error"


async def test_a_launch_that_hangs_delays_nobody(aws: AwsRoom, log_records: list[Record]) -> None:
    """While one launch stands still, others ask for their instances as soon as without it, within 100 ms."""
    loop = asyncio.get_running_loop()
    aws.answers = False  # only asking is looked at
    aws.cloud.never_boots.set()
    names = (f"good{number}" for number in itertools.count())

    async def time_to_launch() -> float:
        before, begun = len(aws.cloud.called("RunInstances")), loop.time()
        aws.submit(next(names))
        await until(lambda: len(aws.cloud.called("RunInstances")) > before, what="the launch", every_s=0.001)
        return loop.time() - begun

    dispatcher = {"hunger_policy": "sleep", "n_workers": 40, "shutdown_grace": 0, "time_between_collection": 5}
    async with aws.opened_event(dispatcher=dispatcher) as event, served(event):
        await time_to_launch()  # the first one makes the client
        alone = [await time_to_launch() for _ in range(5)]
        pause = aws.cloud.pause("RunInstances")
        await time_to_launch()
        await until(pause.reached.is_set, what="the launch that hangs")
        # The shortest of some: a machine that is busy with something else delays some of them.
        beside = [await time_to_launch() for _ in range(5)]
        while min(beside) - min(alone) >= 0.1 and len(beside) < 20:
            beside.append(await time_to_launch())
        assert min(beside) - min(alone) < 0.1
        pause.go_on.set()
    assert not find(log_records, "submission.started")


async def test_an_ec2_that_says_nothing(
    aws: AwsRoom, log_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the event, and the submission runs when EC2 answers again; nothing is counted."""
    monkeypatch.setattr("rampd.remote.ec2._LOOK_S", 0.3)
    aws.submit("good")
    pause = aws.cloud.pause("DescribeImages")
    async with aws.opened_event() as event, served(event):
        await until(lambda: find(log_records, "event.held"), what="the hold")
        assert "got no answer within 0.3 s; look at the network" in find(log_records, "event.held")[0]["missing"]
        monkeypatch.setattr("rampd.remote.ec2._LOOK_S", 20.0)
        pause.go_on.set()
        await until(lambda: find(log_records, "submission.finished"), what="the end")
    assert (end_of(log_records)["outcome"], end_of(log_records)["attempts"]) == ("ok", 1)


@pytest.mark.parametrize("when", ["start", "later"])
async def test_what_could_not_be_ended_is_reclaimed(
    aws: AwsRoom, log_records: list[Record], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """At the next start, or while the daemon runs: an instance that no attempt holds is ended."""
    monkeypatch.setattr(AwsWorker, "reclaim_interval_s", 0.2 if when == "later" else 600.0)
    aws.cloud.fail("TerminateInstances", Refusal("OperationNotPermitted"))
    aws.submit("good")
    if when == "start":
        await aws.serve_out()
        assert len(aws.cloud.alive()) == 1
        assert "teardown failed: EC2: TerminateInstances failed" in find(log_records, "worker.lost")[0]["error"]
        await aws.serve_out()
    else:
        async with aws.opened_event(dispatcher={"hunger_policy": "sleep"}) as event, served(event):
            await until(lambda: find(log_records, "worker.reclaimed"), what="the end of the instance")
    (instance,) = aws.machines
    assert find(log_records, "worker.reclaimed")[0]["what"] == f"instance {instance}"
    assert end_of(log_records)["outcome"] == "ok"


async def test_credentials_that_come_later(
    aws: AwsRoom, log_records: list[Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever puts them where they are looked for need not restart the daemon."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    aws.submit("good")
    async with aws.opened_event(access_key_id=None, secret_access_key=None) as event, served(event):
        await until(lambda: find(log_records, "event.held"), what="the hold")
        assert "there are no AWS credentials" in find(log_records, "event.held")[0]["missing"]
        text = "[default]\naws_access_key_id = AKIAMADEUP\naws_secret_access_key = made-up\n"
        (tmp_path / "credentials").write_text(text, encoding="utf-8")
        await until(lambda: find(log_records, "submission.finished"), what="the end")
    assert end_of(log_records)["outcome"] == "ok"


@pytest.mark.parametrize("reply", [b"<html>hello<", b"<html/>", b""])
async def test_what_is_no_ec2(aws: AwsRoom, log_records: list[Record], reply: bytes) -> None:
    """Something else that answers at endpoint_url holds the event; it takes nothing down."""
    aws.submit("good")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(reply), reply))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with aws.opened_event(endpoint_url=url) as event, served(event):
            await until(lambda: find(log_records, "event.held"), what="the hold")
    assert "what answers there" in find(log_records, "event.held")[0]["missing"]
