"""An EC2 on loopback: moto in this process, behind a layer that keeps what moto does not.

moto ignores ClientToken, boots at once, and never fails. The layer makes launches idempotent by their token, keeps
instances pending for as long as a test wants, gives them addresses on loopback, and has a queue of faults.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
import xml.etree.ElementTree as ET
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_ACCOUNT = "123456789012"
REGION = "us-west-2"
IMAGE_NAME = "rampd-iris-2026"
KEY_NAME = "iris_key"
GROUP = "rampd-test"


class Machine(Protocol):
    """What an instance is made of: something at an address, which can be ended."""

    def end(self) -> None:
        """End it, with all that runs on it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error reply."""

    code: str
    status: int = 400
    message: str = "made up by a test"


class LostReply:
    """The call takes effect, and its reply never arrives."""


@dataclass(eq=False, slots=True)
class Pause:
    """The call stands still, before it takes effect or (`after`) before its reply is sent, until `go_on`."""

    after: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


Fault = Refusal | LostReply | Pause


@dataclass(frozen=True, slots=True)
class Call:
    """One call that arrived."""

    action: str
    parameters: Mapping[str, str]

    @property
    def is_dry(self) -> bool:
        """Whether it only asks whether it could be done."""
        return self.parameters.get("DryRun") == "true"


class Cloud:
    """EC2 for one test. Use it as a context manager.

    Parameters
    ----------
    boot
        Makes the machine of an instance, by its id and user data; returns its address and the machine.
    """

    def __init__(self, boot: Callable[[str, str], tuple[str, Machine | None]] | None = None) -> None:
        self._boot = boot or (lambda _instance_id, _user_data: ("127.0.0.1", None))
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._pauses: list[Pause] = []
        self._replies: dict[str, tuple[dict[str, str], bytes]] = {}
        self._lock = threading.RLock()
        """Held while moto is at work, which is not made for threads."""
        self._arrivals = threading.Lock()
        self.calls: list[Call] = []
        self.addresses: dict[str, str] = {}
        self.machines: dict[str, Machine] = {}
        self.never_boots = threading.Event()
        """While it is set, instances stay pending."""
        self.is_away = threading.Event()
        """While it is set, nothing is answered: connections are cut."""
        self._overridden: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Self:
        # Before moto is imported, which reads them once.
        self._validating = _environment(
            MOTO_EC2_LOAD_DEFAULT_AMIS="false",
            MOTO_ENABLE_AMI_VALIDATION="true",
            MOTO_ENABLE_KEYPAIR_VALIDATION="true",
            MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION="true",
        )
        self._validating.__enter__()
        with warnings.catch_warnings():
            # moto and flask are in this process, and their deprecations are not ours.
            warnings.simplefilter("ignore")
            from moto.backends import get_backend  # noqa: PLC0415 -- half a second, for tests that need it
            from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415
            from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415

            class Quiet(WSGIRequestHandler):
                def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
                    pass

            self._backend = get_backend("ec2")[_ACCOUNT][REGION]
            self._backend.reset()
            self._moto = DomainDispatcherApplication(create_backend_app)
            self._server = make_server("127.0.0.1", 0, self._application, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, name="moto", kwargs={"poll_interval": 0.02})
        self._thread.start()
        self._furnish()
        return self

    def __exit__(self, *_: object) -> None:
        for pause in self._pauses:
            pause.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._validating.__exit__(None, None, None)
        for instance_id in list(self.machines):
            self._end_machine(instance_id)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def _furnish(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vpc = self._backend.get_default_vpc()
            assert vpc is not None
            self._backend.create_security_group(GROUP, "for tests", vpc_id=vpc.id)
            self._backend.create_key_pair(KEY_NAME, "ed25519", tags={})
        self.image_id = self.add_image(IMAGE_NAME)

    def add_image(self, name: str) -> str:
        """Register an image; return its id."""
        return str(self._backend.register_image(name=name).id)

    def fail(self, action: str, *faults: Fault) -> None:
        """Have the next calls of an action fail so, in this order."""
        with self._arrivals:
            self._faults[action].extend(faults)
            self._pauses += [fault for fault in faults if isinstance(fault, Pause)]

    def mend(self, action: str) -> None:
        """Have the next calls of an action work again."""
        with self._arrivals:
            self._faults[action].clear()

    def pause(self, action: str, *, after: bool = False) -> Pause:
        """Have the next call of an action stand still."""
        pause = Pause(after=after)
        self.fail(action, pause)
        return pause

    def called(self, action: str) -> list[Call]:
        """Return the calls of an action so far, dry runs left out."""
        with self._arrivals:
            return [call for call in self.calls if call.action == action and not call.is_dry]

    def alive(self) -> list[str]:
        """Return the ids of the instances that are paid for."""
        return [instance_id for instance_id, state in self.states().items() if state not in _ENDED]

    def states(self) -> dict[str, str]:
        """Return every instance's state."""
        with self._lock:
            return {
                one.id: self._overridden.get(one.id, (one.state, ""))[0]
                for reservation in self._backend.reservations.values()
                for one in reservation.instances
            }

    def interrupt(self, instance_id: str, code: str = "Server.SpotInstanceTermination") -> None:
        """End an instance as AWS or somebody else would."""
        with self._lock:
            self._overridden[instance_id] = ("terminated", code)
        self._end_machine(instance_id)

    def _end_machine(self, instance_id: str) -> None:
        with self._lock:
            machine = self.machines.pop(instance_id, None)
        if machine is not None:
            machine.end()

    def _application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        parameters = dict(parse_qsl(body.decode()))
        action = parameters.get("Action", "")
        call = Call(action, parameters)
        with self._arrivals:
            self.calls.append(call)
            queue = self._faults[action]
            fault = None if call.is_dry or not queue else queue.popleft()
        if self.is_away.is_set():
            environ["werkzeug.socket"].shutdown(2)
            return []
        if isinstance(fault, Refusal):
            start_response(f"{fault.status} Refused", [("Content-Type", "text/xml")])
            return [_error(fault)]
        if isinstance(fault, Pause) and not fault.after:
            fault.reached.set()
            fault.go_on.wait(60)
        status, headers, reply = self._answer(call, environ, body)
        if isinstance(fault, Pause) and fault.after:
            fault.reached.set()
            fault.go_on.wait(60)
        if isinstance(fault, LostReply):
            environ["werkzeug.socket"].shutdown(2)
            return []
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*kept, ("Content-Length", str(len(reply)))])
        return [reply]

    def _answer(self, call: Call, environ: dict[str, Any], body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        with self._lock:
            if call.action == "RunInstances" and not call.is_dry:
                return self._launch(call, environ, body)
            answer = self._asked(environ, body)
        if call.action == "TerminateInstances" and answer[0].startswith("200"):
            for key, value in call.parameters.items():
                if key.startswith("InstanceId."):
                    self._end_machine(value)
        if call.action == "DescribeInstances" and answer[0].startswith("200"):
            return answer[0], answer[1], self._as_it_is(answer[2])
        return answer

    def _launch(self, call: Call, environ: dict[str, Any], body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        token = call.parameters.get("ClientToken", "")
        meant = {key: value for key, value in call.parameters.items() if key != "Version"}
        if token in self._replies:
            before, reply = self._replies[token]
            if before != meant:
                return "400 Refused", [], _error(Refusal("IdempotentParameterMismatch"))
            return "200 OK", [("Content-Type", "text/xml")], self._as_it_is(reply)
        status, headers, reply = self._asked(environ, body)
        if not status.startswith("200"):
            return status, headers, reply
        self._replies[token] = (meant, reply)
        for element in ET.fromstring(reply).findall(".//{*}instanceId"):  # noqa: S314 -- moto's own words
            instance_id = str(element.text)
            address, machine = self._boot(instance_id, call.parameters.get("UserData", ""))
            self.addresses[instance_id] = address
            if machine is not None:
                self.machines[instance_id] = machine
        return status, headers, self._as_it_is(reply)

    def _asked(self, environ: dict[str, Any], body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        found: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
            found[:] = [status, headers]
            return lambda _: None

        again = {**environ, "wsgi.input": io.BytesIO(body)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            iterable = self._moto(again, start_response)
            reply = b"".join(iterable)
        return found[0], found[1], reply

    def _as_it_is(self, reply: bytes) -> bytes:
        """Return what moto says of instances, with their addresses, and as booted as they are."""
        document = ET.fromstring(reply)  # noqa: S314 -- as above
        for item in document.findall(".//{*}item"):
            instance_id = item.findtext("{*}instanceId")
            state = item.find("{*}instanceState/{*}name")
            if instance_id is None or state is None:
                continue
            if state.text == "running" and self.never_boots.is_set():
                state.text = "pending"
            if instance_id in self._overridden:
                state.text, code = self._overridden[instance_id]
                reason = item.find("{*}stateReason/{*}code")
                if reason is None:
                    reason = ET.SubElement(ET.SubElement(item, "stateReason"), "code")
                reason.text = code
            for name in ("ipAddress", "privateIpAddress"):
                address = item.find(f"{{*}}{name}")
                if address is not None:  # moto's own are somebody's
                    address.text = self.addresses[instance_id]
        return ET.tostring(document)


_ENDED = ("terminated", "shutting-down")


def _error(refusal: Refusal) -> bytes:
    return (
        f"<Response><Errors><Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error></Errors>"
        "<RequestID>made-up</RequestID></Response>"
    ).encode()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
