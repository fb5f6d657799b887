"""An API on loopback that answers as a test says, and keeps what it was asked with.

For what a command does with an answer, where a real gateway could not be brought to give it.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import msgspec


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    token: str
    prefer: str


class StubApi:
    """Answers each request with the status and the body that `answer` makes of it.

    Attributes:
        url: Where it is.
        asked: What it was asked, request by request.
    """

    def __init__(
        self, answer: Callable[[Asked], tuple[int, Any]], tls: ssl.SSLContext | None = None
    ) -> None:
        self.asked: list[Asked] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                asked = Asked(
                    self.command,
                    self.path.partition("?")[0],
                    self.headers.get("Authorization", "").removeprefix("Bearer "),
                    self.headers.get("Prefer", ""),
                )
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                api.asked.append(asked)
                status, body = answer(asked)
                content = msgspec.json.encode(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the library's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def tokens(self) -> list[str]:
        """What it was shown."""
        return [asked.token for asked in self.asked]

    @contextmanager
    def serving(self) -> Iterator[StubApi]:
        """It answers for the length of the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def named_api(name: str, tls: ssl.SSLContext | None = None) -> StubApi:
    """One that says its name as the only image: to see where commands go."""
    return StubApi(lambda _: (200, {"images": [{"name": name}]}), tls)
