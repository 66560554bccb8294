"""The clients that EC2 is asked with: one is kept, and what is asked besides leaves nothing open."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp

from rampd.remote.ec2 import Ec2
from rampd.remote.instances import Ec2Access
from support.ec2 import IMAGE_NAME, REGION, Cloud

if TYPE_CHECKING:
    import pytest


def _open_sessions() -> int:
    """Return how many clients of this process could have connections open."""
    return sum(type(one) is aiohttp.ClientSession and not one.closed for one in gc.get_objects())


async def test_who_one_is_can_be_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of STS is closed with its answer; the one of EC2 with its owner."""
    with Cloud() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
        access = Ec2Access("AKIAMADEUP", "made-up-on-the-spot", region_name=REGION, endpoint_url=cloud.url)
        ec2 = Ec2(access)
        async with AsyncExitStack() as stack:
            await ec2.open(stack)
            assert (await ec2.image(image_id=None, name=IMAGE_NAME)).id == cloud.image_id
            assert _open_sessions() == 1
            for _ in range(3):
                assert (await ec2.caller()).startswith("arn:aws:sts::")
            assert _open_sessions() == 1
        assert _open_sessions() == 0
