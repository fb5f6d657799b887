"""Requests with a key whose gateway died in their midst: finished by the next one, once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.attempts import boot_id, create_id
from gateway.commands import operation_of
from gateway.derived_ids import derived
from gateway.idempotency import http_digest
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.codec import encode
from schemas.commands import BootVm, CreateVm
from schemas.idempotency import KeyRecord, decode_key_record, idempotency_entry
from schemas.ids import new_id
from schemas.subjects import IDEMPOTENCY_KEYS, VM_SPECS, vm_command, vm_key
from schemas.vms import VmRecord, VmSpec, decode_vm_record
from tests.support.gateway import (
    WAIT,
    Stack,
    made,
    stack,
    until,
)
from tests.support.idempotency import CREATE, JSON, key, same, settled, vms
from tests.support.tokens import bearer


async def crashed(bus: Bus, name: str, method: str, path: str, body: bytes) -> UUID:
    """Leave a claim as a gateway does that died; returns its seed."""
    record = KeyRecord(
        request=http_digest("acme", method, path.encode(), query=b"", if_match="", body=body),
        seed=new_id(),
        until=utc_now() - timedelta(seconds=1),
    )
    await Bucket(bus, IDEMPOTENCY_KEYS, decode_key_record).create(
        idempotency_entry("acme", name), record
    )
    return record.seed


@pytest.mark.parametrize("boot", [False, True])
@pytest.mark.parametrize(
    "point", ["claimed", "recorded", "boot opened", "opened", "published", "done"]
)
async def test_a_create_is_finished_wherever_its_gateway_died(
    tmp_path: Path, point: str, boot: bool
) -> None:
    """The next try makes the VM that the first one began, and no second one."""
    body = b'{"image":"tiny","boot":true}' if boot else CREATE
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        seed = await crashed(running.bus, "a", "POST", "/v1/vms", body)
        vm_id = derived(seed, b"vm")
        await _leave_create(running, vm_id, point, boot)
        headers = key("a", **WAIT, **JSON)
        response = await settled(api, "POST", "/v1/vms", content=body, headers=headers)
        assert response.status_code == 201, response.text
        view = response.json()["vm"]
        assert (view["vm_id"], view["state"]) == (str(vm_id), "running" if boot else "created") or (
            point == "claimed"
        )
        same(response, await settled(api, "POST", "/v1/vms", content=body, headers=headers))
        assert await vms(api) == [str(vm_id)]
        creates = [c for c in running.agent.seen if isinstance(c, CreateVm)]
        assert [c.vm_id for c in creates] == [vm_id]
        boots = [c for c in running.agent.seen if isinstance(c, BootVm)]
        assert len(boots) == (1 if boot else 0)


async def _leave_create(running: Stack, vm_id: UUID, point: str, boot: bool) -> None:
    order = ["claimed", "recorded", "boot opened", "opened", "published", "done"]
    reached = order.index(point)
    now = utc_now()
    common: dict[str, Any] = {
        "customer_id": "acme",
        "vm_id": vm_id,
        "host_id": "h1",
        "issued_at": now,
        "deadline": now + timedelta(seconds=30),
    }
    command = CreateVm(command_id=create_id(vm_id, 0), spec=VmSpec(image="tiny"), **common)
    operations = running.agent.operations
    if reached >= order.index("recorded"):
        record = VmRecord(
            vm_id=vm_id,
            customer_id="acme",
            host_id="h1",
            spec=VmSpec(image="tiny"),
            created_at=now,
        )
        await Bucket(running.bus, VM_SPECS, decode_vm_record).create(vm_key("acme", vm_id), record)
    if reached >= order.index("boot opened") and boot:
        goal = operation_of(BootVm(command_id=boot_id(vm_id), **common))
        await operations.create(str(goal.operation_id), goal)
    if reached >= order.index("opened"):
        operation = operation_of(command)
        await operations.create(str(operation.operation_id), operation)
    if reached >= order.index("published"):
        await running.bus.js.publish(
            vm_command(command), encode(command), headers={"Nats-Msg-Id": str(command.command_id)}
        )
    if reached >= order.index("done"):
        await until(lambda: bool(running.agent.seen))


@pytest.mark.parametrize("point", ["claimed", "opened", "published", "done"])
async def test_a_verb_is_finished_wherever_its_gateway_died(tmp_path: Path, point: str) -> None:
    """A boot that was done is not refused as illegal; one that was not is done once."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        vm_id = await made(api)
        path = f"/v1/vms/{vm_id}/boot"
        seed = await crashed(running.bus, "a", "POST", path, b"")
        now = utc_now()
        command = BootVm(
            command_id=derived(seed, b"command"),
            customer_id="acme",
            vm_id=UUID(vm_id),
            host_id="h1",
            issued_at=now,
            deadline=now + timedelta(seconds=30),
        )
        if point != "claimed":
            operation = operation_of(command)
            await running.agent.operations.create(str(command.command_id), operation)
        if point in ("published", "done"):
            await running.bus.js.publish(
                vm_command(command), encode(command), headers={"Nats-Msg-Id": str(command.vm_id)}
            )
        if point == "done":
            await until(lambda: any(isinstance(c, BootVm) for c in running.agent.seen))
        response = await settled(api, "POST", path, headers=key("a", **WAIT))
        assert response.status_code == 200, response.text
        assert response.json()["vm"]["incarnation"] == 1
        assert response.json()["operation"]["operation_id"] == str(command.command_id)
        same(response, await settled(api, "POST", path, headers=key("a", **WAIT)))
        assert len([c for c in running.agent.seen if isinstance(c, BootVm)]) == 1


async def test_a_claim_that_still_holds_is_not_taken_over(tmp_path: Path) -> None:
    """Its gateway may be at work; only when the time is over another goes on."""
    async with stack(tmp_path) as running, running.client(headers=bearer()) as api:
        await crashed(running.bus, "a", "POST", "/v1/vms", CREATE)
        records = Bucket(running.bus, IDEMPOTENCY_KEYS, decode_key_record)
        name = idempotency_entry("acme", "a")
        entry = await records.get(name)
        assert entry is not None
        held = KeyRecord(
            request=entry.value.request,
            seed=entry.value.seed,
            until=utc_now() + timedelta(seconds=1.5),
        )
        await records.put(name, held)
        headers = key("a", **JSON)
        response = await api.post("/v1/vms", content=CREATE, headers=headers)
        assert (response.status_code, response.json()["code"]) == (409, "request_in_progress")
        response = await settled(api, "POST", "/v1/vms", content=CREATE, headers=headers)
        assert response.status_code == 202
        assert response.json()["vm"]["vm_id"] == str(derived(held.seed, b"vm"))
