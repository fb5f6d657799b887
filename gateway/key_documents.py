"""Where a key set is read from: an issuer's HTTPS address, or a file of the operator's own."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from gateway.jwks import MAX_DOCUMENT_BYTES
from runtime.errors import SettingsError, TransientError

_VARIABLE = "DECISEC_GATEWAY_JWKS"
_HEADERS = {
    "Accept": "application/jwk-set+json, application/json",
    # What is not packed cannot unpack to something huge.
    "Accept-Encoding": "identity",
    "User-Agent": "decisec-gateway",
}


class KeyDocument(Protocol):
    """A document that can be read again and again."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Hold what reading needs for the length of the block."""

    async def read(self) -> bytes:
        """The document as it stands now: one byte more than may be, at most.

        Raises:
            TransientError: It cannot be had; says why.
        """


def key_document(where: str, *, timeout_s: float, ca_file: str = "") -> KeyDocument:
    """The document at an address or a path.

    Args:
        where: `https://…`, `http://…` on this machine only, or a path.
        timeout_s: How long one reading may take as a whole.
        ca_file: Certificates (PEM) that the issuer's may be signed by; empty for the usual ones.

    Raises:
        SettingsError: It is neither.
    """
    if "://" not in where:
        return FileDocument(Path(where), timeout_s)
    try:
        url = urlsplit(where)
        host = url.hostname or ""
        _ = url.port
    except ValueError as error:
        raise SettingsError(f"{_VARIABLE}: no valid address") from error
    if url.username is not None or url.password is not None:
        raise SettingsError(f"{_VARIABLE}: an address with a password in it would end up in logs")
    match url.scheme.lower():
        case "https" if host:
            if ca_file and not Path(ca_file).is_file():
                raise SettingsError(f"DECISEC_GATEWAY_JWKS_CA_FILE: there is no file {ca_file}")
        case "http" if _is_loopback(host):
            pass
        case "http":
            raise SettingsError(
                f"{_VARIABLE}: http:// only on this machine; whoever is in between could exchange "
                "the keys. Take https://"
            )
        case _:
            raise SettingsError(f"{_VARIABLE}: an https:// address or the path of a file")
    return HttpDocument(where, timeout_s=timeout_s, ca_file=ca_file)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpDocument:
    """A document at an address. Redirects are not followed: the address is the trust."""

    def __init__(self, url: str, *, timeout_s: float, ca_file: str = "") -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold a client.

        Raises:
            SettingsError: The certificates cannot be read.
        """
        secure = self._url.lower().startswith("https:")
        # Reading a hundred certificates takes tens of milliseconds.
        verify = await asyncio.to_thread(self._certificates) if secure else False
        async with httpx.AsyncClient(
            verify=verify, timeout=self._timeout_s, headers=_HEADERS, trust_env=secure
        ) as self._client:
            yield

    async def read(self) -> bytes:
        """Ask for it."""
        if self._client is None:
            raise AssertionError("read outside of `opened`")
        found = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s) as limit,
                self._client.stream("GET", self._url) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise TransientError(f"the issuer answers with {response.status_code}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise TransientError("the issuer sends the keys packed, unasked")
                async for part in response.aiter_raw():
                    found += part
                    if len(found) > MAX_DOCUMENT_BYTES:
                        # Leaving the loop would leave the library's own half done.
                        del found[MAX_DOCUMENT_BYTES + 1 :]
                        limit.reschedule(0)
        except TimeoutError as error:
            if len(found) > MAX_DOCUMENT_BYTES:
                return bytes(found)
            raise TransientError(f"no answer within {self._timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise TransientError(f"{type(error).__name__}: {error}"[:200]) from error
        return bytes(found)

    def _certificates(self) -> ssl.SSLContext:
        try:
            if self._ca_file:
                return ssl.create_default_context(cafile=self._ca_file)
            return httpx.create_ssl_context()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"DECISEC_GATEWAY_JWKS_CA_FILE: no certificates in {self._ca_file}: {error}"
            ) from error


class FileDocument:
    """A document in a file, which may be exchanged at any time."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Nothing needs to be held."""
        yield

    async def read(self) -> bytes:
        """Read it, in a thread: it may be on a file system that hangs."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(self._read)
        except TimeoutError as error:
            raise TransientError(f"{self._path}: not read within {self._timeout_s:g} s") from error
        except OSError as error:
            raise TransientError(f"{self._path}: {error.strerror or error}") from error

    def _read(self) -> bytes:
        # A pipe must not keep the thread waiting for a writer.
        with os.fdopen(
            os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb"
        ) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise TransientError(f"{self._path} is no file")
            if mode & stat.S_IWOTH:
                raise TransientError(f"{self._path} can be written by everybody")
            return file.read(MAX_DOCUMENT_BYTES + 1)
