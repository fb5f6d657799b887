"""What both clients share: where the API is, who asks, and how a request is repeated."""

from __future__ import annotations

import os
import random
import ssl
from typing import Any

import httpx
import msgspec
from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    wait_random_exponential,
)

from decisec.sdk.calls import Call, retry_after_s
from decisec.sdk.errors import ConfigurationError
from schemas.api import Problem
from schemas.errors import ErrorCode

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "DECISEC_API_URL"
TOKEN_VARIABLE = "DECISEC_TOKEN"  # noqa: S105 - the variable's name
CA_VARIABLE = "DECISEC_API_CA"
TIMEOUT_S = 15.0
ATTEMPTS = 4
PATIENCE_S = 30.0
"""Besides the call's own wait: no try begins later than this after the first."""

IN_PROGRESS_S = 20.0
"""Besides the call's own wait: longer than a gateway that has died keeps a request for itself."""

IN_PROGRESS_PAUSE_S = 1.0


class Target:
    """Address, authority and token, from the arguments or the environment.

    Raises:
        ConfigurationError: There is no token, the address is no HTTP URL, or the file of the
            authority is none.
    """

    def __init__(self, base_url: str | None, token: str | None, ca: str | None = None) -> None:
        self.base_url = (base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        self._token = token or os.environ.get(TOKEN_VARIABLE) or ""
        self._ca = os.environ.get(CA_VARIABLE, "") if ca is None else ca
        if not self._token:
            raise ConfigurationError(f"there is no token: pass one, or set {TOKEN_VARIABLE}")
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{self.base_url!r} is no HTTP URL; see {URL_VARIABLE}")

    @property
    def trust(self) -> ssl.SSLContext | bool:
        """Which certificates to believe: those of the authority, or those of the usual ones."""
        if self.base_url.startswith("http://"):
            # None at all: there will be none to check, and reading the usual ones takes longer
            # than a request.
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not self._ca:
            return True
        try:
            return ssl.create_default_context(cafile=self._ca)
        except OSError as error:
            # An SSLError is an OSError as well; its words say what is wrong with the PEM.
            raise ConfigurationError(
                f"{self._ca!r} is no PEM file of an authority: {error.strerror or error}; "
                f"see {CA_VARIABLE}"
            ) from error

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


def policy(call: Call[Any], attempts: int = ATTEMPTS, *, come_again: bool = True) -> dict[str, Any]:
    """How tenacity repeats a call that is as good twice as once.

    It is repeated when the connection failed, when the API cannot serve it now (429, 503; the
    pause is what `Retry-After` says) and when a proxy has nobody behind it. A repeat that comes
    before the first is answered is told so, and asks until it is.

    Args:
        call: Which.
        attempts: How often it is sent at most.
        come_again: Whether 429 and 503 are waited out.
    """
    attempts = attempts if call.repeatable else 1
    backoff = wait_random_exponential(multiplier=0.1, max=2.0)

    def stop(state: RetryCallState) -> bool:
        response = _answer(state)
        then_s = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        if response is not None and _in_progress(response):
            return then_s > IN_PROGRESS_S + call.wait_s
        return state.attempt_number >= attempts or then_s > PATIENCE_S + call.wait_s

    def pause_s(state: RetryCallState) -> float:
        response = _answer(state)
        if response is None:
            return backoff(state)
        if _in_progress(response):
            return IN_PROGRESS_PAUSE_S
        asked_s = retry_after_s(response)
        if asked_s is None:
            return backoff(state)
        # Not all who were sent away come back in the same instant.
        return asked_s + random.uniform(0.0, 0.25)  # noqa: S311 - no secret

    def passes(response: httpx.Response) -> bool:
        return _passes(response) and (come_again or response.status_code not in _REFUSED_NOW)

    def give_up(state: RetryCallState) -> Any:
        return state.outcome.result() if state.outcome is not None else None

    return {
        "retry": retry_if_exception_type(_LOST) | retry_if_result(passes),
        "wait": pause_s,
        "stop": stop,
        "retry_error_callback": give_up,
    }


_LOST = (
    httpx.NetworkError,
    httpx.ConnectTimeout,
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.RemoteProtocolError,
)
_REFUSED_NOW = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_NOBODY_BEHIND = (httpx.codes.BAD_GATEWAY, httpx.codes.GATEWAY_TIMEOUT)


def _answer(state: RetryCallState) -> httpx.Response | None:
    if state.outcome is None or state.outcome.failed:
        return None
    response: httpx.Response = state.outcome.result()
    return response


def _passes(response: httpx.Response) -> bool:
    """Whether the same request may well get another answer soon."""
    problem = _problem(response)
    if response.status_code in _REFUSED_NOW:
        # That no host has room is about the hosts, and somebody may want to ask for less.
        return problem is None or problem.code != ErrorCode.NO_CAPACITY
    if response.status_code in _NOBODY_BEHIND:
        # With a problem these are of a command that failed.
        return problem is None
    return _in_progress(response)


def _in_progress(response: httpx.Response) -> bool:
    if response.status_code != httpx.codes.CONFLICT:
        return False
    problem = _problem(response)
    return problem is not None and problem.code == ErrorCode.REQUEST_IN_PROGRESS


def _problem(response: httpx.Response) -> Problem | None:
    if response.is_success:
        return None
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def next_pause_s(pause_s: float) -> float:
    """Between two looks at an operation: from 50 ms up to a second."""
    return min(1.0, pause_s * 1.5)


FIRST_PAUSE_S = 0.05
