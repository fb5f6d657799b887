"""What the SDK sends, how it reads answers, and what it repeats."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest

from decisec.sdk import (
    ApiError,
    AsyncClient,
    BadRequestError,
    Client,
    ConfigurationError,
    ConflictError,
    IllegalTransitionError,
    NotFoundError,
    OperationFailedError,
    UnexpectedAnswerError,
    calls,
)
from decisec.sdk.errors import error_of
from schemas.api import CreateVmRequest, OperationView, Problem, VmList
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import OperationStatus
from schemas.ids import new_id

WHO = b'{"subject":"a","customer_id":"acme","scopes":[]}'


def client(handler: Any) -> Client:
    return Client("http://api.test/", "secret", transport=httpx.MockTransport(handler))


def problem(status: int, code: str) -> httpx.Response:
    body = Problem(type="t", title="t", status=status, code=code, detail="why", trace_id="abc")
    return httpx.Response(status, content=msgspec.json.encode(body), headers={"Retry-After": "3"})


def test_both_clients_have_the_same_methods() -> None:
    """Whoever knows one knows the other."""

    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(kind).items()
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


def test_a_token_is_needed_and_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Arguments win over variables; without a token nothing is sent."""
    monkeypatch.delenv("DECISEC_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="DECISEC_TOKEN"):
        Client()
    monkeypatch.setenv("DECISEC_TOKEN", "from-env")
    monkeypatch.setenv("DECISEC_API_URL", "http://elsewhere.test")
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=WHO)

    with Client(transport=httpx.MockTransport(handler)) as from_env:
        assert from_env.whoami().customer_id == "acme"
    assert seen[0].headers["Authorization"] == "Bearer from-env"
    assert seen[0].url == "http://elsewhere.test/v1/whoami"
    with pytest.raises(ConfigurationError, match="no HTTP URL"):
        Client("ftp://x", "t")


def test_wait_becomes_a_preference_and_lengthens_the_timeout() -> None:
    """Whole seconds, rounded up, at most 60."""
    vm_id = new_id()
    assert "Prefer" not in calls.verb(vm_id, "boot", 0).headers
    assert calls.verb(vm_id, "boot", 0.2).headers["Prefer"] == "wait=1"
    call = calls.verb(vm_id, "boot", 500)
    assert call.headers["Prefer"] == "wait=60"
    with httpx.Client(base_url="http://x", timeout=5) as http:
        from decisec.sdk.transport import build

        assert build(http, call).extensions["timeout"]["read"] == 65


def test_an_id_can_lead_nowhere_but_to_a_vm() -> None:
    """What is no UUID is never made into a path."""
    with pytest.raises(ValueError, match="badly formed"):
        calls.get_vm("../../admin")


def test_usage_times_need_a_zone() -> None:
    """A local time without a zone would bill the wrong hours."""
    with pytest.raises(ValueError, match="time zone"):
        calls.usage(datetime(2026, 1, 1), None, ())  # noqa: DTZ001 - the mistake under test
    call = calls.usage(datetime(2026, 1, 1, tzinfo=UTC), None, ())
    assert call.params == (("start", "2026-01-01T00:00:00+00:00"),)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", NotFoundError),
        (409, "illegal_transition", IllegalTransitionError),
        (400, "bad_request", BadRequestError),
        (418, "from_the_future", ApiError),
    ],
)
def test_a_problem_becomes_the_error_of_its_code(
    status: int, code: str, kind: type[ApiError]
) -> None:
    """Code, status, detail, trace and Retry-After are all there."""
    with client(lambda _: problem(status, code)) as api, pytest.raises(kind) as caught:
        api.get_vm(new_id())
    assert type(caught.value) is kind
    assert str(caught.value) == f"{status} {code}: why (trace abc)"
    assert caught.value.retry_after_s == 3
    assert isinstance(error_of(caught.value.problem, status), kind)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"<html>"),
        httpx.Response(502, content=b"<html>Bad gateway"),
        httpx.Response(500, content=b"\xff"),
        httpx.Response(200, content=b'{"subject":1}'),
    ],
)
def test_an_answer_of_something_else_is_told_apart(answer: httpx.Response) -> None:
    """A proxy's page is no crash of the decoder."""
    with client(lambda _: answer) as api, pytest.raises(UnexpectedAnswerError):
        api.whoami()


def test_reads_are_repeated_and_mutations_with_the_same_key() -> None:
    """A lost connection may have carried a mutation out already: the API knows it by its key."""
    tries: list[str] = []
    keys: set[str] = set()

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(request.method)
        if request.method == "POST":
            keys.add(request.headers["Idempotency-Key"])
        if len(tries) < 3 or request.method == "POST":
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, content=WHO)

    with client(handler) as api:
        assert api.whoami().subject == "a"
        assert tries == ["GET"] * 3
        tries.clear()
        with pytest.raises(httpx.ConnectError):
            api.create_vm(CreateVmRequest(image="tiny"))
        assert tries == ["POST"] * 4
        assert len(keys) == 1
        tries.clear()
        with pytest.raises(httpx.ConnectError):
            api.create_vm(CreateVmRequest(image="tiny"))
        assert len(keys) == 2


def test_a_repeat_that_comes_too_early_asks_again() -> None:
    """409 `request_in_progress` is no answer yet; any other conflict is."""
    answers = [
        problem(409, "request_in_progress"),
        problem(409, "conflict"),
    ]
    with client(lambda _: answers.pop(0)) as api, pytest.raises(ConflictError):
        api.create_vm(CreateVmRequest(image="tiny"))
    assert not answers


async def test_the_asyncio_client_repeats_reads_too() -> None:
    """The policy is the same one."""
    tries: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(request.method)
        if len(tries) < 3:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, content=WHO)

    async with AsyncClient("http://x", "t", transport=httpx.MockTransport(handler)) as api:
        assert (await api.whoami()).subject == "a"
    assert len(tries) == 3


def test_pages_are_followed_to_the_last() -> None:
    """The cursor of one page asks for the next."""
    cursors: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        cursors.append(request.url.params.get("cursor"))
        following = {None: "a", "a": "b", "b": ""}[cursors[-1]]
        return httpx.Response(
            200, content=msgspec.json.encode(VmList(vms=(), next_cursor=following))
        )

    with client(handler) as api:
        assert list(api.list_vms()) == []
    assert cursors == [None, "a", "b"]


def _operation(status: OperationStatus, error: ErrorInfo | None = None) -> OperationView:
    now = datetime.now(UTC)
    return OperationView(
        operation_id=new_id(),
        vm_id=new_id(),
        verb="boot",
        status=status,
        error=error,
        created_at=now,
        deadline=now,
    )


def test_waiting_for_an_operation_ends_with_its_end() -> None:
    """Success returns it, failure raises it, and a limit raises TimeoutError."""
    ends = [_operation(OperationStatus.PENDING), _operation(OperationStatus.SUCCEEDED)]

    def succeeding(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=msgspec.json.encode(ends.pop(0)))

    with client(succeeding) as api:
        assert api.wait_operation(new_id()).status is OperationStatus.SUCCEEDED

    error = ErrorInfo(code=ErrorCode.HYPERVISOR_FAILED, message="no KVM")
    failed = _operation(OperationStatus.FAILED, error)
    with (
        client(lambda _: httpx.Response(200, content=msgspec.json.encode(failed))) as api,
        pytest.raises(OperationFailedError, match="no KVM"),
    ):
        api.wait_operation(new_id())

    running = _operation(OperationStatus.RUNNING)
    with (
        client(lambda _: httpx.Response(200, content=msgspec.json.encode(running))) as api,
        pytest.raises(TimeoutError, match="running"),
    ):
        api.wait_operation(new_id(), timeout_s=0.06)
