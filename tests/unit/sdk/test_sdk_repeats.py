"""What the SDK sends again when the API is not there or cannot serve it now, and what it does not.

Both clients, by one policy: every repeat of a mutation carries the key of its first.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from decisec.sdk import (
    ApiError,
    AsyncClient,
    Client,
    ConfigurationError,
    HypervisorFailedError,
    NoCapacityError,
    RateLimitedError,
    UnavailableError,
    UnexpectedAnswerError,
)
from decisec.sdk.transport import PATIENCE_S
from schemas.api import CreateVmRequest, Problem
from schemas.ids import new_id

OPENAPI = Path(__file__).parents[3] / "docs" / "openapi.json"
WHO = httpx.Response(200, content=b'{"subject":"a","customer_id":"acme","scopes":[]}')

Step = httpx.Response | type[httpx.TransportError]


def problem(status: int, code: str, retry_after: str = "0") -> httpx.Response:
    body = Problem(type="t", title="t", status=status, code=code)
    headers = {"Retry-After": retry_after} if retry_after else {}
    return httpx.Response(status, content=msgspec.json.encode(body), headers=headers)


class Api:
    """Answers with one step after the other, the last one for ever."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.keys: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("Idempotency-Key", ""))
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, httpx.Response):
            return httpx.Response(step.status_code, headers=step.headers, content=step.content)
        raise step("lost", request=request)


def blocking(api: Api, act: Callable[[Any], Any]) -> Any:
    with Client("http://x", "t", transport=httpx.MockTransport(api)) as client:
        return act(client)


def with_asyncio(api: Api, act: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with AsyncClient("http://x", "t", transport=httpx.MockTransport(api)) as client:
            return await act(client)

    return asyncio.run(run())


both = pytest.mark.parametrize("run", [blocking, with_asyncio])


@both
@pytest.mark.parametrize(
    "passing",
    [
        problem(429, "rate_limited"),
        problem(503, "unavailable"),
        problem(503, "unavailable", retry_after=""),
        problem(409, "request_in_progress"),
        httpx.Response(502, content=b"<html>"),
        httpx.Response(504, content=b"<html>"),
        httpx.Response(503, content=b"<html>", headers={"Retry-After": "0"}),
        httpx.ConnectError,
        httpx.ReadError,
        httpx.WriteError,
        httpx.ReadTimeout,
        httpx.RemoteProtocolError,
    ],
    ids=str,
)
def test_what_passes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], passing: Step
) -> None:
    """A read comes through, and a mutation with the key that it had at first."""
    monkeypatch.setattr("decisec.sdk.transport.IN_PROGRESS_PAUSE_S", 0.01)
    api = Api(passing, WHO)
    assert run(api, lambda client: client.whoami()).customer_id == "acme"
    assert api.keys == ["", ""]
    api = Api(passing, passing, problem(404, "not_found"))
    with pytest.raises(ApiError, match="not_found"):
        run(api, lambda client: client.boot_vm(new_id()))
    first, *others = api.keys
    assert first
    assert others == [first, first]


@both
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(503, "no_capacity"), NoCapacityError),
        (problem(502, "hypervisor_failed"), HypervisorFailedError),
        (problem(504, "deadline_exceeded"), ApiError),
        (problem(429, "rate_limited", retry_after="86400"), RateLimitedError),
        (problem(500, "internal"), ApiError),
        (httpx.Response(500, content=b"<html>"), UnexpectedAnswerError),
    ],
)
def test_what_does_not_pass_is_said_at_once(
    run: Callable[..., Any], answer: Step, error: type[Exception]
) -> None:
    """Nor is anybody kept waiting who would have to wait for long."""
    api = Api(answer)
    began_s = time.monotonic()
    with pytest.raises(error):
        run(api, lambda client: client.create_vm(CreateVmRequest(image="tiny")))
    assert len(api.keys) == 1
    assert time.monotonic() - began_s < PATIENCE_S / 2


@both
@pytest.mark.parametrize(
    ("answer", "error"),
    [(problem(503, "unavailable"), UnavailableError), (httpx.ReadError, httpx.ReadError)],
)
def test_it_ends_with_what_the_last_try_met(
    run: Callable[..., Any], answer: Step, error: type[Exception]
) -> None:
    """Four tries."""
    api = Api(answer)
    with pytest.raises(error):
        run(api, lambda client: client.whoami())
    assert len(api.keys) == 4


def test_a_client_may_ask_once_only() -> None:
    """Where nobody has the time."""
    api = Api(problem(503, "unavailable"))
    with (
        Client("http://x", "t", attempts=1, transport=httpx.MockTransport(api)) as client,
        pytest.raises(UnavailableError),
    ):
        client.whoami()
    assert len(api.keys) == 1


def test_who_counts_refusals_is_told_of_each() -> None:
    """A lost connection is another matter."""
    api = Api(httpx.ReadError, problem(429, "rate_limited"), WHO)
    with (
        Client("http://x", "t", come_again=False, transport=httpx.MockTransport(api)) as client,
        pytest.raises(RateLimitedError),
    ):
        client.whoami()
    assert len(api.keys) == 2


def test_a_key_of_ones_own_is_kept_over_repeats() -> None:
    """From another process it would be the same."""
    api = Api(httpx.ReadError, httpx.ReadError, problem(403, "forbidden"))
    with pytest.raises(ApiError):
        blocking(
            api,
            lambda client: client.create_vm(CreateVmRequest(image="tiny"), idempotency_key="o-1"),
        )
    assert api.keys == ["o-1", "o-1", "o-1"]


def test_quotas_are_read() -> None:
    """Limits, and what is used."""
    amounts = {"vms": 1, "vcpus": 2, "memory_mib": 3, "disk_mib": 4, "snapshots": 5}
    body = json.dumps({"limits": amounts, "used": {**amounts, "vms": 0}}).encode()
    for run in (blocking, with_asyncio):
        found = run(Api(httpx.Response(200, content=body)), lambda client: client.quotas())
        assert (found.limits.vcpus, found.used.vms) == (2, 0)


def test_the_file_of_an_authority_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it, and the variable."""
    file = tmp_path / "ca.pem"
    for content in (None, "no PEM"):
        if content:
            file.write_text(content)
        with pytest.raises(ConfigurationError, match="DECISEC_API_CA"):
            Client("https://x", "t", ca=str(file))
        monkeypatch.setenv("DECISEC_API_CA", str(file))
        with pytest.raises(ConfigurationError, match="DECISEC_API_CA"):
            AsyncClient("https://x", "t")
        monkeypatch.delenv("DECISEC_API_CA")


def test_every_route_of_the_api_has_a_call() -> None:
    """Those for operators are theirs; everything else is in `calls` and `feeds` by its path."""
    sources = [
        Path(__file__).parents[3] / "decisec" / "sdk" / name for name in ("calls.py", "feeds.py")
    ]
    text = "".join(source.read_text() for source in sources)
    documented = {
        f"`{method.upper()} {path}`"
        for path, methods in json.loads(OPENAPI.read_text())["paths"].items()
        for method in methods
        if not path.startswith("/v1/admin")
    }
    plain_verbs = {
        f"`POST /v1/vms/{{vm_id}}/{verb}`"
        for verb in ("boot", "pause", "resume", "shutdown", "reboot")
    }
    assert {route for route in documented if route not in text} <= plain_verbs
