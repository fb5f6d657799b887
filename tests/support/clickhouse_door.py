"""The part of ClickHouse's HTTP interface that clickhouse-connect uses, over chDB, with faults.

Stands in for a ClickHouse server where none can run: real SQL, real Arrow, real error codes; and
it can be told to refuse, to cut a connection after the work is done, or to ask for a password.
"""

from __future__ import annotations

import base64
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb

_INSERT = re.compile(rb"\s*INSERT INTO (.+?) FORMAT Arrow\n", re.DOTALL)
_CODE = re.compile(r"Code: (\d+)")
_TRANSPORT = frozenset(
    {
        "query", "database", "wait_end_of_query", "send_progress_in_http_headers", "session_id",
        "http_headers_progress_interval_ms", "client_protocol_version", "query_id", "compress",
        "enable_http_compression", "cancel_http_readonly_queries_on_client_close",
    }
)  # fmt: skip


class Door:
    """A listening door.

    Attributes:
        faults: What the next inserts meet, first in first out: a ClickHouse error code, `cut` for
            a connection that ends after the insert was done and before the answer, `half` for one
            that ends amid the answer, or `slow` for an answer that takes `slow_s`.
        slow_s: What is slow, in s.
        inserts: How many inserts came in.
    """

    def __init__(self, path: Path, password: str) -> None:
        self.faults: deque[int | str] = deque()
        self.inserts = 0
        self.slow_s = 3.0
        self._path = path
        self._authorization = "Basic " + base64.b64encode(f"batcher:{password}".encode()).decode()
        self._lock = threading.Lock()
        # chDB's engine ends with its last handle: this one keeps it.
        self._anchor = chdb.connect(str(path))
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                door.serve(self)

            do_GET = do_POST  # noqa: N815 - likewise

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://batcher@127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="clickhouse-door")
        self._thread.start()

    def close(self) -> None:
        """Stop listening and let go of the engine."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._anchor.close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Authorization") != self._authorization:
            _answer(request, 403, b"Code: 516. Authentication failed", code=516)
            return
        parameters = dict(parse_qsl(urlsplit(request.path).query, keep_blank_values=True))
        # The statement comes in the address when the body is data, else in the body.
        body = b"\n".join(filter(None, (parameters.get("query", "").encode(), body)))
        insert = _INSERT.match(body)
        fault = self._fault() if insert else None
        if isinstance(fault, int):
            _answer(request, 500, f"Code: {fault}. DB::Exception: injected".encode(), code=fault)
            return
        try:
            with self._lock:
                out = self._execute(parameters, body, insert)
        except RuntimeError as error:
            found = _CODE.search(str(error))
            _answer(request, 500, str(error).encode(), code=int(found[1]) if found else 1002)
            return
        match fault:
            case "cut":
                request.close_connection = True
            case "half":
                request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
                request.close_connection = True
            case "slow":
                time.sleep(self.slow_s)
                _answer(request, 200, out)
            case _:
                _answer(request, 200, out)

    def _fault(self) -> int | str | None:
        self.inserts += 1
        return self.faults.popleft() if self.faults else None

    def _execute(
        self, parameters: dict[str, str], body: bytes, insert: re.Match[bytes] | None
    ) -> bytes:
        handle = chdb.connect(str(self._path))
        try:
            if parameters.get("database"):
                handle.query(f"USE `{parameters['database']}`")
            for name, value in parameters.items():
                if name not in _TRANSPORT and not name.startswith("param_"):
                    handle.query(f"SET {name} = '{value}'")
            if insert:
                with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
                    file.write(body[insert.end() :])
                    file.flush()
                    into = insert[1].decode()
                    handle.query(f"INSERT INTO {into} FROM INFILE '{file.name}' FORMAT Arrow")
                return b""
            bound = {k[6:]: v for k, v in parameters.items() if k.startswith("param_")}
            result = handle.query(body.decode(), "TabSeparated", params=bound)
            return bytes(result.bytes() or b"")
        finally:
            handle.close()


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, *, code: int = 0) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("X-ClickHouse-Summary", "{}")
    request.send_header("X-ClickHouse-Timezone", "UTC")
    if code:
        request.send_header("X-ClickHouse-Exception-Code", str(code))
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def clickhouse_door(path: Path, *, password: str) -> Iterator[Door]:
    """A door for the length of the block. It holds the process's one chDB path."""
    door = Door(path, password)
    try:
        yield door
    finally:
        door.close()
