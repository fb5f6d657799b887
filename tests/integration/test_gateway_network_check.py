"""Whether a VM can be reached, through the gateway: who may ask, and what the host may answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient
from runtime.bus import Message
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.ids import new_id
from schemas.network_checks import NetworkCheck, NetworkQuery, NetworkReply, decode_network_query
from schemas.subjects import parse_vm_ask, vm_asks_of, vm_request
from schemas.vms import VmState
from tests.support.gateway import TINY, Stack, made, shared_stack
from tests.support.tokens import KEY, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def found(vm_id: UUID) -> NetworkReply:
    """What a host finds of a VM."""
    check = NetworkCheck(vm_id=vm_id, state=VmState.RUNNING, proven=True, summary="scripted")
    return NetworkReply(check=check)


@asynccontextmanager
async def host_says(
    shared: Stack, answer: NetworkReply | bytes | None = None
) -> AsyncIterator[list[NetworkQuery]]:
    """The host h1 answers so for the length of the block, or what it finds; what it was asked."""
    asked: list[NetworkQuery] = []

    async def take(message: Message) -> bytes:
        query = decode_network_query(message.data)
        assert parse_vm_ask(message.subject) == ("h1", query.vm_id, "network")
        asked.append(query)
        said = found(query.vm_id) if answer is None else answer
        return said if isinstance(said, bytes) else encode(said)

    subscription = await shared.bus.subscribe(vm_asks_of("h1"), take)
    await shared.bus.client.flush()
    try:
        yield asked
    finally:
        await subscription.unsubscribe()


async def test_its_owner_is_told_by_every_door(shared: Stack) -> None:
    """HTTP, the SDK, the bus: the same."""
    async with (
        host_says(shared) as asked,
        shared.client(headers=bearer("net-owner")) as http,
        AsyncClient(shared.url, mint(KEY, "net-owner")) as sdk,
    ):
        vm_id = UUID(await made(http))
        response = await http.post(f"/v1/vms/{vm_id}/network-check")
        assert response.status_code == 200
        assert (response.json()["proven"], response.json()["summary"]) == (True, "scripted")
        assert await sdk.check_network(vm_id) == found(vm_id).check
        data = json.dumps({"vm_id": str(vm_id)}).encode()
        subject = vm_request("net-owner", "check-network")
        said = json.loads((await shared.bus.request(subject, data, timeout_s=10)).data)
        assert said["network"] == response.json()
    assert asked == [NetworkQuery(customer_id="net-owner", vm_id=vm_id)] * 3


async def test_nobody_else_is_told_anything(shared: Stack) -> None:
    """404 as for a VM that is not there, without asking the host; 403 for who may only read."""
    async with (
        host_says(shared) as asked,
        shared.client(headers=bearer("net-mine")) as owner,
        shared.client(headers=bearer("net-thief")) as thief,
    ):
        vm_id = await made(owner)

        async def answer(of: str) -> dict[str, Any]:
            response = await thief.post(f"/v1/vms/{of}/network-check")
            assert response.status_code == 404
            body: dict[str, Any] = response.json()
            return {k: v for k, v in body.items() if k not in ("instance", "trace_id")}

        assert await answer(vm_id) == await answer(str(new_id())) == await answer("x")
        reader = bearer("net-mine", scopes=("vms:read",))
        where = f"/v1/vms/{vm_id}/network-check"
        assert (await owner.post(where, headers=reader)).status_code == 403
    assert asked == []


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (NetworkReply(error=ErrorInfo(code=ErrorCode.NOT_FOUND, message="scripted")), 404),
        (NetworkReply(error=ErrorInfo(code=ErrorCode.RATE_LIMITED, message="scripted")), 429),
        (NetworkReply(error=ErrorInfo(code=ErrorCode.INTERNAL, message="scripted")), 500),
        (NetworkReply(), 503),
        (b"garbage", 503),
    ],
    ids=["not found", "busy", "defect", "empty", "garbage"],
)
async def test_what_a_host_refuses_is_a_problem(
    shared: Stack, said: NetworkReply | bytes, status: int
) -> None:
    """Nothing that a host may say is a crash of the gateway; nor is a host that says nothing."""
    async with host_says(shared, said), shared.client(headers=bearer("net-refused")) as api:
        where = f"/v1/vms/{await made(api)}/network-check"
        response = await api.post(where)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"


async def test_a_host_that_is_away_or_a_vm_without_one(shared: Stack) -> None:
    """503; and a VM that no host has taken yet is sent nothing."""
    async with shared.client(headers=bearer("net-early")) as api:
        response = await api.post(f"/v1/vms/{await made(api)}/network-check")
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        shared.agent.gate.clear()
        try:
            vm_id = (await api.post("/v1/vms", json=TINY)).json()["vm"]["vm_id"]
            body = (await api.post(f"/v1/vms/{vm_id}/network-check")).json()
        finally:
            shared.agent.gate.set()
        assert (body["proven"], body["state"]) == (False, "pending")
        assert body["summary"] == "no host has taken it yet; nothing was sent"
