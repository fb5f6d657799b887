"""What both clients share: where the API is, who asks, and how a request is repeated."""

from __future__ import annotations

import os
from typing import Any

import httpx
from tenacity import retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tenacity.stop import stop_base

from decisec.sdk.calls import Call
from decisec.sdk.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "DECISEC_API_URL"
TOKEN_VARIABLE = "DECISEC_TOKEN"  # noqa: S105 - the variable's name
TIMEOUT_S = 15.0
ATTEMPTS = 4


class Target:
    """Address and token, from the arguments or the environment.

    Raises:
        ConfigurationError: There is no token, or the address is no HTTP URL.
    """

    def __init__(self, base_url: str | None, token: str | None) -> None:
        self.base_url = (base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        self._token = token or os.environ.get(TOKEN_VARIABLE) or ""
        if not self._token:
            raise ConfigurationError(f"there is no token: pass one, or set {TOKEN_VARIABLE}")
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{self.base_url!r} is no HTTP URL; see {URL_VARIABLE}")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {
            "Authorization": f"Bearer {self._token}",
            "Accept": "application/json, application/problem+json",
        }


def build(client: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
    """The request of a call; its timeout allows for the wait that the call asks for."""
    usual = client.timeout
    return client.build_request(
        call.method,
        call.path,
        params=list(call.params) or None,
        content=call.body or None,
        headers=dict(call.headers),
        timeout=httpx.Timeout(
            connect=usual.connect,
            read=(usual.read or TIMEOUT_S) + call.wait_s,
            write=usual.write,
            pool=usual.pool,
        ),
    )


def policy(call: Call[Any]) -> dict[str, Any]:
    """How tenacity repeats a call: only what is safe twice, only when the connection failed."""
    stop: stop_base = stop_after_attempt(ATTEMPTS if call.repeatable else 1)
    return {
        "retry": retry_if_exception_type(
            (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)
        ),
        "wait": wait_random_exponential(multiplier=0.1, max=2.0),
        "stop": stop,
        "reraise": True,
    }


def next_pause_s(pause_s: float) -> float:
    """Between two looks at an operation: from 50 ms up to a second."""
    return min(1.0, pause_s * 1.5)


FIRST_PAUSE_S = 0.05
