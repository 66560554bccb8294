"""The connection to a Dask cluster: one asynchronous client an event, kept up, on the daemon's own loop.

The only module that imports distributed, and itself imported only when an event asks for Dask. It knows workers and
bytes; tasks are the business of `rampd.workers.dask_tasks`. Third-party errors end in these two.

Nothing that comes from the cluster is unpickled: results and answers are bytes, and the client refuses everything else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import dask
import structlog
from dask.utils import parse_timedelta
from distributed import Client, Future, Security
from distributed.protocol.pickle import dumps

from rampd import clock
from rampd.errors import WorkerSetupError, WorkerUnavailableError
from rampd.workers.dask_bundle import EXPRESSION, names_for
from rampd.workers.dask_facts import SLOT, DaskWorkerFacts, TlsFiles, disagreements_of, facts_of, sentence, versions_of
from rampd.workers.dask_greeting import knock, until_heard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AsyncExitStack

__all__ = ["Cluster", "Future"]  # distributed itself is imported nowhere else

log = structlog.get_logger("rampd.workers.dask")

_CONNECT_S = 10.0
ASK_S = 30.0
_LOOK_S = 0.5
_PING_S = 10.0
_CLOSE_S = 2.0


class Cluster:
    """A Dask cluster that may come and go.

    Parameters
    ----------
    address
        The scheduler's.
    tls
        Files for `tls://`; None for `tcp://`.
    """

    _quieted: ClassVar[bool] = False

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self.address = address
        self._tls = tls
        self.error = "it has not answered yet"
        """Why there is no connection, for people."""
        self.versions: Mapping[str, str] = {}
        self._client: Client | None = None
        self._stream: object = None
        """The client's stream from the scheduler, as it was when it was greeted."""
        self._up = asyncio.Event()
        self.lost = asyncio.Event()
        """Set while there is no connection."""
        self.lost.set()
        self._topics: dict[str, Callable[[tuple[float, Mapping[str, Any]]], None]] = {"all": self._heard}
        self._when_lost: list[Callable[[], object]] = []
        self._workers: dict[str, DaskWorkerFacts] | None = None
        self._generation = 0
        """Goes up with every Dask worker that comes or goes."""
        self._compared = 0
        self._said: set[str] = set()
        self.changed = asyncio.Event()
        """Set whenever a Dask worker comes or goes, or the connection does."""
        self._leaving: dict[str, asyncio.Event] = {}

    def subscribe(self, topic: str, heard: Callable[[tuple[float, Mapping[str, Any]]], None]) -> None:
        """Have what is said on a topic at the scheduler heard, from the next connection on."""
        self._topics[topic] = heard

    def when_lost(self, forget: Callable[[], object]) -> None:
        """Have something called whenever a connection ends: what its client gave is of no use any more."""
        self._when_lost.append(forget)

    def leaving(self, address: str) -> asyncio.Event:
        """Return what is set when a Dask worker goes."""
        return self._leaving.setdefault(address, asyncio.Event())

    async def open(self, stack: AsyncExitStack) -> None:
        """Begin to connect, and go on doing so whenever the connection is lost; ended by `stack`."""
        if not Cluster._quieted:
            # What it says of itself at INFO, and of what it could not unpickle, is nothing for the stream.
            logging.getLogger("distributed.protocol.core").setLevel(logging.CRITICAL + 1)
            Cluster._quieted = True
        keeping = asyncio.create_task(self._keep_up(), name="dask connection")
        stack.push_async_callback(_cancelled, keeping)

    async def wait_until_up(self, timeout_s: float) -> bool:
        """Return whether there is a connection, waiting for one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        return self._up.is_set()

    async def _keep_up(self) -> None:
        tries = 0
        is_said = False
        while True:
            client: Client | None = None
            begun = clock.boottime()
            try:
                client = await self._connect()
            except Exception as error:  # noqa: BLE001 -- a foreign handshake, and this task is to go on whatever it was
                self.error = sentence(error)
                if not is_said:
                    log.warning("dask.lost", scheduler=self.address, error=self.error)
                is_said = True
                tries += 1
                await asyncio.sleep(min(5.0, 0.25 * 2.0**tries) * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter
                continue
            try:
                tries = 0
                await self._stay_up(client, begun)
                is_said = True
            finally:
                self._drop()
                await _closed(client)

    async def _connect(self) -> Client:
        await knock(self.address, timeout_s=_CONNECT_S)
        client = Client(
            self.address,
            asynchronous=True,
            set_as_default=False,
            security=await asyncio.to_thread(self._security),
            deserializers=["msgpack", "dask", "error"],
            timeout=_CONNECT_S,
            name="rampd",
        )
        try:
            async with asyncio.timeout(_CONNECT_S + 5.0):
                await client
            await self._greet(client)
        except BaseException:
            self._drop()
            await _closed(client)
            raise
        return client

    def _security(self) -> Security | None:
        if self._tls is None:
            return None
        for path in (self._tls.ca, self._tls.certificate, self._tls.key):
            if not path.is_file():
                raise WorkerSetupError(f"there is no file {path}")
        return Security(
            tls_ca_file=str(self._tls.ca),
            tls_client_cert=str(self._tls.certificate),
            tls_client_key=str(self._tls.key),
            require_encryption=True,
        )

    async def _greet(self, client: Client) -> None:
        """Look who is there, and whether we speak the same language."""
        self._stream = client.scheduler_comm
        for topic, heard in self._topics.items():
            client.subscribe_topic(topic, heard)
        await until_heard(client, timeout_s=ASK_S)
        self._client = client
        self._workers = None
        await self._refresh()
        await self._compare_versions(client)

    async def _compare_versions(self, client: Client) -> None:
        """Ask everybody for their version, and say once of each other one where it is."""
        async with asyncio.timeout(ASK_S):
            self.versions = versions_of(await client.get_versions(check=False))
        self._compared = self._generation
        for message in self.disagreements():
            if message not in self._said:
                self._said.add(message)
                log.warning("dask.warned", message=message)

    async def _stay_up(self, client: Client, begun: float) -> None:
        self.error = ""
        self.lost.clear()
        self._up.set()
        self._announce_change()
        log.info(
            "dask.connected",
            scheduler=self.address,
            workers=len(self._workers or {}),
            connect_s=clock.boottime() - begun,
        )
        self.error = await self._until_lost(client)
        log.warning("dask.lost", scheduler=self.address, error=self.error)

    async def _until_lost(self, client: Client) -> str:
        """Return why the connection is of no use any more, once it is so."""
        silence_s = float(parse_timedelta(dask.config.get("distributed.comm.timeouts.tcp"), default="s"))
        asked_at = clock.boottime()
        while self._is_whole(client):
            await asyncio.sleep(_LOOK_S)  # the client tells nobody that it lost its scheduler
            if clock.boottime() - asked_at < min(_PING_S, silence_s):
                continue
            # TCP notices a silent network by what is not acknowledged; a middlebox or a stopped process acknowledges.
            try:
                await self.call("identity", n_workers=0, timeout_s=silence_s)
                if self._compared != self._generation:  # somebody joined
                    await self._compare_versions(client)
            except (WorkerUnavailableError, TimeoutError, OSError):
                return f"it has been silent for {silence_s:g} s"
            asked_at = clock.boottime()
        return "the connection broke"

    def _is_whole(self, client: Client) -> bool:
        """Return whether a client still has the connection that it was greeted by.

        A client whose connection broke makes itself another one, if it can at once. Its subscriptions and its futures
        went with the first: it would hear of no Dask worker and of no start ever again.
        """
        return client.status == "running" and client.scheduler_comm is self._stream

    def _drop(self) -> None:
        """Forget what is known by this client. What runs is asked for again by the next one."""
        self._client = self._stream = None
        self._up.clear()
        self.lost.set()
        self._workers = None
        for forget in self._when_lost:
            forget()
        self._announce_change()

    def disagreements(self) -> list[str]:
        """Return a sentence for each version of distributed in the cluster that is not ours."""
        return disagreements_of(self.versions)

    def _announce_change(self) -> None:
        self.changed.set()
        self.changed.clear()

    def _heard(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Take in the scheduler's word of a Dask worker that came or went."""
        message = event[1] if isinstance(event[1], dict) else {}
        address = message.get("worker")
        is_gone = message.get("action") == "remove-worker" and isinstance(address, str)
        if is_gone and (leaving := self._leaving.pop(str(address), None)):
            leaving.set()
        if message.get("action") in ("add-worker", "remove-worker"):
            self._workers = None
            self._generation += 1
            self._announce_change()

    def here(self) -> Client:
        """Return the connected client.

        Raises
        ------
        WorkerUnavailableError
            There is none.
        """
        if self._client is None or not self._is_whole(self._client):
            raise WorkerUnavailableError(f"the Dask scheduler {self.address} cannot be reached: {self.error}")
        return self._client

    async def _refresh(self) -> dict[str, DaskWorkerFacts]:
        if self._workers is None:
            generation = self._generation
            identity = await self.call("identity")
            found = {address: facts_of(address, one) for address, one in identity.get("workers", {}).items()}
            if generation == self._generation:
                self._workers = found
            return found
        return self._workers

    async def call(self, operation: str, *, timeout_s: float = ASK_S, **arguments: Any) -> Any:
        """Ask the scheduler itself.

        Raises
        ------
        WorkerUnavailableError
            It does not answer.
        """
        client = self._client or self.here()
        try:
            async with asyncio.timeout(timeout_s):
                return await getattr(client.scheduler, operation)(**arguments)
        except (OSError, TimeoutError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise WorkerUnavailableError(
                f"the Dask scheduler {self.address} does not answer ({operation}): {sentence(error)}"
            ) from error

    async def workers(self) -> Mapping[str, DaskWorkerFacts]:
        """Return the Dask workers that there are, by address."""
        self.here()
        return await self._refresh()

    def known_workers(self) -> Collection[DaskWorkerFacts]:
        """Return the Dask workers that were there when it was last looked."""
        return (self._workers or {}).values()

    async def processing(self) -> Mapping[str, Collection[str]]:
        """Return the keys that each Dask worker has to do, or does; other clients' as well."""
        self.here()
        found: Mapping[str, Collection[str]] = await self.call("processing", workers=None)
        return found

    async def ask(
        self, addresses: Collection[str] | None, request: dict[str, Any], *, timeout_s: float = ASK_S
    ) -> dict[str, bytes]:
        """Have Dask workers answer a request on their event loops; who does not answer is missing in the result.

        `Client.run` would unpickle what it gets: this is the same question without that.
        """
        self.here()
        answers = await self.call(
            "broadcast",
            timeout_s=timeout_s,
            msg={
                "op": "run",
                "function": dumps(eval),
                "args": dumps((EXPRESSION, names_for(request))),
                "kwargs": dumps({}),
                "wait": True,
            },
            workers=None if addresses is None else list(addresses),
            nanny=False,
            on_error="ignore",
        )
        return {
            address: answer["result"]
            for address, answer in answers.items()
            if isinstance(answer, dict) and isinstance(answer.get("result"), bytes)
        }

    def run(self, key: str, worker: DaskWorkerFacts, request: dict[str, Any]) -> Future[bytes]:
        """Give a Dask worker something to run.

        It is pinned: should its worker die, no other one takes it over without our knowing.
        """
        return self.here().submit(
            eval,
            EXPRESSION,
            names_for(request),
            key=key,
            pure=False,
            retries=0,
            workers=[worker.address],
            allow_other_workers=False,
            resources={SLOT: 1} if worker.slots else None,
        )

    def future_of(self, key: str) -> Future[bytes]:
        """Return a future of what the scheduler may know under a key."""
        return Future(key, self.here())

    def take_over(self, key: str) -> Future[bytes]:
        """Return the future of what an earlier client has given the scheduler."""
        client = self.here()
        future = Future(key, client)
        # What Client.get_dataset does after it unpickled the future, which we refuse to.
        client._send_to_scheduler({"op": "client-desires-keys", "keys": [key], "client": client.id})  # noqa: SLF001 -- no public way
        return future

    def silent(self, error: Exception) -> WorkerUnavailableError:
        """Return what a failed question to the scheduler means."""
        return WorkerUnavailableError(f"the Dask scheduler {self.address} does not answer: {sentence(error)}")


async def _closed(client: Client | None) -> None:
    if client is not None:
        with suppress(OSError, TimeoutError, RuntimeError, AttributeError):
            async with asyncio.timeout(_CLOSE_S + 1.0):
                await client.close(timeout=_CLOSE_S)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
