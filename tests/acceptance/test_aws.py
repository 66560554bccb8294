"""The commands on an event whose submissions run on instances: a real kit to a score, what `rampctl` says, mistakes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from rampd.demo import deployment
from support.aws import AwsRoom
from support.daemon import RampdProcess
from support.ec2 import Refusal
from support.rampctl import rampctl
from support.sshd import Sshd, environment_profile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def made_up_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every AWS library from looking at this machine's own accounts."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsRoom]:
    """Give an event on a cloud, which is also where who we are is asked."""
    with AwsRoom(tmp_path / "cloud") as room:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", room.cloud.url)
        yield room
        assert room.cloud.alive() == []


def test_a_real_kit_goes_through_to_a_score(tmp_path: Path, ramp_environment: Path, iris_kit: Path) -> None:
    """The iris kit, with today's ramp-test on the instance's login profile: a good one, and one that raises."""
    kit, data = deployment.kit_dir(iris_kit), deployment.data_dir(iris_kit) / "data"
    with AwsRoom(tmp_path / "cloud", profile=environment_profile(ramp_environment), kit=kit) as aws:

        def prepare(sshd: Sshd) -> None:
            shutil.copytree(data, sshd.kit / "data")

        aws.prepare_all(prepare)
        for name in ("logistic_regression", "raises_in_fit"):
            deployment.write_submission(name, aws.folder / "submissions")
        with RampdProcess(aws.write_config(dispatcher={"n_threads": 1})) as daemon:
            assert daemon.wait(timeout_s=110) == 0
            finished = {record["submission"]: record for record in daemon.find("submission.finished")}
            (scored,) = daemon.find("submission.scored")
        assert finished["logistic_regression"]["outcome"] == "ok"
        assert finished["logistic_regression"]["max_rss_bytes"] > 10 << 20
        assert scored["scores"]["acc"]["test"]["bagged"] > 0.5
        assert finished["raises_in_fit"]["outcome"] == "participant_error"
        said = rampctl("status", "raises_in_fit", "--json", config=aws.folder / "config.yml").data
        assert "Traceback" in said["error_msg"]
        assert aws.cloud.alive() == []


def test_status_says_where_and_since_when(aws: AwsRoom) -> None:
    """Instance, type, market, address and what it has cost stand beside each running submission, at 80 columns."""
    aws.submit("hangs")
    config = aws.write_config(dispatcher={"shutdown_grace": 0}, use_spot_instance=True)
    with RampdProcess(config) as daemon:
        started = daemon.wait_for("submission.started", timeout_s=60)
        said = rampctl("status", config=config).stdout
        name, instance, kind, spot, _, address = said.splitlines()[-1].split()
        assert (name, kind, spot) == ("hangs", "t2.micro", "yes")
        assert (instance, address) == (started["instance_id"], started["host"])
        assert max(map(len, said.splitlines()[1:])) <= 80
        where = rampctl("status", "--json", config=config).data["submissions"][0]["where"]
        assert where.keys() == {"instance_id", "instance_type", "spot", "host", "instance_s"}
        assert where["instance_s"] >= started["instance_s"] >= 0
        assert " instance seconds\n" in rampctl("status", "hangs", config=config).stdout
        assert rampctl("cancel", "hangs", config=config).status == 0
        daemon.wait_for("submission.finished", outcome="cancelled", timeout_s=60)
        daemon.wait()


def test_check_looks_at_everything(aws: AwsRoom) -> None:
    """Each thing that a launch needs has a line; nothing is launched, and no folder made."""
    said = rampctl("check", config=aws.write_config())
    assert said.status == 0, said
    for line in ("ok    key file: ", "ok    credentials: arn:aws:", "ok    key pair: iris_key", "EC2 would launch it"):
        assert line in said.stdout
    assert f"ok    image: {aws.cloud.image_id} rampd-iris-2026" in said.stdout
    assert "ok    security group: rampd-test (sg-" in said.stdout
    assert aws.cloud.called("RunInstances") == []
    assert not (aws.folder / "state").exists()


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        (
            {"ami_image_name": "nothing"},
            "no available image's name in this region begins with 'nothing'; there is: rampd",
        ),
        ({"ami_image_name": None, "ami_image_id": "ami-0123"}, "worker.ami_image_id: there is no such image"),
        ({"key_name": "other"}, "worker.key_name: there is no such key pair"),
        ({"security_group": "other"}, "worker.security_group: there is no group 'other' in vpc-"),
        ({"security_group": "sg-0123"}, "worker.security_group: there is no such group"),
        ({"subnet_id": "subnet-0123"}, "worker.subnet_id: there is no such subnet"),
        ({"region_name": "us-nowhere-9", "endpoint_url": None}, "is not known to have a region 'us-nowhere-9'"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "EC2 does not answer at http://127.0.0.1:9"),
        ({"access_key_id": None, "secret_access_key": None, "profile_name": "none"}, "worker.profile_name: The config"),
        ({"access_key_id": None, "secret_access_key": None}, "there are no AWS credentials; set worker.access_key_id"),
        ({"key_path": "missing.pem"}, "there is no key file"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_check_names_what_is_wrong(aws: AwsRoom, settings: dict[str, Any], finding: str) -> None:
    """A clear line for each mistake, no traceback, and status 1."""
    said = rampctl("check", config=aws.write_config(**settings))
    assert said.status == 1
    assert finding in " ".join(said.stdout.split())
    assert "Traceback" not in said.stdout + said.stderr
    assert "made-up-on-the-spot" not in said.stdout + said.stderr


def _write(path: Path, text: str) -> None:
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")


def _encrypt(path: Path) -> None:
    path.chmod(0o600)
    argv = ["ssh-keygen", "-q", "-p", "-N", "a-passphrase", "-P", "", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)


@pytest.mark.parametrize(
    ("break_it", "finding"),
    [
        (lambda path: path.chmod(0o640), "is open to other users (mode 0640); make it private: chmod 400"),
        (lambda path: _write(path, "no key\n"), "holds no private key"),
        (_encrypt, "has a passphrase"),
        (lambda path: path.unlink(), "there is no key file"),
    ],
    ids=["open", "no-key", "passphrase", "missing"],
)
def test_a_key_file_that_cannot_be_used(aws: AwsRoom, break_it: Any, finding: str) -> None:
    """`rampctl check` says what to do."""
    break_it(aws.key_path)
    said = rampctl("check", config=aws.write_config())
    assert said.status == 1
    assert finding in " ".join(said.stdout.split())


def test_a_key_file_that_is_mended(aws: AwsRoom) -> None:
    """It holds the event only until then."""
    config = aws.write_config(dispatcher={"hunger_policy": "sleep"})
    good = aws.key_path.read_bytes()
    aws.key_path.chmod(0o640)
    aws.submit("good")
    with RampdProcess(config) as daemon:
        assert "make it private: chmod 400" in daemon.wait_for("event.held", timeout_s=60)["missing"]
        aws.key_path.unlink(missing_ok=True)
        aws.key_path.write_bytes(good)
        aws.key_path.chmod(0o400)
        assert daemon.wait_for("submission.finished", timeout_s=60)["outcome"] == "ok"
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"ami_image_id": "ami-1"}, "ami_image_name or ami_image_id, not both"),
        ({"ami_image_name": None}, "ami_image_name or ami_image_id: one of them is needed"),
        (
            {"region_name": "us-west-2a"},
            "worker.region_name: found 'us-west-2a'; allowed: a region, such as us-west-2;",
        ),
        ({"secret_access_key": None}, "access_key_id and secret_access_key together, or neither"),
        ({"remote_ramp_kit_folder": "kit"}, "worker.remote_ramp_kit_folder: found 'kit'; allowed: an absolute path"),
        ({"instance_type": []}, "worker.instance_type: found a list; allowed: an instance type, or a list of some"),
    ],
)
def test_a_config_that_is_wrong(aws: AwsRoom, settings: dict[str, Any], line: str) -> None:
    """Status 78 and one line a problem, without a secret in it."""
    with RampdProcess(aws.write_config(**settings)) as daemon:
        assert daemon.wait() == 78
    said = daemon.stderr.decode()
    assert line in said
    assert "Traceback" not in said
    assert "made-up-on-the-spot" not in said


def test_what_should_be_known_is_said_once(aws: AwsRoom) -> None:
    """Warnings of a config are records at the start, and findings of `rampctl check`."""
    config = aws.write_config(
        dispatcher={"time_between_collection": 1}, timeout=None, run_as="nobody", check_status_interval_secs=60
    )
    text = config.read_text(encoding="utf-8").replace("  timeout: null\n", "")
    config.write_text(text, encoding="utf-8")
    with RampdProcess(config) as daemon:
        assert daemon.wait(timeout_s=60) == 0
        messages = [record["message"] for record in daemon.find("config.warning")]
    beginnings = (
        "worker.check_status_interval_secs is ignored; it is replaced by dispatcher.time_between_collection",
        "worker.timeout is not set: ",
        "dispatcher.time_between_collection is 1 s: ",
        "worker.run_as is ignored: ",
    )
    assert len(messages) == len(beginnings)
    for message, beginning in zip(messages, beginnings, strict=True):
        assert message.startswith(beginning)


def test_a_name_that_a_shell_would_act_on(aws: AwsRoom) -> None:
    """It is no submission, and never comes near a shell."""
    aws.submit("good")
    (aws.folder / "submissions" / "x;touch pwned").mkdir()
    (aws.folder / "submissions" / "$(touch pwned)").mkdir()
    with RampdProcess(aws.write_config()) as daemon:
        assert daemon.wait(timeout_s=60) == 0
        assert {record["reason"] for record in daemon.find("submission.rejected")} == {"bad_name"}
        assert [record["submission"] for record in daemon.find("submission.finished")] == ["good"]
    assert not list(aws.root.rglob("pwned"))


def test_an_ec2_that_refuses_holds_the_event(aws: AwsRoom) -> None:
    """Nothing is blamed, and the reason stands at the head of `rampctl status`."""
    aws.submit("good")
    aws.cloud.fail("DescribeImages", *[Refusal("AuthFailure", 401)] * 100)  # for as long as anybody looks
    config = aws.write_config()
    with RampdProcess(config) as daemon:
        assert "does not know these credentials" in daemon.wait_for("event.held", timeout_s=60)["missing"]
        assert "does not know these credentials" in " ".join(rampctl("status", config=config).stdout.split())
        aws.cloud.mend("DescribeImages")
        assert daemon.wait(timeout_s=60) == 0
        assert daemon.find("submission.finished")[0]["attempts"] == 1


def test_conda_events_pay_nothing_for_this(tmp_path: Path) -> None:
    """Neither boto nor asyncssh is imported by who reads an aws config, and none of it by a conda event."""
    script = """
import sys
from pathlib import Path
import rampd.workers.aws
heavy = [name for name in ("aioboto3", "botocore", "asyncssh", "cryptography") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    script = """
import sys
import rampd.daemon, rampd.workers.conda
from rampd.workers.registry import worker_class
worker_class("conda")
ours = [name for name in sys.modules if name.startswith("rampd.workers.aws") or name == "rampd.remote.ec2"]
assert not ours, ours
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
