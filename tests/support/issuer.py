"""An identity provider: keys, tokens signed with them, and a web server that can misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from tests.support.tokens import claims

ALGORITHMS = ("RS256", "ES256", "EdDSA")


@cache
def key_of(algorithm: str, number: int = 0) -> Key:
    """A private key; the same one for the same arguments, since RSA keys take time to make."""
    del number
    match algorithm:
        case "RS256":
            return RSAKey.generate_key(2048)
        case "ES256":
            return ECKey.generate_key("P-256")
        case _:
            return OKPKey.generate_key("Ed25519")


@dataclass(frozen=True)
class SigningKey:
    """A key of the issuer's."""

    algorithm: str
    kid: str
    number: int = 0

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public part, as a set holds it; a value of None leaves a member out."""
        bare = dict(key_of(self.algorithm, self.number).as_dict(private=False))
        whole = {**bare, "kid": self.kid, "alg": self.algorithm, "use": "sig", **changes}
        return {name: value for name, value in whole.items() if value is not None}

    def token(
        self,
        payload: Mapping[str, Any] | bytes | None = None,
        header: Mapping[str, Any] | bytes | None = None,
        **changes: Any,
    ) -> str:
        """A signed token.

        Args:
            payload: Claims; good ones by default.
            header: Members besides `alg` and `kid`; one of value None is left out. Bytes are taken
                as they are.
            changes: To good claims.
        """
        if not isinstance(header, bytes):
            members = {"alg": self.algorithm, "kid": self.kid, **(header or {})}
            members = {name: value for name, value in members.items() if value is not None}
            header = json.dumps(members).encode()
        if not isinstance(payload, bytes):
            payload = json.dumps(claims(**changes) if payload is None else payload).encode()
        signed = b".".join(map(base64url, (header, payload)))
        signature = JWSRegistry.algorithms[self.algorithm].sign(
            signed, key_of(self.algorithm, self.number)
        )
        return b".".join((signed, base64url(signature))).decode()


def base64url(data: bytes) -> bytes:
    """Without padding, as tokens have it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def document(*keys: SigningKey | Mapping[str, Any]) -> bytes:
    """A key set."""
    return json.dumps(
        {"keys": [key.jwk() if isinstance(key, SigningKey) else dict(key) for key in keys]}
    ).encode()


@dataclass
class IssuerServer:
    """What the server does: change it at any time.

    Attributes:
        body: Of the answer.
        headers: Of the answer, besides its length.
        gate: Requests wait here while it is cleared.
        drip: The body comes a byte at a time, each after a pause, without end.
        asked: Requests so far.
        asking: Requests that are being answered now, and the most there ever were.
    """

    body: bytes = b""
    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    drip: bool = False
    asked: int = 0
    asking: int = 0
    most: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def url(self) -> str:
        """Of the key set."""
        return f"http://127.0.0.1:{self.port}/keys"

    def serve(self, keys: Iterable[SigningKey]) -> None:
        """Publish these keys from now on."""
        self.body = document(*keys)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close."""
        self.asked += 1
        self.asking += 1
        self.most = max(self.most, self.asking)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await self.gate.wait()
            body = self.body
            headers = {"Content-Type": "application/json", "Connection": "close", **self.headers}
            if not self.drip:
                headers["Content-Length"] = str(len(body))
            lines = [f"HTTP/1.1 {self.status}", *(f"{k}: {v}" for k, v in headers.items())]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            while self.drip:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.asking -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def issuer(
    *keys: SigningKey, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[IssuerServer]:
    """A server on loopback for the length of the block."""
    running = IssuerServer()
    running.serve(keys)
    answering: set[asyncio.Task[None]] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        try:
            await running.answer(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            answering.discard(task)

    server = await asyncio.start_server(on_connection, "127.0.0.1", port, ssl=tls)
    running.port = int(server.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        server.close()
        for task in list(answering):
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


class MemoryDocument:
    """A key set that a test exchanges, without a server.

    Attributes:
        body: What is read; an error is raised.
        reads: So far.
    """

    def __init__(self, *keys: SigningKey) -> None:
        self.body: bytes | Exception = document(*keys)
        self.reads = 0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Nothing needs to be held."""
        yield

    async def read(self) -> bytes:
        """The body as it stands."""
        self.reads += 1
        await asyncio.sleep(0)
        if isinstance(self.body, Exception):
            raise self.body
        return self.body
