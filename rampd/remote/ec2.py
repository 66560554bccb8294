"""EC2's calls on the loop: one client kept open, every call bounded in time, its errors in the house's words.

The only user of aioboto3, which is imported when EC2 is first asked, not before (0.35 s and 40 MB). Knows nothing of
submissions; what may be asked for twice is the caller's to know.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rampd.errors import WorkerSetupError
from rampd.remote.instances import (
    ATTEMPT_TAG,
    ENDED,
    OWNER_TAG,
    Ec2Access,
    Ec2Error,
    Ec2RefusedError,
    Ec2UnreachableError,
    Image,
    Instance,
    failure_of,
    is_of_credentials,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_CALL_S: Final = 60.0
"""All tries of one call together."""
_LOOK_S: Final = 20.0
"""The same for what is only looked at, and looked at again."""
_TRIES: Final = 6
_LOOK_TRIES: Final = 3
_CONNECT_S: Final = 5.0
_READ_S: Final = 30.0
_CONNECTIONS: Final = 200
"""So many calls at a time: one that hangs must not keep another from its turn."""
_PAGE: Final = 1000


class Ec2:
    """EC2 in one region, for one account.

    Parameters
    ----------
    access
        How it is reached.

    Notes
    -----
    Every call raises `Ec2RefusedError` or `Ec2UnreachableError` (nothing can run until a person mends something, or
    EC2 answers again), `Ec2CapacityError` or `Ec2ThrottledError` (later), or `Ec2Error`. What passes by itself is
    tried again here first, with jitter: throttling, EC2's own failures, connections that break.
    """

    def __init__(self, access: Ec2Access) -> None:
        self._access = access
        self._opening = asyncio.Lock()
        self._clients: AsyncExitStack | None = None
        self._retired: AsyncExitStack | None = None
        """What calls may still be under way on."""
        self._session: Any = None
        self._ec2: Any = None
        self._exceptions: Any = None
        self._parser_error: Any = None

    async def open(self, stack: AsyncExitStack) -> None:
        """Have the client closed with `stack`; it is made when it is first needed."""
        self._clients = AsyncExitStack()
        stack.push_async_callback(self._close)

    async def _close(self) -> None:
        for clients in (self._retired, self._clients):
            if clients is not None:
                await clients.aclose()

    async def _renew(self, client: Any) -> None:
        """Have the next call make a client anew: one keeps the credentials that it found, or did not find, for ever."""
        async with self._opening:
            if self._ec2 is not client:
                return
            if self._retired is not None:
                await self._retired.aclose()
            self._ec2, self._retired, self._clients = None, self._clients, AsyncExitStack()

    async def _client(self) -> Any:
        async with self._opening:
            if self._ec2 is None:
                if self._clients is None:
                    raise RuntimeError("Ec2 is not open")
                self._session = await self._new_session()
                self._ec2 = await self._new_client("ec2", self._clients, endpoint_url=self._access.endpoint_url)
            return self._ec2

    async def _new_session(self) -> Any:
        access = self._access
        library, self._exceptions, self._parser_error = await asyncio.to_thread(_libraries)
        try:
            session = await asyncio.to_thread(
                library.Session,
                aws_access_key_id=access.access_key_id,
                aws_secret_access_key=access.secret_access_key,
                region_name=access.region_name,
                profile_name=access.profile_name,
            )
            region = session.region_name
            if region is None:
                raise WorkerSetupError("worker.region_name: none is given, and the standard AWS chain has none")
            known = await asyncio.to_thread(_known_regions, session)
        except self._exceptions.BotoCoreError as error:
            raise _setup_error(error) from error
        if access.endpoint_url is None and region not in known:
            raise WorkerSetupError(
                f"worker.region_name: AWS is not known to have a region {region!r} (if it is new, "
                f"set worker.endpoint_url: https://ec2.{region}.amazonaws.com)",
                sorted(known),
            )
        return session

    async def _new_client(self, service: str, stack: AsyncExitStack, **options: Any) -> Any:
        config = self._session_config()
        try:
            return await stack.enter_async_context(self._session.client(service, config=config, **options))
        except (self._exceptions.BotoCoreError, ValueError) as error:
            raise _setup_error(error) from error

    def _session_config(self) -> Any:
        from aiobotocore.config import AioConfig  # noqa: PLC0415 -- see the module's docstring

        return AioConfig(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            max_pool_connections=_CONNECTIONS,
            # Tries are counted here, where what each error means is known: botocore would wait for capacity, too.
            retries={"mode": "standard", "total_max_attempts": 1},
        )

    async def _call(
        self, operation: str, parameters: Mapping[str, Any], *, within_s: float = _CALL_S
    ) -> Mapping[str, Any]:
        """Make one call, `run_instances` say, and again while it fails in a way that passes."""
        failed: Exception | None = None
        try:
            async with asyncio.timeout(within_s):
                client = await self._client()
                async for again in AsyncRetrying(
                    retry=retry_if_exception(lambda error: getattr(error, "is_passing", False)),
                    wait=wait_random_exponential(multiplier=0.5, max=8.0),
                    stop=stop_after_attempt(_TRIES if within_s == _CALL_S else _LOOK_TRIES),
                    reraise=True,
                ):
                    with again:
                        try:
                            return await self._once(client, operation, parameters)
                        except Exception as error:
                            failed = error
                            raise
        except TimeoutError as error:
            if failed is not None:
                raise failed from error
            raise self._unreachable(f"{operation} got no answer within {within_s:g} s") from error
        raise AssertionError("tenacity ended without a result")

    async def _once(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        exceptions = self._exceptions
        try:
            reply: Mapping[str, Any] = await getattr(client, operation)(**parameters)
        except exceptions.ClientError as error:
            found = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(found.get("Code", ""))
            if is_of_credentials(code):
                await self._renew(client)
            raise failure_of(error.operation_name, code, str(found.get("Message", "")), status) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            raise self._unreachable(str(error)) from error
        except exceptions.BotoCoreError as error:
            await self._renew(client)
            raise _setup_error(error) from error
        except self._parser_error as error:
            raise self._unreachable("what answers there is no EC2") from error
        return reply

    def _said(self, reply: Mapping[str, Any], name: str) -> list[Any]:
        """Return a list that belongs into a reply."""
        if not isinstance(found := reply.get(name), list):
            raise self._unreachable(f"what answers there says nothing of {name}")
        return found

    def _unreachable(self, what: str) -> Ec2UnreachableError:
        where = self._access.endpoint_url or "its own endpoint"
        return Ec2UnreachableError(
            f"EC2 does not answer at {where}: {what[:300]}; look at the network, at worker.region_name and at "
            "worker.endpoint_url"
        )

    async def caller(self) -> str:
        """Return who these credentials are, as an ARN (sts:GetCallerIdentity, which needs no permission)."""
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._client()
                # Asked once, by `rampctl check`: nothing of it is kept for whoever asks again.
                async with AsyncExitStack() as stack:
                    client = await self._new_client("sts", stack)
                    return str((await self._once(client, "get_caller_identity", {}))["Arn"])
        except TimeoutError as error:
            raise self._unreachable(f"get_caller_identity got no answer within {_LOOK_S:g} s") from error

    async def image(self, *, image_id: str | None, name: str | None) -> Image:
        """Return the image of this id, or the newest one whose name begins with `name`.

        By name only what is this account's, or was shared with it: anybody can give a public image any name.

        Raises
        ------
        WorkerSetupError
            There is none; with the names of those that there are.
        """
        if image_id is not None:
            images = await self._images(ImageIds=[image_id])
            if not images:
                raise Ec2RefusedError("no image", f"worker.ami_image_id: there is no image {image_id} in this region")
            return images[0]
        matching = [{"Name": "name", "Values": [f"{_literal(name or '')}*"]}, _AVAILABLE]
        found = await self._images(Owners=["self"], Filters=matching)
        if not found:
            found = await self._images(ExecutableUsers=["self"], Filters=matching)
        if not found:
            there = [image.name for image in await self._images(Owners=["self"], Filters=[_AVAILABLE])]
            raise WorkerSetupError(
                f"worker.ami_image_name: no available image's name in this region begins with {name!r}",
                sorted(there)[:20],
            )
        return max(found, key=lambda image: (image.created, image.id))

    async def _images(self, **parameters: Any) -> list[Image]:
        reply = await self._call("describe_images", parameters, within_s=_LOOK_S)
        return [
            Image(one["ImageId"], one.get("Name", ""), one.get("CreationDate", ""))
            for one in self._said(reply, "Images")
        ]

    async def check_key_pair(self, name: str) -> None:
        """Look whether there is a key pair of this name."""
        await self._call("describe_key_pairs", {"KeyNames": [name]}, within_s=_LOOK_S)

    async def security_group(self, group: str, *, subnet_id: str | None) -> str:
        """Return the id of a security group that is given by id, or by its name in the subnet's or the default VPC."""
        if group.startswith("sg-"):
            await self._call("describe_security_groups", {"GroupIds": [group]}, within_s=_LOOK_S)
            return group
        vpc_id = await self._vpc_of(subnet_id)
        in_vpc = {"Name": "vpc-id", "Values": [vpc_id]}
        named = {"Name": "group-name", "Values": [_literal(group)]}
        reply = await self._call("describe_security_groups", {"Filters": [named, in_vpc]}, within_s=_LOOK_S)
        groups = self._said(reply, "SecurityGroups")
        if not groups:
            there = await self._call("describe_security_groups", {"Filters": [in_vpc]}, within_s=_LOOK_S)
            names = sorted(one["GroupName"] for one in self._said(there, "SecurityGroups"))[:20]
            raise WorkerSetupError(f"worker.security_group: there is no group {group!r} in {vpc_id}", names)
        return str(groups[0]["GroupId"])

    async def _vpc_of(self, subnet_id: str | None) -> str:
        if subnet_id is not None:
            reply = await self._call("describe_subnets", {"SubnetIds": [subnet_id]}, within_s=_LOOK_S)
            return str(self._said(reply, "Subnets")[0]["VpcId"])
        default = [{"Name": "is-default", "Values": ["true"]}]
        reply = await self._call("describe_vpcs", {"Filters": default}, within_s=_LOOK_S)
        vpcs = self._said(reply, "Vpcs")
        if not vpcs:
            raise WorkerSetupError("the account has no default VPC in this region; set worker.subnet_id")
        return str(vpcs[0]["VpcId"])

    async def dry_run(self, parameters: Mapping[str, Any]) -> None:
        """Ask whether an instance could be launched so, without launching it."""
        try:
            await self._call("run_instances", {**parameters, "DryRun": True}, within_s=_LOOK_S)
        except Ec2Error as error:
            if error.code != "DryRunOperation":
                raise

    async def launch(self, token: str, parameters: Mapping[str, Any], *, user_data: str | None = None) -> Instance:
        """Launch one instance. Idempotent by its token: the same call made again returns the same instance."""
        more = {} if user_data is None else {"UserData": user_data}
        reply = await self._call("run_instances", {**parameters, **more, "ClientToken": token})
        return _instance_of(self._said(reply, "Instances")[0])

    async def instances(self, owner: str) -> dict[str, Instance]:
        """Return all instances that carry an owner's tag, by id: also those that ended lately, as long as EC2 knows."""
        found: dict[str, Instance] = {}
        more: dict[str, Any] = {}
        while True:
            asked = {"Filters": [{"Name": f"tag:{OWNER_TAG}", "Values": [owner]}], "MaxResults": _PAGE, **more}
            reply = await self._call("describe_instances", asked, within_s=_LOOK_S)
            for reservation in self._said(reply, "Reservations"):
                for one in reservation["Instances"]:
                    found[one["InstanceId"]] = _instance_of(one)
            if not reply.get("NextToken"):
                return found
            more = {"NextToken": reply["NextToken"]}

    async def terminate(self, instance_ids: Collection[str]) -> dict[str, str]:
        """End instances; silent where they have ended.

        Returns
        -------
        dict of str
            What EC2 says of their states now; each is `shutting-down` or `terminated`, or the call has failed.

        Raises
        ------
        Ec2Error
            EC2 knows no such instance (`InvalidInstanceID.NotFound`; normal just after a launch), or does not end it.
        """
        reply = await self._call("terminate_instances", {"InstanceIds": sorted(instance_ids)})
        states = {one["InstanceId"]: one["CurrentState"]["Name"] for one in self._said(reply, "TerminatingInstances")}
        for instance_id in instance_ids:
            if states.get(instance_id) not in ENDED:
                raise Ec2Error("not ended", f"{instance_id} is {states.get(instance_id)} after it was terminated")
        return states


_AVAILABLE = {"Name": "state", "Values": ["available"]}


def _libraries() -> tuple[Any, Any, Any]:
    import aioboto3  # noqa: PLC0415 -- see the module's docstring
    import botocore.exceptions  # noqa: PLC0415 -- as above
    import botocore.parsers  # noqa: PLC0415 -- as above

    return aioboto3, botocore.exceptions, botocore.parsers.ResponseParserError


def _known_regions(session: Any) -> set[str]:
    """Return every region that the library knows. Blocking: reads what making a client would read on the loop."""
    loader = session._session.get_component("data_loader")  # noqa: SLF001 -- aioboto3 hands it out nowhere
    loader.load_service_model("ec2", "service-2")
    loader.load_service_model("ec2", "endpoint-rule-set-1")
    partitions = loader.load_data("endpoints")["partitions"]
    return {region for partition in partitions for region in partition["regions"]}


def _setup_error(error: Exception) -> WorkerSetupError:
    kind = type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return WorkerSetupError(
            "there are no AWS credentials; set worker.access_key_id and worker.secret_access_key, or "
            f"worker.profile_name, or one of the standard places ({error})"
        )
    if kind == "ProfileNotFound":
        return WorkerSetupError(f"worker.profile_name: {error}")
    return WorkerSetupError(f"EC2 cannot be asked: {error} ({kind})")


def _literal(text: str) -> str:
    """Return a filter's value that means these characters: `*` and `?` are wildcards there."""
    return "".join(f"\\{character}" if character in "*?\\" else character for character in text)


def _instance_of(said: Mapping[str, Any]) -> Instance:
    tags = {tag["Key"]: tag["Value"] for tag in said.get("Tags", [])}
    launched = said.get("LaunchTime")
    return Instance(
        id=said["InstanceId"],
        state=said["State"]["Name"],
        instance_type=said.get("InstanceType", ""),
        spot=said.get("InstanceLifecycle") == "spot",
        public_address=said.get("PublicIpAddress") or None,
        private_address=said.get("PrivateIpAddress") or None,
        attempt_id=tags.get(ATTEMPT_TAG),
        launched_at=launched.timestamp() if launched is not None else 0.0,
        reason_code=(said.get("StateReason") or {}).get("Code", "") or "",
    )
