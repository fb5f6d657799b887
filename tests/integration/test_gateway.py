"""The gateway over HTTP and the bus, on a real nats-server, with a scripted agent."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from decisec.devkit.tokens import mint
from decisec.sdk import (
    AsyncClient,
    Client,
    ForbiddenError,
    IllegalTransitionError,
    NotFoundError,
    UnauthenticatedError,
)
from runtime.buckets import Bucket
from runtime.bus import Message
from runtime.clock import utc_now
from schemas.api import CreateVmRequest
from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.hosts import Customer, CustomerStatus, OperationStatus, Resources, decode_customer
from schemas.ids import new_id
from schemas.subjects import (
    CUSTOMERS,
    OPERATIONS,
    VM_SPECS,
    usage_query,
    vm_key,
    vm_request,
)
from schemas.usage import UsageReply, UsageReport, decode_usage_query
from schemas.vms import VmState, decode_vm_record
from tests.support.gateway import Stack, refusing, stack, until
from tests.support.tokens import KEY, bad_tokens, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT = {"Prefer": "wait=10"}
TINY = {"image": "tiny"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with stack(tmp_path_factory.mktemp("gateway"), command_deadline_s=20.0) as running:
        yield running


async def made(api: httpx.AsyncClient, **fields: Any) -> str:
    """The id of a VM that has just been made."""
    response = await api.post("/v1/vms", json={**TINY, **fields}, headers=WAIT)
    assert response.status_code == 201, response.text
    return str(response.json()["vm"]["vm_id"])


async def test_a_vm_lives_and_dies_over_http(shared: Stack) -> None:
    """Every verb leads where it should, and a deleted VM is gone but for its tombstone."""
    async with shared.client(headers=bearer("life")) as api:
        response = await api.post("/v1/vms", json={**TINY, "name": "web"}, headers=WAIT)
        assert response.status_code == 201
        assert response.headers["Preference-Applied"] == "wait=10"
        body = response.json()
        vm_id = body["vm"]["vm_id"]
        assert response.headers["Location"] == f"/v1/vms/{vm_id}"
        assert (body["vm"]["state"], body["vm"]["name"]) == ("created", "web")
        for verb, state in (
            ("boot", "running"),
            ("pause", "paused"),
            ("resume", "running"),
            ("reboot", "running"),
            ("shutdown", "stopped"),
        ):
            response = await api.post(f"/v1/vms/{vm_id}/{verb}", headers=WAIT)
            assert (response.status_code, response.json()["vm"]["state"]) == (200, state)
            # A read right after the answer shows no older state.
            assert (await api.get(f"/v1/vms/{vm_id}")).json()["state"] == state
        assert (await api.get(f"/v1/vms/{vm_id}")).json()["incarnation"] == 2
        response = await api.delete(f"/v1/vms/{vm_id}", headers=WAIT)
        assert (response.status_code, response.json()["vm"]["state"]) == (200, "deleted")
        operation = response.json()["operation"]["operation_id"]
        assert (await api.get(f"/v1/vms/{vm_id}")).status_code == 404
        assert (await api.get("/v1/vms")).json() == {"vms": [], "next_cursor": ""}
        assert (await api.delete(f"/v1/vms/{vm_id}")).status_code == 404
        assert (await api.get(f"/v1/operations/{operation}")).json()["status"] == "succeeded"
    records = Bucket(shared.bus, VM_SPECS, decode_vm_record)

    async def buried() -> bool:
        entry = await records.get(vm_key("life", UUID(vm_id)))
        return entry is not None and entry.value.deleted_at is not None

    await until(buried)


async def test_without_a_preference_the_operation_tells_of_the_end(shared: Stack) -> None:
    """202 at once, with the operation's address; the operation succeeds later."""
    async with shared.client(headers=bearer("later")) as api:
        shared.agent.gate.clear()
        try:
            response = await api.post("/v1/vms", json={**TINY, "boot": True})
            assert response.status_code == 202
            where = response.headers["Location"]
            body = response.json()
            assert body["operation"]["status"] == "pending"
            assert body["vm"]["state"] == "pending"
            assert where == f"/v1/operations/{body['operation']['operation_id']}"
            slow = await api.post(
                f"/v1/vms/{body['vm']['vm_id']}/shutdown", headers={"Prefer": "wait=1"}
            )
            # It would overtake the boot.
            assert slow.status_code == 409
        finally:
            shared.agent.gate.set()

        async def done() -> bool:
            return bool((await api.get(where)).json()["status"] == "succeeded")

        await until(done)
        vm = f"/v1/vms/{body['vm']['vm_id']}"
        shared.agent.gate.clear()
        try:
            slow = await api.post(f"{vm}/shutdown", headers={"Prefer": "wait=1"})
            assert slow.status_code == 202
            assert slow.headers["Preference-Applied"] == "wait=1"
            # Judged by where the shutdown leads: the boot comes after it.
            assert (await api.post(f"{vm}/pause")).status_code == 409
            again = await api.post(f"{vm}/boot")
            assert again.status_code == 202
        finally:
            shared.agent.gate.set()
        where = again.headers["Location"]
        await until(done)
        assert (await api.get(vm)).json()["incarnation"] == 2


async def test_an_illegal_verb_changes_nothing(shared: Stack) -> None:
    """409 before anything reaches the agent."""
    async with shared.client(headers=bearer("illegal")) as api:
        vm_id = await made(api)
        commands, operations = await shared.commands(), await shared.keys(OPERATIONS)
        for verb in ("pause", "resume", "shutdown", "reboot"):
            response = await api.post(f"/v1/vms/{vm_id}/{verb}", headers=WAIT)
            assert response.status_code == 409
            assert response.json()["code"] == "illegal_transition"
        assert await shared.commands() == commands
        assert await shared.keys(OPERATIONS) == operations
        assert (await api.get(f"/v1/vms/{vm_id}")).json()["state"] == "created"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.ILLEGAL_TRANSITION, 409),
        (ErrorCode.HYPERVISOR_FAILED, 502),
        (ErrorCode.DEADLINE_EXCEEDED, 504),
        (ErrorCode.UNSUPPORTED, 422),
        (ErrorCode.NO_CAPACITY, 503),
        (ErrorCode.INTERNAL, 500),
    ],
)
async def test_a_failed_operation_is_a_problem_to_who_waits(
    shared: Stack, code: ErrorCode, status: int
) -> None:
    """The agent's code decides the status; the operation shows the same error."""
    async with shared.client(headers=bearer("failing")) as api:
        vm_id = await made(api)
        shared.agent.script = refusing(code, "boot")
        try:
            response = await api.post(f"/v1/vms/{vm_id}/boot", headers=WAIT)
        finally:
            shared.agent.script = lambda _: None
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/problem+json"
        problem = response.json()
        assert (problem["code"], problem["status"]) == (code.value, status)
        operation = (await api.get(response.headers["Location"])).json()
        assert (operation["status"], operation["error"]["code"]) == ("failed", code.value)


@pytest.mark.parametrize(
    ("code", "status"), [(ErrorCode.NO_CAPACITY, 503), (ErrorCode.UNKNOWN_IMAGE, 422)]
)
async def test_a_create_that_every_host_refuses_leaves_no_vm(
    shared: Stack, code: ErrorCode, status: int
) -> None:
    """The record goes, and a boot that was asked for fails with the same error."""
    shared.agent.script = refusing(code, "create")
    try:
        async with shared.client(headers=bearer("refused")) as api:
            for boot in (False, True):
                response = await api.post("/v1/vms", json={**TINY, "boot": boot}, headers=WAIT)
                assert (response.status_code, response.json()["code"]) == (status, code.value)
                operation = (await api.get(response.headers["Location"])).json()
                assert (operation["status"], operation["error"]["code"]) == ("failed", code.value)
            assert (await api.get("/v1/vms")).json()["vms"] == []
    finally:
        shared.agent.script = lambda _: None
    assert not [key for key in await shared.keys(VM_SPECS) if key.startswith("refused.")]


async def test_an_image_that_no_host_has_is_refused_at_once(shared: Stack) -> None:
    """422, and nothing is written."""
    before = await shared.commands()
    async with shared.client(headers=bearer("image")) as api:
        response = await api.post("/v1/vms", json={"image": "missing"})
        assert (response.status_code, response.json()["code"]) == (422, "unknown_image")
        response = await api.post("/v1/vms", json={**TINY, "memory_mib": 1_000_000})
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        response = await api.post("/v1/vms", json={**TINY, "memory_mib": 100_000})
        assert (response.status_code, response.json()["code"]) == (503, "no_capacity")
        assert response.headers["Retry-After"] == "5"
    assert await shared.commands() == before


async def test_foreign_and_missing_vms_give_the_same_answer(shared: Stack) -> None:
    """Nobody can tell whether an id that is not theirs exists."""
    async with (
        shared.client(headers=bearer("owner")) as owner,
        shared.client(headers=bearer("thief")) as thief,
    ):
        vm_id = await made(owner)
        accepted = await owner.post(f"/v1/vms/{vm_id}/boot")
        operation = accepted.json()["operation"]["operation_id"]
        before = await shared.commands()

        async def answers(method: str, path: str, theirs: str) -> tuple[Any, Any]:
            found = []
            for name in (theirs, str(new_id())):
                response = await thief.request(method, path.format(name), headers=WAIT)
                body = response.json()
                assert body.pop("instance") == path.format(name)
                body.pop("trace_id")
                found.append((response.status_code, body))
            return found[0], found[1]

        for method, path, theirs in (
            ("GET", "/v1/vms/{}", vm_id),
            ("DELETE", "/v1/vms/{}", vm_id),
            ("POST", "/v1/vms/{}/boot", vm_id),
            ("POST", "/v1/vms/{}/shutdown", vm_id),
            ("POST", "/v1/vms/{}/pause", vm_id),
            ("POST", "/v1/vms/{}/resume", vm_id),
            ("POST", "/v1/vms/{}/reboot", vm_id),
            ("GET", "/v1/operations/{}", operation),
        ):
            foreign, missing = await answers(method, path, theirs)
            assert foreign == missing
            assert foreign[0] == 404
        assert (await thief.get("/v1/vms")).json()["vms"] == []
        assert await shared.commands() == before


async def test_lists_come_in_pages_and_by_state(shared: Stack) -> None:
    """In the order of making, each VM once; the cursor is refused if it is none."""
    async with shared.client(headers=bearer("lister")) as api:
        ids = [await made(api) for _ in range(5)]
        await api.post(f"/v1/vms/{ids[2]}/boot", headers=WAIT)
        seen: list[str] = []
        cursor = ""
        while True:
            query: dict[str, str | int] = {"limit": 2, **({"cursor": cursor} if cursor else {})}
            page = (await api.get("/v1/vms", params=query)).json()
            seen += [vm["vm_id"] for vm in page["vms"]]
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert seen == ids
        running = (await api.get("/v1/vms", params={"state": "running"})).json()["vms"]
        assert [vm["vm_id"] for vm in running] == [ids[2]]
        for wrong, field in (
            ({"limit": "0"}, "limit"),
            ({"limit": "1001"}, "limit"),
            ({"limit": "x"}, "limit"),
            ({"cursor": "../x"}, "cursor"),
            ({"state": "flying"}, "state"),
        ):
            response = await api.get("/v1/vms", params=wrong)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)


async def test_scopes_suspension_and_quota_are_kept(shared: Stack) -> None:
    """403 for each, and nothing is written."""
    customers = Bucket(shared.bus, CUSTOMERS, decode_customer)
    before = await shared.commands()
    async with shared.client() as api:
        reader = bearer("scoped", scopes=("vms:read",))
        assert (await api.get("/v1/vms", headers=reader)).status_code == 200
        for method, path in (
            ("POST", "/v1/vms"),
            ("DELETE", f"/v1/vms/{new_id()}"),
            ("POST", f"/v1/vms/{new_id()}/boot"),
            ("GET", "/v1/usage"),
        ):
            body = TINY if path == "/v1/vms" else None
            response = await api.request(method, path, headers=reader, json=body)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
            assert "insufficient_scope" in response.headers["WWW-Authenticate"]
        assert (await api.get("/v1/vms", headers=bearer("x", scopes=()))).status_code == 403

        quota = Resources(vcpus=4, memory_mib=4096, disk_mib=0, slots=1)
        await customers.put(
            "small", Customer(customer_id="small", quota=quota, created_at=utc_now())
        )
        await customers.put(
            "bad",
            Customer(customer_id="bad", status=CustomerStatus.SUSPENDED, created_at=utc_now()),
        )

        async def suspended() -> bool:
            response = await api.post("/v1/vms", json={"image": "no"}, headers=bearer("bad"))
            return response.status_code == 403

        await until(suspended)
        assert await shared.commands() == before
        assert (await api.get("/v1/vms", headers=bearer("bad"))).status_code == 200
        # One slot, however many ask at once.
        answers = await asyncio.gather(
            *(api.post("/v1/vms", json=TINY, headers=bearer("small")) for _ in range(5))
        )
        assert sorted(a.status_code for a in answers) == [202, 403, 403, 403, 403]
        refused = next(a for a in answers if a.status_code == 403)
        assert refused.json()["detail"] == "The quota would be exceeded: slots 2 of 1."


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
            ("PATCH", f"/v1/vms/{new_id()}", 405),
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


async def test_the_documents_need_no_token_and_name_all_routes(shared: Stack) -> None:
    """OpenAPI with the constraints of the schemas, on a page that needs nothing from elsewhere."""
    async with shared.client() as api:
        page = await api.get("/docs")
        assert page.headers["Content-Type"].startswith("text/html")
        linked = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert len(linked) >= 3
        for address in linked:
            assert address.startswith(("/docs/assets/", "data:,"))
            if address.startswith("/"):
                assert (await api.get(address)).status_code == 200
        assert "http" not in page.text.partition("<body>")[0]
        assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
        for escape in ("/docs/assets/../../http.py", "/docs/assets/%2e%2e/__init__.py"):
            assert (await api.get(escape)).status_code == 404
        document = (await api.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/vms",
        "/v1/vms/{vm_id}",
        *(f"/v1/vms/{{vm_id}}/{v}" for v in ("boot", "shutdown", "pause", "resume", "reboot")),
        "/v1/operations/{operation_id}",
        "/v1/usage",
        "/v1/whoami",
    }
    create = document["components"]["schemas"]["CreateVmRequest"]
    assert create["properties"]["vcpus"]["maximum"] == 32


async def test_the_callers_trace_goes_on_to_the_agent(shared: Stack) -> None:
    """W3C context in over HTTP, out in the command's headers, and in the problem."""
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    traced = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    async with shared.client(headers={**bearer("traced"), **traced}) as api:
        await made(api)
        assert trace_id in shared.agent.headers[-1]["traceparent"]
        assert (await api.get(f"/v1/vms/{new_id()}")).json()["trace_id"] == trace_id


async def test_usage_is_asked_of_the_bus_for_the_tokens_customer(shared: Stack) -> None:
    """The window and the VMs go out; the report comes back; no answer is 503."""
    asked = []

    async def answer(message: Message) -> bytes:
        query = decode_usage_query(message.data)
        asked.append(query)
        report = UsageReport(
            customer_id="meter", start=query.start, end=query.end, vms=(), totals={}
        )
        return encode(UsageReply(report=report))

    vm_id = new_id()
    async with shared.client(headers=bearer("meter")) as api:
        assert (await api.get("/v1/usage")).status_code == 503
        subscription = await shared.bus.subscribe(usage_query("meter"), answer)
        await shared.bus.client.flush()
        today = await api.get("/v1/usage")
        assert today.json()["customer_id"] == "meter"
        window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00+01:00"}
        response = await api.get("/v1/usage", params={**window, "vm_id": [str(vm_id)]})
        assert response.status_code == 200
        for bad, field in (
            ({"start": "yesterday"}, "start"),
            ({"start": "2026-01-01T00:00:00"}, "start"),
            ({"end": "5"}, "end"),
            ({"start": window["end"], "end": window["start"]}, "end"),
            ({"vm_id": "x"}, "vm_id"),
        ):
            response = await api.get("/v1/usage", params=bad)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)
        await subscription.unsubscribe()
    assert len(asked) == 2
    assert (asked[0].end - asked[0].start).total_seconds() == 86_400
    assert asked[1].vm_ids == (vm_id,)


async def test_the_bus_door_gives_the_same_answers(shared: Stack) -> None:
    """Create, look, act and refuse over NATS, for the subject's customer only."""

    async def ask(customer: str, verb: str, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        subject = vm_request(customer, verb)
        return json.loads((await shared.bus.request(subject, data, timeout_s=10)).data)

    made_vm = await ask("bus", "create", {"vm": TINY, "wait_s": 10})
    vm_id = made_vm["result"]["vm"]["vm_id"]
    assert made_vm["result"]["operation"]["status"] == "succeeded"
    booted = await ask("bus", "boot", {"vm_id": vm_id, "wait_s": 10})
    assert booted["result"]["vm"]["state"] == "running"
    assert (await ask("bus", "get", {"vm_id": vm_id}))["vm"]["state"] == "running"
    async with shared.client(headers=bearer("bus")) as api:
        assert (await api.get(f"/v1/vms/{vm_id}")).json()["state"] == "running"
    for customer, verb, body, code in (
        ("other", "get", {"vm_id": vm_id}, "not_found"),
        ("other", "delete", {"vm_id": vm_id}, "not_found"),
        ("bus", "boot", {"vm_id": vm_id}, "illegal_transition"),
        ("bus", "explode", {"vm_id": vm_id}, "bad_request"),
        ("bus", "boot", {"vm_id": "../x"}, "bad_request"),
        ("bus", "create", {"vm": {**TINY, "vcpus": "2"}}, "bad_request"),
        ("bus", "create", b"\xff[", "bad_request"),
        ("bus", "create", {"vm": {"image": "missing"}}, "unknown_image"),
    ):
        assert (await ask(customer, verb, body))["error"]["code"] == code


async def test_the_async_sdk_drives_a_vm(shared: Stack) -> None:
    """Every method against the real API, with the errors as classes."""
    async with AsyncClient(shared.url, mint(KEY, "sdk")) as api:
        assert (await api.whoami()).customer_id == "sdk"
        accepted = await api.create_vm(CreateVmRequest(image="tiny", boot=True, name="web"))
        done = await api.wait_operation(accepted.operation.operation_id, timeout_s=20)
        assert (done.verb, done.status) == ("boot", OperationStatus.SUCCEEDED)
        vm_id = accepted.vm.vm_id
        assert (await api.pause_vm(vm_id, wait_s=10)).vm.state is VmState.PAUSED
        assert (await api.resume_vm(vm_id, wait_s=10)).vm.state is VmState.RUNNING
        assert (await api.reboot_vm(vm_id, wait_s=10)).vm.incarnation == 2
        with pytest.raises(IllegalTransitionError):
            await api.boot_vm(vm_id)
        assert [vm.vm_id async for vm in api.list_vms(state=VmState.RUNNING)] == [vm_id]
        assert (await api.shutdown_vm(vm_id, grace_s=0, wait_s=10)).vm.state is VmState.STOPPED
        assert (await api.boot_vm(vm_id, wait_s=10)).vm.state is VmState.RUNNING
        assert (await api.delete_vm(vm_id, wait_s=10)).vm.state is VmState.DELETED
        with pytest.raises(NotFoundError):
            await api.get_vm(vm_id)
    async with AsyncClient(shared.url, mint(KEY, "sdk", scopes=())) as api:
        with pytest.raises(ForbiddenError):
            await api.usage()
    async with AsyncClient(shared.url, mint(KEY, "sdk", ttl_s=-60)) as api:
        with pytest.raises(UnauthenticatedError):
            await api.whoami()


async def test_the_blocking_sdk_drives_a_vm(shared: Stack) -> None:
    """The same from a thread, over several pages."""

    def work() -> None:
        with Client(shared.url, mint(KEY, "blocking")) as api:
            ids = [
                api.create_vm(CreateVmRequest(image="tiny"), wait_s=10).vm.vm_id for _ in range(3)
            ]
            assert [vm.vm_id for vm in api.list_vms(page_size=2)] == ids
            assert api.boot_vm(str(ids[0]), wait_s=10).vm.state is VmState.RUNNING
            assert api.get_vm(ids[0]).state is VmState.RUNNING
            for vm_id in ids:
                assert api.delete_vm(vm_id, wait_s=10).operation.error is None
            assert list(api.list_vms()) == []

    await asyncio.to_thread(work)
