"""An instance metadata service on loopback: tokens, and a spot notice when a test gives one (AWS, IMDSv2)."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

NOTICE = '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}'


class Imds:
    """A service to point a run's `imds_url` at. Use it as a context manager."""

    def __init__(self) -> None:
        self.notice: str | None = None
        """What is answered with; None: 404."""
        self.token_status = 200
        """403: the service is turned off."""
        self.requests: list[tuple[str, int]] = []
        """Method and status of each request, in order."""
        self._tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def expire_tokens(self) -> None:
        """Have every token answered with 401 from now on."""
        self._tokens.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if (method, path) == ("PUT", "/latest/api/token"):
            if "x-aws-ec2-metadata-token-ttl-seconds" not in headers:
                return 400, ""
            token = f"token{len(self.requests)}"
            self._tokens.add(token)
            return self.token_status, token
        if (method, path) == ("GET", "/latest/meta-data/spot/instance-action"):
            if headers.get("x-aws-ec2-metadata-token") not in self._tokens:
                return 401, ""
            return (404, "") if self.notice is None else (200, self.notice)
        return 400, ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                headers = {name.lower(): text for name, text in self.headers.items()}
                status, body = service._answer(self.command, self.path, headers)
                service.requests.append((self.command, status))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = _serve  # noqa: N815 -- the library's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
