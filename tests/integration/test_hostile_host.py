"""A host that lies about another's VMs, with real credentials on the bus as in production."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from msgspec.structs import replace

from runtime.buckets import Bucket
from runtime.clock import utc_now
from runtime.reading import read_stream
from schemas.audit import decode_audit_entry
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import Operation, OperationStatus, decode_operation
from schemas.ids import new_id
from schemas.subjects import AUDIT, OPERATIONS, VM_SPECS, VM_STATUS, status_key, vm_key
from schemas.vms import VmState, VmStatus, decode_vm_record, decode_vm_status
from tests.support.agents import AgentProcess
from tests.support.gateway import WAIT, made, running_gateway
from tests.support.secured_bus import secured_bus
from tests.support.tokens import bearer
from vm_agent.images import ImageStore

pytestmark = pytest.mark.timeout(90)


def said_of(vm_id: UUID, host_id: str, state: VmState) -> VmStatus:
    """A status in a host's name."""
    return VmStatus(
        vm_id=vm_id,
        customer_id="acme",
        host_id=host_id,
        state=state,
        incarnation=7,
        updated_at=utc_now(),
    )


def ended(vm_id: UUID, error: ErrorInfo | None) -> Operation:
    """The result of a delete, as if by the host `h1`."""
    return Operation(
        operation_id=new_id(),
        customer_id="acme",
        vm_id=vm_id,
        host_id="h1",
        verb="delete",
        status=OperationStatus.FAILED if error else OperationStatus.SUCCEEDED,
        error=error,
        created_at=utc_now(),
        deadline=utc_now(),
        finished_at=utc_now(),
    )


async def test_a_host_changes_nothing_of_a_vm_that_it_has_not(tmp_path: Path) -> None:
    """Its keys are its own, what it writes there is its own word, and a lie is audited."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with AsyncExitStack() as stack:
        secured = await stack.enter_async_context(secured_bus(tmp_path / "bus"))
        for role, name in (("agent", "h1"), ("agent", "h2"), ("gateway", "g1")):
            secured.issue(role, name)
        assert secured.folder.reload()
        agent = AgentProcess(
            tmp_path / "agent",
            secured.url,
            settings={"driver": "simulator"},
            env=secured.env("agent", "h1"),
        )
        ImageStore(tmp_path / "agent" / "images").add(
            "tiny", kernel, driver_args={"*": "console=ttyS0"}
        )
        stack.push_async_callback(agent.reap)
        await stack.enter_async_context(agent)
        operator = await stack.enter_async_context(secured.bus("operator", "ops"))
        hostile = await stack.enter_async_context(secured.bus("agent", "h2"))
        options = secured.settings("gateway", "g1")
        async with (
            running_gateway(
                secured, nats_credentials=options.nats_credentials, nats_ca=options.nats_ca
            ) as (_, _, url),
            httpx.AsyncClient(base_url=url, timeout=30, headers=bearer("acme")) as api,
        ):
            async with asyncio.timeout(30):
                while not (await api.get("/v1/images")).json()["images"]:
                    await asyncio.sleep(0.05)
            vm_id = UUID(await made(api, boot=True))
            before = (await api.get(f"/v1/vms/{vm_id}")).json()
            assert before["state"] == "running"

            key = status_key("h1", "acme", vm_id)
            async with secured.intruder("agent", "h2") as intruder:
                subject = f"$KV.vm_status.{key}"
                assert await intruder.refused_publishes(subject) == {subject}
            statuses = Bucket(hostile, VM_STATUS, decode_vm_status)
            own_key = status_key("h2", "acme", vm_id)
            for host_id in ("h1", "h2"):
                for state in (VmState.FAILED, VmState.DELETED):
                    await statuses.put(own_key, said_of(vm_id, host_id, state))
            # And results in the other host's name, of deletes that nobody asked for.
            operations = Bucket(hostile, OPERATIONS, decode_operation)
            for error in (None, ErrorInfo(code=ErrorCode.NOT_FOUND, message="no such VM")):
                lie = ended(vm_id, error)
                await operations.put(str(lie.operation_id), lie)
            # Heard behind the lies, for it is stored behind them.
            shut = await api.post(f"/v1/vms/{vm_id}/pause", headers=WAIT)
            assert shut.status_code == 200, shut.text
            after = (await api.get(f"/v1/vms/{vm_id}")).json()
            assert {**after, "state": "running"} == before
            assert after["state"] == "paused"
            records = Bucket(operator, VM_SPECS, decode_vm_record)
            record = await records.get(vm_key("acme", vm_id))
            assert record is not None
            assert record.value.deleted_at is None

            # What its own host does not know is buried once its owner wants it deleted.
            unknown = replace(record.value, vm_id=new_id())
            key = vm_key("acme", unknown.vm_id)
            gateway = await stack.enter_async_context(secured.bus("gateway", "g1"))
            await Bucket(gateway, VM_SPECS, decode_vm_record).put(key, unknown)
            async with asyncio.timeout(30):
                while (await api.get(f"/v1/vms/{unknown.vm_id}")).status_code != 200:
                    await asyncio.sleep(0.05)
                assert (
                    await api.delete(f"/v1/vms/{unknown.vm_id}", headers=WAIT)
                ).status_code == 404
                while (buried := await records.get(key)) is None or not buried.value.deleted_at:
                    await asyncio.sleep(0.05)
            record = await records.get(vm_key("acme", vm_id))
            assert record is not None
            assert record.value.deleted_at is None
        entries = [decode_audit_entry(m.data) for m in await read_stream(operator, AUDIT)]
        (told,) = [entry for entry in entries if entry.action == "write-status"]
        assert (told.actor, told.outcome, told.details["count"]) == ("agent@h2", "refused", "2")
        assert encode(told)
