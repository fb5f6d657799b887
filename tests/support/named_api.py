"""An API that says its own name, and keeps what it was asked with: to see where commands go."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class NamedApi:
    """Answers `GET /v1/images` with its name as the only image.

    Attributes:
        url: Where it is.
        tokens: What it was shown, request by request.
    """

    def __init__(self, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.tokens: list[str] = []
        body = json.dumps({"images": [{"name": name}]}).encode()
        tokens = self.tokens

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                tokens.append(self.headers.get("Authorization", "").removeprefix("Bearer "))
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @contextmanager
    def serving(self) -> Iterator[NamedApi]:
        """It answers for the length of the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
