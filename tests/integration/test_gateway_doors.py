"""The gateway's other doors: documents, traces, usage, the bus and the SDKs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

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
from runtime.bus import Message
from schemas.api import CreateVmRequest
from schemas.codec import encode
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.subjects import usage_query, vm_request
from schemas.usage import UsageReply, UsageReport, decode_usage_query
from schemas.vms import VmState
from tests.support.gateway import TINY, Stack, made, shared_stack
from tests.support.tokens import KEY, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


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
        "/v1/vms/{vm_id}/console",
        *(f"/v1/vms/{{vm_id}}/{v}" for v in ("boot", "shutdown", "pause", "resume", "reboot")),
        *(f"/v1/vms/{{vm_id}}/{v}" for v in ("snapshot", "restore", "network-check")),
        "/v1/network/peers",
        "/v1/network/peers/{peer_id}",
        "/v1/snapshots",
        "/v1/snapshots/{snapshot_id}",
        "/v1/images",
        "/v1/operations",
        "/v1/operations/{operation_id}",
        "/v1/audit",
        "/v1/events",
        "/v1/metrics/live",
        "/v1/metrics/series",
        "/v1/usage",
        "/v1/whoami",
        "/v1/quotas",
        "/v1/admin/customers",
        "/v1/admin/customers/{customer_id}",
        "/v1/admin/customers/{customer_id}/close",
        "/v1/admin/price-plans",
        "/v1/admin/price-plans/{plan_id}",
        "/v1/admin/price-plans/{plan_id}/versions",
        "/v1/admin/hosts",
        "/v1/admin/hosts/{host_id}",
        *(f"/v1/admin/hosts/{{host_id}}/{v}" for v in ("drain", "undrain", "lost", "found", "vms")),
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
            customer_id="meter",
            start=query.start,
            end=query.end,
            vms=(),
            totals={},
            complete_until=query.end,
            complete=True,
        )
        return encode(UsageReply(report=report))

    vm_id = new_id()
    async with shared.client(headers=bearer("meter")) as api:
        assert (await api.get("/v1/usage")).status_code == 503
        subscription = await shared.bus.subscribe(usage_query("meter"), answer)
        await shared.bus.client.flush()
        today = await api.get("/v1/usage")
        assert today.json()["customer_id"] == "meter"
        assert today.json()["complete"] is True
        assert today.json()["complete_until"] == today.json()["end"]
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
