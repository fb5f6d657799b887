"""What the gateway refuses over HTTP: bad bodies, paths and tokens; what it tells and logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from decisec.devkit.tokens import mint
from schemas.ids import new_id
from schemas.subjects import OPERATIONS, VM_SPECS
from tests.support.gateway import TINY, WAIT, Stack, made, shared_stack
from tests.support.tokens import KEY, bad_tokens, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


BAD_BODIES: list[tuple[bytes, str, int, str]] = [
    (b'{"image":"tiny"', "application/json", 400, "$"),
    (b"", "application/json", 400, "$"),
    (b'{"image":"tiny","path":"/etc/passwd"}', "application/json", 400, "$.path"),
    (b'{"image":"tiny","vcpus":"2"}', "application/json", 400, "$.vcpus"),
    (b'{"image":"tiny","vcpus":0}', "application/json", 400, "$.vcpus"),
    (b'{"image":"../../etc/passwd"}', "application/json", 400, "$.image"),
    (b'{"image":"tiny","name":"a.b"}', "application/json", 400, "$.name"),
    (b"[1]", "application/json", 400, "$"),
    (b"\xff\xfe", "application/json", 400, "$"),
    (b"[" * 60_000, "application/json", 400, "$"),
    (b'{"labels":' * 5_000, "application/json", 400, "$.labels[...]"),
    (b'{"image":"tiny"}', "text/plain", 415, ""),
    (b"image=tiny", "application/x-www-form-urlencoded", 415, ""),
    (b'{"image":"' + b"a" * 70_000 + b'"}', "application/json", 413, ""),
]


@pytest.mark.parametrize("case", BAD_BODIES, ids=lambda case: f"{case[2]}-{case[0][:24]!r}")
async def test_a_bad_body_creates_nothing(shared: Stack, case: tuple[bytes, str, int, str]) -> None:
    """The right status, a problem that names the field, no record, operation or command."""
    body, kind, status, field = case
    before = (await shared.keys(VM_SPECS), await shared.keys(OPERATIONS), await shared.commands())
    async with shared.client(headers=bearer("bodies")) as api:
        response = await api.post("/v1/vms", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["trace_id"]
    if field:
        assert [error["field"] for error in problem["errors"]] == [field]
    after = (await shared.keys(VM_SPECS), await shared.keys(OPERATIONS), await shared.commands())
    assert after == before


async def test_an_oversized_body_in_chunks_is_refused_before_its_end(shared: Stack) -> None:
    """Without a Content-Length the limit still holds, and an endless body is not read on."""
    host, _, port = shared.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = (
            f"POST /v1/vms HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
            f"Authorization: Bearer {mint(KEY, 'chunks')}\r\n"
            "Content-Type: application/json\r\n\r\n"
        )
        writer.write(head.encode())
        for _ in range(5):
            writer.write(b"4000\r\n" + b"a" * 0x4000 + b"\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"payload_too_large"' in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "body", [b'{"grace_s":-1}', b'{"grace_s":"1"}', b'{"force":true}', b"{", b"7"]
)
async def test_a_bad_shutdown_body_has_no_effect(shared: Stack, body: bytes) -> None:
    """An optional body is checked like any other when it is there."""
    async with shared.client(headers=bearer("grace")) as api:
        vm_id = await made(api, boot=True)
        before = await shared.commands()
        response = await api.post(
            f"/v1/vms/{vm_id}/shutdown", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400
        assert await shared.commands() == before
        assert (await api.delete(f"/v1/vms/{vm_id}", headers=WAIT)).status_code == 200


async def raw(shared: Stack, method: str, target: str, token: str) -> tuple[int, str]:
    """Send a request line exactly as it is; clients would tidy the path up."""
    host, _, port = shared.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
        )
        writer.write(head.encode("latin-1"))
        answer = (await reader.read()).decode("utf-8", "replace")
    finally:
        writer.close()
        await writer.wait_closed()
    return int(answer.split(" ")[1]), answer


async def test_tricks_in_paths_lead_nowhere(shared: Stack) -> None:
    """Dots, slashes, other spellings of an id, wildcards and control characters: 404 or 400."""
    async with shared.client(headers=bearer("paths")) as api:
        vm_id = await made(api)
    token = mint(KEY, "paths")
    before = await shared.commands()
    for name in (
        vm_id.upper(),
        vm_id.replace("-", ""),
        f"{{{vm_id}}}",
        f"urn:uuid:{vm_id}",
        f"{vm_id}%0a",
        f"{vm_id}%00",
        f"{vm_id}%2Fboot",
        f"{vm_id}%252Fboot",
        f"{vm_id}%20",
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "*",
        "%3e",
        "paths.*",
        "%ff",
        "a" * 5000,
    ):
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/boot")):
            status, answer = await raw(shared, method, f"/v1/vms/{name}{suffix}", token)
            assert status in (400, 404, 405), (name, method, answer)
            assert "problem+json" in answer
            assert "passwd" not in answer.rpartition("\r\n\r\n")[2].replace("..", "") or (
                '"instance"' in answer
            )
    for target in (
        "//v1/vms",
        "/v1//vms",
        "/v1/vms/",
        "/v1/%76ms",
        "/v1/vms//x",
        "/v1/vms/../../metrics",
        "/V1/VMS",
        "/v1/vms;x",
    ):
        status, answer = await raw(shared, "GET", target, token)
        assert status in (400, 404), answer
    assert await shared.commands() == before


@pytest.mark.parametrize("what", sorted(bad_tokens()))
async def test_a_bad_token_opens_nothing_and_is_not_logged(
    shared: Stack, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """401 with a challenge and one constant detail; the log has neither token nor key."""
    caplog.set_level(logging.DEBUG)
    token = bad_tokens()[what]
    before = await shared.commands()
    async with shared.client(headers={"Authorization": f"Bearer {token}"}) as api:
        details = set()
        for method, path in (("GET", "/v1/vms"), ("POST", "/v1/vms"), ("GET", "/v1/whoami")):
            response = await api.request(method, path, json=TINY if method == "POST" else None)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"].startswith('Bearer realm="decisec"')
            assert response.headers["Content-Type"] == "application/problem+json"
            details.add(response.json()["detail"])
    assert details == {"A valid bearer token is needed."}
    assert await shared.commands() == before
    assert len(token) < 10 or token not in caplog.text
    assert KEY.decode() not in caplog.text


async def test_good_tokens_and_keys_are_not_logged_either(
    shared: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole life of a VM, and a crash, at debug level."""
    caplog.set_level(logging.DEBUG)
    headers = bearer("quiet")
    async with shared.client(headers=headers) as api:
        vm_id = await made(api, boot=True)
        await api.delete(f"/v1/vms/{vm_id}", headers=WAIT)
        await api.get("/v1/usage")
    token = headers["Authorization"].removeprefix("Bearer ")
    assert token not in caplog.text
    assert token.split(".")[2] not in caplog.text
    assert KEY.decode() not in caplog.text


async def test_everything_that_goes_wrong_is_a_problem(shared: Stack) -> None:
    """Unknown paths and methods too, with the security headers and a trace id."""
    async with shared.client(headers=bearer("wrong")) as api:
        for method, path, status in (
            ("GET", "/", 404),
            ("GET", "/v1", 404),
            ("GET", "/v2/vms", 404),
            ("PUT", "/v1/vms", 405),
            ("PUT", f"/v1/vms/{new_id()}", 405),
            ("GET", f"/v1/vms/{new_id()}/boot", 405),
            ("GET", f"/v1/vms/{new_id()}/explode", 404),
        ):
            response = await api.request(method, path)
            assert response.status_code == status
            assert response.headers["Content-Type"] == "application/problem+json"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            assert "Server" not in response.headers
            assert len(response.json()["trace_id"]) == 32
            assert status != 405 or "OPTIONS" in response.headers["Allow"]
