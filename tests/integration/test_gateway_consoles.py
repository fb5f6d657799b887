"""Consoles through the gateway: whose they are, how they come, and a host that does not answer."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient, NotFoundError, UnavailableError
from runtime.bus import Message
from schemas.codec import encode
from schemas.consoles import ConsoleChunk, ConsoleQuery, ConsoleReply, decode_console_query
from schemas.errors import ErrorCode, ErrorInfo
from schemas.ids import new_id
from schemas.subjects import parse_vm_ask, vm_asks_of, vm_request
from tests.support.gateway import TINY, WAIT, Stack, made, shared_stack
from tests.support.tokens import KEY, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANY_BYTES = b"\x1b[2J\xff\x00login: "


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@dataclass
class ScriptedHost:
    """Answers questions about consoles.

    Attributes:
        answer: What it says.
        asked: What it was asked.
    """

    answer: ConsoleReply | bytes
    asked: list[ConsoleQuery] = field(default_factory=list)

    async def take(self, message: Message) -> bytes:
        """One question."""
        query = decode_console_query(message.data)
        assert parse_vm_ask(message.subject) == ("h1", query.vm_id, "console")
        self.asked.append(query)
        return self.answer if isinstance(self.answer, bytes) else encode(self.answer)


@asynccontextmanager
async def host_says(shared: Stack, answer: ConsoleReply | bytes) -> AsyncIterator[ScriptedHost]:
    """The host h1 answers so for the length of the block."""
    host = ScriptedHost(answer)
    subscription = await shared.bus.subscribe(vm_asks_of("h1"), host.take)
    await shared.bus.client.flush()
    try:
        yield host
    finally:
        await subscription.unsubscribe()


def refusal(code: ErrorCode) -> ConsoleReply:
    return ConsoleReply(error=ErrorInfo(code=code, message="scripted"))


CHUNK = ConsoleChunk(data=ANY_BYTES, offset=100, next_offset=113, end=True, lost_bytes=3)
SAYS_IT = ConsoleReply(chunk=CHUNK)


async def test_its_owner_reads_a_console_as_json_or_as_it_is(shared: Stack) -> None:
    """Base64 with the offsets, or the raw bytes with the offsets in headers."""
    async with (
        host_says(shared, SAYS_IT) as host,
        shared.client(headers=bearer("reader", scopes=("vms:read", "vms:write"))) as api,
    ):
        vm_id = await made(api)
        where = f"/v1/vms/{vm_id}/console"
        response = await api.get(where, params={"offset": 97, "limit": 50})
        assert response.headers["Content-Type"] == "application/json"
        body = response.json()
        assert base64.b64decode(body.pop("data")) == ANY_BYTES
        assert body == {"offset": 100, "next_offset": 113, "end": True, "lost_bytes": 3}
        raw = await api.get(where, params={"tail_bytes": 10}, headers={"Accept": "text/plain"})
        assert raw.content == ANY_BYTES
        assert raw.headers["Content-Type"].startswith("text/plain")
        assert {k: v for k, v in raw.headers.items() if k.startswith("decisec-")} == {
            "decisec-offset": "100", "decisec-next-offset": "113", "decisec-end": "true",
            "decisec-lost-bytes": "3",
        }  # fmt: skip
        await api.get(where)
    mine: dict[str, Any] = {"customer_id": "reader", "vm_id": UUID(vm_id)}
    assert host.asked == [
        ConsoleQuery(**mine, offset=97, limit_bytes=50),
        ConsoleQuery(**mine, tail_bytes=10),
        ConsoleQuery(**mine),
    ]


async def test_what_is_asked_for_is_checked(shared: Stack) -> None:
    """400 that names the field, and the host is not asked."""
    async with (
        host_says(shared, SAYS_IT) as host,
        shared.client(headers=bearer("checked")) as api,
    ):
        where = f"/v1/vms/{await made(api)}/console"
        for wrong, field_name in (
            ({"offset": -1}, "offset"),
            ({"offset": 2**63}, "offset"),
            ({"offset": "x"}, "offset"),
            ({"tail_bytes": -1}, "tail_bytes"),
            ({"limit": 0}, "limit"),
            ({"limit": 65_537}, "limit"),
            ({"offset": 1, "tail_bytes": 1}, "tail_bytes"),
        ):
            response = await api.get(where, params=wrong)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (
                400, field_name,
            )  # fmt: skip
    assert host.asked == []


async def test_a_foreign_a_missing_and_a_deleted_vm_give_the_same_answer(shared: Stack) -> None:
    """404 without asking anybody, and 403 for a token that may not look at VMs."""
    async with (
        host_says(shared, SAYS_IT) as host,
        shared.client(headers=bearer("console-owner")) as owner,
        shared.client(headers=bearer("console-thief")) as thief,
    ):
        vm_id = await made(owner)

        async def answer(of: str) -> dict[str, Any]:
            response = await thief.get(f"/v1/vms/{of}/console")
            assert response.status_code == 404
            assert response.headers["Content-Type"] == "application/problem+json"
            body: dict[str, Any] = response.json()
            return {k: v for k, v in body.items() if k not in ("instance", "trace_id")}

        assert await answer(vm_id) == await answer(str(new_id())) == await answer("x")
        blind = bearer("console-owner", scopes=("vms:write",))
        assert (await owner.get(f"/v1/vms/{vm_id}/console", headers=blind)).status_code == 403
        assert host.asked == []
        assert (await owner.delete(f"/v1/vms/{vm_id}", headers=WAIT)).status_code == 200
        assert (await owner.get(f"/v1/vms/{vm_id}/console")).status_code == 404
        assert host.asked == []


async def test_a_host_that_does_not_answer_is_503(shared: Stack) -> None:
    """At once if nobody is there, after two seconds if it hangs; the VM itself can be seen."""
    async with shared.client(headers=bearer("host-down")) as api:
        vm_id = await made(api)
        where = f"/v1/vms/{vm_id}/console"
        nobody = await api.get(where)

        async def hang(_: Message) -> None:
            return None

        subscription = await shared.bus.subscribe(vm_asks_of("h1"), hang)
        await shared.bus.client.flush()
        hanging = await api.get(where)
        await subscription.unsubscribe()
        for response in (nobody, hanging):
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")
            assert "The host of this VM does not answer" in response.json()["detail"]
            assert response.headers["Retry-After"] == "1"
        assert hanging.elapsed.total_seconds() >= 2
        assert (await api.get(f"/v1/vms/{vm_id}")).status_code == 200


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (refusal(ErrorCode.NOT_FOUND), 404),
        (refusal(ErrorCode.RATE_LIMITED), 429),
        (refusal(ErrorCode.INTERNAL), 500),
        (ConsoleReply(), 503),
        (b"garbage", 503),
        (encode(SAYS_IT).replace(b'"offset":100', b'"offset":-1'), 503),
    ],
    ids=["not found", "busy", "defect", "empty", "garbage", "nonsense"],
)
async def test_what_a_host_refuses_is_a_problem(
    shared: Stack, said: ConsoleReply | bytes, status: int
) -> None:
    """Nothing that a host may say is a crash of the gateway."""
    async with host_says(shared, said), shared.client(headers=bearer("refused-console")) as api:
        response = await api.get(f"/v1/vms/{await made(api)}/console")
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"


async def test_a_vm_that_no_host_has_yet_has_printed_nothing(shared: Stack) -> None:
    """Whoever follows it from the beginning is not told that it is gone."""
    async with shared.client(headers=bearer("early")) as api:
        shared.agent.gate.clear()
        try:
            vm_id = (await api.post("/v1/vms", json=TINY)).json()["vm"]["vm_id"]
            body = (await api.get(f"/v1/vms/{vm_id}/console")).json()
        finally:
            shared.agent.gate.set()
    assert body == {"data": "", "offset": 0, "next_offset": 0, "end": True, "lost_bytes": 0}


async def test_the_bus_door_and_the_sdks_read_it_too(shared: Stack) -> None:
    """The same answers."""
    async with host_says(shared, SAYS_IT) as host:
        async with shared.client(headers=bearer("console-sdk")) as http:
            vm_id = await made(http)

        async def ask(customer: str, **more: Any) -> dict[str, Any]:
            data = json.dumps({"vm_id": vm_id, **more}).encode()
            subject = vm_request(customer, "console")
            answer: dict[str, Any] = json.loads(
                (await shared.bus.request(subject, data, timeout_s=10)).data
            )
            return answer

        said = await ask("console-sdk", tail_bytes=7)
        assert base64.b64decode(said["console"]["data"]) == ANY_BYTES
        assert host.asked[-1].tail_bytes == 7
        assert (await ask("other"))["error"]["code"] == "not_found"
        assert (await ask("console-sdk", limit_bytes=0))["error"]["code"] == "bad_request"
        async with AsyncClient(shared.url, mint(KEY, "console-sdk")) as api:
            assert await api.vm_console(vm_id, offset=5, limit_bytes=6) == CHUNK
            assert (host.asked[-1].offset, host.asked[-1].limit_bytes) == (5, 6)
            with pytest.raises(NotFoundError):
                await api.vm_console(new_id())
    async with AsyncClient(shared.url, mint(KEY, "console-sdk")) as api:
        with pytest.raises(UnavailableError, match="does not answer"):
            await api.vm_console(vm_id)
