"""What a launch needs of the account, looked at thing by thing: for `check`, and for `rampctl check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.errors import RampdError
from rampd.models import Finding
from rampd.remote.instances import OWNER_TAG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from rampd.remote.ec2 import Ec2
    from rampd.workers.aws_config import AwsConfig
    from rampd.workers.aws_launch import Launcher


@dataclass(frozen=True, slots=True)
class Look:
    """One thing to look at."""

    name: str
    ask: Callable[[], Awaitable[str]]
    """Returns what was found; raises a RampdError that says what to do."""


def looks(config: AwsConfig, ec2: Ec2) -> list[Look]:
    """Return what every launch needs; nothing is launched, and nothing written."""

    async def image() -> str:
        found = await ec2.image(image_id=config.ami_image_id, name=config.ami_image_name)
        return f"{found.id} {found.name} ({found.created[:10]})"

    async def key_pair() -> str:
        await ec2.check_key_pair(config.key_name)
        return config.key_name

    async def security_group() -> str:
        found = await ec2.security_group(config.security_group, subnet_id=config.subnet_id)
        return found if found == config.security_group else f"{config.security_group} ({found})"

    return [Look("image", image), Look("key pair", key_pair), Look("security group", security_group)]


async def examine(
    config: AwsConfig, ec2: Ec2, launcher: Launcher, open_pool: Callable[[], Awaitable[object]], key_path: Path
) -> list[Finding]:
    """Look at everything, a finding each; what follows from a failure is looked at all the same."""

    async def key_file() -> str:
        await open_pool()
        return f"{key_path}, readable by its owner only"

    async def dry_run() -> str:
        instance_type, spot = launcher.candidates(0)[0]
        await ec2.dry_run(await launcher.parameters(instance_type, spot=spot, tags={OWNER_TAG: "dry run"}))
        return f"{instance_type}{', spot' if spot else ''}: EC2 would launch it"

    every = [
        Look("key file", key_file),
        Look("credentials", ec2.caller),
        *looks(config, ec2),
        Look("launch", dry_run),
    ]
    return [await _finding(look) for look in every]


async def _finding(look: Look) -> Finding:
    try:
        return Finding(look.name, is_ok=True, detail=await look.ask())
    except RampdError as error:
        return Finding(look.name, is_ok=False, detail=str(error))
