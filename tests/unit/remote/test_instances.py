"""What EC2's error codes mean: what is waited for, what a person must mend, and what is neither."""

from __future__ import annotations

import pytest

from rampd.errors import WorkerSetupError, WorkerUnavailableError
from rampd.remote.instances import (
    Ec2CapacityError,
    Ec2Error,
    Ec2RefusedError,
    Ec2ThrottledError,
    Ec2UnreachableError,
    Instance,
    failure_of,
)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InsufficientInstanceCapacity", 500, Ec2CapacityError),
        ("InstanceLimitExceeded", 400, Ec2CapacityError),
        ("VcpuLimitExceeded", 400, Ec2CapacityError),
        ("MaxSpotInstanceCountExceeded", 400, Ec2CapacityError),
        ("RequestLimitExceeded", 503, Ec2ThrottledError),
        ("InternalError", 500, Ec2ThrottledError),
        ("SomethingNew", 503, Ec2ThrottledError),
        ("UnauthorizedOperation", 403, Ec2RefusedError),
        ("AuthFailure", 401, Ec2RefusedError),
        ("InvalidAMIID.NotFound", 400, Ec2RefusedError),
        ("InvalidKeyPair.NotFound", 400, Ec2RefusedError),
        ("InvalidGroup.NotFound", 400, Ec2RefusedError),
        ("InvalidInstanceID.NotFound", 400, Ec2Error),
        ("SomethingNew", 400, Ec2Error),
    ],
)
def test_a_code_has_a_kind(code: str, status: int, kind: type[Exception]) -> None:
    """The kind says who can do something about it."""
    failure = failure_of("RunInstances", code, "said", status)
    assert type(failure) is kind
    assert code in str(failure)


def test_the_kinds_are_the_houses() -> None:
    """Capacity is waited for and costs nothing; a refusal, and silence, hold the event."""
    assert issubclass(Ec2CapacityError, WorkerUnavailableError)
    assert issubclass(Ec2ThrottledError, WorkerUnavailableError)
    assert issubclass(Ec2RefusedError, WorkerSetupError)
    assert issubclass(Ec2UnreachableError, WorkerSetupError)
    passing = {kind for kind in (Ec2CapacityError, Ec2ThrottledError, Ec2RefusedError, Ec2Error) if kind.is_passing}
    assert passing == {Ec2ThrottledError}
    assert Ec2UnreachableError.is_passing


def test_what_ec2_says_is_bounded() -> None:
    """The blob of an authorization failure helps nobody, and a long message is cut."""
    message = "You are not authorized. Encoded authorization failure message: " + "x" * 5000
    assert "Encoded" not in str(failure_of("RunInstances", "UnauthorizedOperation", message, 403))
    assert len(str(failure_of("RunInstances", "Odd", "y" * 5000, 400))) < 500


@pytest.mark.parametrize(
    ("state", "is_alive"),
    [
        ("pending", True),
        ("running", True),
        ("stopping", True),
        ("stopped", True),
        ("shutting-down", False),
        ("terminated", False),
    ],
)
def test_what_costs_is_alive(state: str, is_alive: bool) -> None:
    """A stopped instance can be started again, and has a disk that is paid for."""
    instance = Instance("i-1", state, "t2.micro", False, None, None, None, 0.0)
    assert instance.is_alive is is_alive
