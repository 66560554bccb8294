from __future__ import annotations

import subprocess
import sys

import pytest

import rampd


@pytest.mark.parametrize("name", rampd.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """What the package promises can be had from it, documented."""
    found = getattr(rampd, name)
    assert found is getattr(rampd, name)
    assert found.__doc__


def test_what_is_no_name() -> None:
    """A misspelling is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'rampd' has no attribute 'BaseWroker'"):
        _ = rampd.BaseWroker  # type: ignore[attr-defined]
    assert set(rampd.__all__) <= set(dir(rampd))


def test_importing_it_costs_nothing() -> None:
    """Nothing of rampd's own comes with the package, and no library with the synchronous contract."""
    program = "import sys; import rampd; print(*sys.modules); rampd.BaseWorker; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    bare, with_worker = (line.split() for line in said.splitlines())
    assert [name for name in bare if name.startswith("rampd")] == ["rampd"]
    heavy = {"pydantic", "asyncio", "aioboto3", "botocore", "asyncssh", "distributed", "pytest"}
    assert not heavy & {*bare, *with_worker}
