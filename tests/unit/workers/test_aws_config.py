"""The keys of worker_type aws: what is taken, what is refused with a sentence, what is worth saying."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rampd.config import DispatcherSection
from rampd.errors import ConfigError
from rampd.workers.aws_config import AwsConfig

ROOT = Path(__file__).parent.parent.parent.parent
NEEDED: dict[str, Any] = {
    "worker_type": "aws",
    "ami_image_name": "iris",
    "ami_user_name": "ubuntu",
    "instance_type": "t2.micro",
    "key_name": "iris",
    "key_path": "iris.pem",
    "security_group": "rampd",
    "remote_ramp_kit_folder": "/home/ubuntu/ramp-kits/iris/",
}


def made(**more: Any) -> AwsConfig:
    """Return a section with what is needed, and more."""
    return AwsConfig.model_validate({**NEEDED, **more})


def test_what_is_needed_is_enough() -> None:
    """Everything else has a default: a day's timeout, on-demand, the standard AWS chain."""
    config = made()
    assert (config.timeout, config.use_spot_instance, config.ssh_port) == (86400.0, False, 22)
    assert config.instance_type == ("t2.micro",)
    assert config.remote_ramp_kit_folder == "/home/ubuntu/ramp-kits/iris"
    assert config.access().access_key_id is None


def test_a_list_of_types_keeps_its_order() -> None:
    """The first one is preferred."""
    assert made(instance_type=["b", "a"]).instance_type == ("b", "a")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("region_name", "us-west-2a", "a region, such as us-west-2; this is a zone of it"),
        ("region_name", "us-west-2-lax-1a", "a region, such as us-west-2; this is a zone of it"),
        ("ami_image_id", "iris", "a name belongs into ami_image_name"),
        ("ami_user_name", "a b", "a user's name"),
        ("ami_user_name", "-oProxyCommand=x", "a user's name"),
        ("instance_type", [], "an instance type, or a list of some"),
        ("instance_type", ["a", 1], "an instance type, or a list of some"),
        ("subnet_id", "vpc-1", "subnet-…"),
        ("remote_ramp_kit_folder", "ramp-kits/iris", "an absolute path on the image"),
        ("remote_ramp_kit_folder", "/a/../b", "an absolute path on the image"),
        ("endpoint_url", "ec2.amazonaws.com", "a URL"),
        ("metadata_url", "http://x/'; touch y", "a URL"),
        ("deadman_command", "sudo shutdown", "one line with {minutes} in it"),
        ("ssh_port", 0, "greater than or equal to 1"),
        ("ssh_host_key", "any", "first_use"),
    ],
)
def test_what_cannot_be_right_is_refused(key: str, value: Any, sentence: str) -> None:
    """The sentence says what is allowed."""
    with pytest.raises(ValidationError, match=sentence.replace("{", r"\{")):
        made(**{key: value})


@pytest.mark.parametrize("region", ["us-west-2", "eu-central-1", "us-gov-east-1", "cn-north-1", "ap-southeast-7"])
def test_regions_are_no_zones(region: str) -> None:
    """What is a region is taken as it is."""
    assert made(region_name=region).region_name == region


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ami_image_id": "ami-1"}, "not both"),
        ({"ami_image_name": None}, "one of them is needed"),
        ({"access_key_id": "a"}, "together, or neither"),
        ({"access_key_id": "a", "secret_access_key": "b", "profile_name": "c"}, "not both"),
    ],
)
def test_keys_that_go_together(settings: dict[str, Any], sentence: str) -> None:
    """One image, and one way of logging in."""
    with pytest.raises(ValidationError, match=sentence):
        made(**settings)


def test_a_secret_is_shown_nowhere() -> None:
    """Neither in the config nor in what is made of it."""
    config = made(access_key_id="AKIA", secret_access_key="made-up")  # noqa: S106 -- made up
    assert "made-up" not in repr(config) + config.model_dump_json() + repr(config.access())
    assert config.access().secret_access_key == "made-up"  # noqa: S105 -- as above


def test_the_deadman_follows_the_timeout() -> None:
    """An hour more than a submission may run, unless it is given."""
    assert made(timeout=90).deadman_after_min == 62
    assert made(deadman_minutes=5).deadman_after_min == 5


def test_advice() -> None:
    """No timeout, looks that are too frequent, and a user that means nothing there: a sentence each."""
    often, seldom = DispatcherSection(time_between_collection=9.9), DispatcherSection(time_between_collection=60)
    assert made(timeout=60).advice(seldom) == []
    (timeout,) = made().advice(seldom)
    assert timeout.startswith("worker.timeout is not set")
    (collection,) = made(timeout=60).advice(often)
    assert "every running instance is asked over SSH as often" in collection
    (user,) = made(timeout=60, run_as="nobody").advice(seldom)
    assert user.startswith("worker.run_as is ignored")


@pytest.mark.parametrize("page", ["README.md", "docs/aws.md"])
def test_the_documented_config_is_one(page: str) -> None:
    """Who copies it and changes names has a valid section, and no advice but what the page gives."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (document,) = [yaml.safe_load(block) for block in blocks if "worker_type: aws" in block]
    config = AwsConfig.model_validate(document["worker"])
    if "dispatcher" in document:
        assert config.advice(DispatcherSection.model_validate(document["dispatcher"])) == []


def test_the_service_manager_s_key_counts_where_the_config_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What systemd hands over stands in no config; a key or a profile in the config is somebody's own word."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "aws_access_key_id").write_text("AKIAHANDEDOVER\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has aws_access_key_id and no aws_secret_access_key"):
        made().access()
    (tmp_path / "aws_secret_access_key").write_text("made-up\n", encoding="utf-8")
    access = made().access()
    assert (access.access_key_id, access.secret_access_key) == ("AKIAHANDEDOVER", "made-up")
    assert made(profile_name="rampd").access().access_key_id is None
    assert made(access_key_id="AKIAOWN", secret_access_key="own").access().access_key_id == "AKIAOWN"  # noqa: S106 -- made up
    (tmp_path / "aws_access_key_id").unlink()
    with pytest.raises(ConfigError, match="has aws_secret_access_key and no aws_access_key_id"):
        made().access()
