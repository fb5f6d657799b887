"""What both clients share: where the API is, who asks, and how a request is repeated."""

from __future__ import annotations

import os
from typing import Any

import httpx
import msgspec
from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    wait_random_exponential,
)

from decisec.sdk.calls import Call
from decisec.sdk.errors import ConfigurationError
from schemas.api import Problem
from schemas.errors import ErrorCode

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "DECISEC_API_URL"
TOKEN_VARIABLE = "DECISEC_TOKEN"  # noqa: S105 - the variable's name
TIMEOUT_S = 15.0
ATTEMPTS = 4
IN_PROGRESS_S = 20.0
"""Besides the call's own wait: longer than a gateway that has died keeps a request for itself."""

IN_PROGRESS_PAUSE_S = 1.0


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
    """How tenacity repeats a call: only what is safe twice, only when the connection failed.

    A repeat that comes before the first is answered is told so, and asks until it is.
    """
    attempts = ATTEMPTS if call.repeatable else 1
    backoff = wait_random_exponential(multiplier=0.1, max=2.0)

    def stop(state: RetryCallState) -> bool:
        if state.outcome is None or state.outcome.failed:
            return state.attempt_number >= attempts
        return (state.seconds_since_start or 0.0) > IN_PROGRESS_S + call.wait_s

    def pause_s(state: RetryCallState) -> float:
        if state.outcome is None or state.outcome.failed:
            return backoff(state)
        return IN_PROGRESS_PAUSE_S

    def give_up(state: RetryCallState) -> Any:
        return state.outcome.result() if state.outcome is not None else None

    return {
        "retry": retry_if_exception_type(
            (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)
        )
        | retry_if_result(_in_progress),
        "wait": pause_s,
        "stop": stop,
        "retry_error_callback": give_up,
    }


def _in_progress(response: httpx.Response) -> bool:
    if response.status_code != httpx.codes.CONFLICT:
        return False
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return problem.code == ErrorCode.REQUEST_IN_PROGRESS


def next_pause_s(pause_s: float) -> float:
    """Between two looks at an operation: from 50 ms up to a second."""
    return min(1.0, pause_s * 1.5)


FIRST_PAUSE_S = 0.05
