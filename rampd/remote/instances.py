"""EC2 instances as data, and what may go wrong with asking for them. Nothing here imports an AWS library.

What EC2 says is translated here, by its error codes, into what an operator can do about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict

from rampd.errors import WorkerError, WorkerSetupError, WorkerUnavailableError

OWNER_TAG: Final = "rampd:owner"
EVENT_TAG: Final = "rampd:event"
SUBMISSION_TAG: Final = "rampd:submission"
ATTEMPT_TAG: Final = "rampd:attempt"
"""The attempt's random id, by which an instance is found again."""

ALIVE: Final = frozenset({"pending", "running", "stopping", "stopped"})
"""The states of an instance that is paid for, or could be again."""
ENDED: Final = frozenset({"shutting-down", "terminated"})


@dataclass(frozen=True, slots=True)
class Ec2Access:
    """How EC2 is reached. Everything that is None comes from the standard AWS chain."""

    access_key_id: str | None = None
    secret_access_key: str | None = None
    profile_name: str | None = None
    region_name: str | None = None
    endpoint_url: str | None = None

    def __repr__(self) -> str:
        return f"Ec2Access(region_name={self.region_name!r}, endpoint_url={self.endpoint_url!r})"


class Launch(BaseModel):
    """One RunInstances call, whole: journaled before it is made, and made again only as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """1, 2, … within an attempt: each different call has its own."""
    token: str
    """Its ClientToken: EC2 makes one instance of it, however often it is asked."""
    instance_type: str
    spot: bool
    parameters: dict[str, Any]
    """The call's parameters without its user data, which may hold a key."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What EC2 says of one instance."""

    id: str
    state: str
    """pending, running, shutting-down, terminated, stopping, stopped."""
    instance_type: str
    spot: bool
    public_address: str | None
    private_address: str | None
    attempt_id: str | None
    launched_at: float
    """Seconds since the epoch."""
    reason_code: str = ""
    """Why it left the state running, in EC2's words (Server.SpotInstanceTermination, …)."""

    @property
    def is_alive(self) -> bool:
        """Whether it is paid for, or could be again."""
        return self.state in ALIVE

    @property
    def was_taken_back(self) -> bool:
        """Whether AWS ended it because it wanted a spot instance back."""
        return self.reason_code in ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")


@dataclass(frozen=True, slots=True)
class Image:
    """A machine image."""

    id: str
    name: str
    created: str
    """As EC2 writes it; sorts by time."""


class Ec2Error(WorkerError):
    """EC2 refused a call for a reason of its own.

    Attributes
    ----------
    code
        EC2's word for it.
    """

    is_passing: ClassVar[bool] = False

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"EC2: {sentence} ({code})")
        self.code = code


class Ec2CapacityError(WorkerUnavailableError):
    """There is no instance of this type, in this market, at the moment: another one may be asked for."""

    is_passing: ClassVar[bool] = False

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"EC2 has no instance to give: {sentence} ({code})")
        self.code = code


class Ec2ThrottledError(WorkerUnavailableError):
    """EC2 is asked too often, or is not well itself; the same call may be made again."""

    is_passing: ClassVar[bool] = True

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"EC2 is busy: {sentence} ({code})")
        self.code = code


class Ec2RefusedError(WorkerSetupError):
    """EC2 will never do this as it is configured: a person must mend the config, or the account."""

    is_passing: ClassVar[bool] = False

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{sentence} ({code})")
        self.code = code


class Ec2UnreachableError(WorkerSetupError):
    """EC2 does not answer. Whether a call took effect is not known; the same one may be made again."""

    is_passing: ClassVar[bool] = True
    code: ClassVar[str] = "unreachable"


Ec2Failure = Ec2Error | Ec2CapacityError | Ec2ThrottledError | Ec2RefusedError | Ec2UnreachableError

_NO_CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "InsufficientFreeAddressesInSubnet",
    "InstanceLimitExceeded",
    "VcpuLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "Unsupported",
}
_BUSY = {
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "RequestThrottled",
    "EC2ThrottledException",
    "ConcurrentTagAccess",
    "InternalError",
    "InternalFailure",
    "ServiceUnavailable",
    "Unavailable",
}
_CREDENTIALS = (
    "EC2 does not know these credentials; look at worker.access_key_id and worker.secret_access_key, or "
    "worker.profile_name, and at this machine's clock"
)
_ADVICE = {
    "AuthFailure": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "MissingAuthenticationToken": _CREDENTIALS,
    "UnrecognizedClientException": _CREDENTIALS,
    "ExpiredToken": "these credentials have expired; renew them",
    "RequestExpired": "these credentials have expired, or this machine's clock is wrong",
    "OptInRequired": "the AWS account is not signed up for EC2 in this region; worker.region_name",
    "PendingVerification": "AWS still verifies the account",
    "Blocked": "AWS has blocked the account",
    "InvalidAMIID.NotFound": "worker.ami_image_id: there is no such image in this region",
    "InvalidAMIID.Malformed": "worker.ami_image_id: that is no image's id",
    "InvalidAMIID.Unavailable": "worker.ami_image_id: the image is not available any more",
    "InvalidKeyPair.NotFound": "worker.key_name: there is no such key pair in this region",
    "InvalidGroup.NotFound": "worker.security_group: there is no such group in the instance's VPC",
    "InvalidGroupId.Malformed": "worker.security_group: that is no group's id",
    "InvalidSecurityGroupID.NotFound": "worker.security_group: there is no such group in the instance's VPC",
    "InvalidSubnetID.NotFound": "worker.subnet_id: there is no such subnet in this region",
    "InvalidSubnetID.Malformed": "worker.subnet_id: that is no subnet's id",
    "InvalidInstanceType": "worker.instance_type: EC2 has no such type",
    "InvalidInstanceType.NotFound": "worker.instance_type: EC2 has no such type",
    "InvalidParameterValue": "EC2 does not take a value of the config's",
    "InvalidParameterCombination": "EC2 does not take the config's values together",
    "InvalidParameter": "EC2 does not take a value of the config's",
    "MissingParameter": "EC2 needs a value that the config does not give",
    "VPCIdNotSpecified": "the account has no default VPC in this region; set worker.subnet_id",
    "DefaultVpcDoesNotExist": "the account has no default VPC in this region; set worker.subnet_id",
}
_ENCODED = re.compile(r"\s*Encoded authorization failure message:.*", re.DOTALL)


def is_of_credentials(code: str) -> bool:
    """Return whether EC2's word is about who is asking: other credentials may be found by now."""
    return _ADVICE.get(code) == _CREDENTIALS or code in ("ExpiredToken", "RequestExpired")


def failure_of(operation: str, code: str, message: str, status: int) -> Ec2Failure:
    """Return what an error reply of EC2's means.

    Parameters
    ----------
    operation
        The call, RunInstances say.
    code, message
        EC2's.
    status
        HTTP's.
    """
    said = _ENCODED.sub("", message).strip()[:300]
    if code in _NO_CAPACITY:
        return Ec2CapacityError(code, said)
    if code in _BUSY or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and code not in _ADVICE):
        return Ec2ThrottledError(code, said)
    if code in ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"):
        return Ec2RefusedError(
            code, f"these credentials may not call {operation}; docs/aws.md has the IAM policy that is needed"
        )
    if code in _ADVICE:
        return Ec2RefusedError(code, f"{_ADVICE[code]}; EC2 says: {said}")
    return Ec2Error(code, f"{operation} failed: {said}")
