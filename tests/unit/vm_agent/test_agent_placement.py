"""What an agent adds to placement: it claims creates, keeps VMs apart, and says whom it took in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from gateway.operations import Operations
from runtime.buckets import Bucket
from runtime.clock import utc_now
from runtime.errors import SettingsError
from runtime.settings import load
from schemas.commands import Command, CreateVm, DeleteVm
from schemas.errors import ErrorCode, ErrorInfo
from schemas.hosts import MAX_ADMITTED, Operation, OperationStatus, Resources, decode_operation
from schemas.ids import new_id
from schemas.subjects import OPERATIONS
from schemas.vms import VmSpec
from schemas.wishes import Apart, PlacementWishes
from tests.support.memory_agent import Mail, Run
from tests.support.memory_host import MemoryDesk, MemoryImages
from tests.support.memory_kernel import MemoryKernel
from tests.support.nats import bus_with_streams
from vm_agent.admission import Admission
from vm_agent.reporter import NatsDesk
from vm_agent.settings import AgentSettings

APART = PlacementWishes(apart_by="app", apart=Apart.REQUIRED)
DB = VmSpec(image="tiny", labels={"app": "db"}, placement=APART)


def create(spec: VmSpec = DB, customer_id: str = "acme") -> CreateVm:
    return CreateVm(
        command_id=new_id(),
        customer_id=customer_id,
        vm_id=new_id(),
        host_id="h1",
        issued_at=utc_now(),
        deadline=utc_now() + timedelta(hours=1),
        spec=spec,
        placed="spread",
    )


def pending(command: Command, **changes: Any) -> Operation:
    base: dict[str, Any] = {
        "operation_id": command.command_id,
        "customer_id": command.customer_id,
        "vm_id": command.vm_id,
        "host_id": command.host_id,
        "verb": command.verb,
        "status": OperationStatus.PENDING,
        "created_at": command.issued_at,
        "deadline": command.deadline,
    }
    return Operation(**base | changes)


class Host:
    """An agent in memory."""

    def __init__(self, folder: Path) -> None:
        self.desk = MemoryDesk()
        self.run = Run(folder, MemoryKernel(), self.desk, MemoryImages())
        self.run.admission.capacity = Resources(vcpus=9, memory_mib=9999, disk_mib=9, slots=9)

    async def deliver(self, command: Command) -> Operation:
        """A command and its end."""
        self.run.inbox.queue.put_nowait(Mail(command))
        async with asyncio.timeout(20):
            while not (results := self._ends(command.command_id)):
                assert not self.run.tasks.failures
                await asyncio.sleep(0.005)
        return results[-1]

    def _ends(self, command_id: UUID) -> list[Operation]:
        return [one for one in self.desk.operations.get(command_id, []) if one.finished]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    await made.run.start()
    yield made
    await made.run.die()


async def test_a_create_is_marked_as_running_before_anything_is_done(host: Host) -> None:
    """So that nobody gives it to another host; the end says why it was placed here."""
    command = create()
    host.desk.operations[command.command_id] = [pending(command)]
    done = await host.deliver(command)
    assert (done.status, done.placed) == (OperationStatus.SUCCEEDED, "spread")
    statuses = [one.status for one in host.desk.operations[command.command_id]]
    assert statuses == ["pending", "running", "succeeded"]


async def test_a_create_that_was_withdrawn_is_not_carried_out(host: Host) -> None:
    """The host comes back, finds a result, and holds nothing."""
    command = create()
    error = ErrorInfo(code=ErrorCode.NO_CAPACITY, message="")
    withdrawn = pending(command, status=OperationStatus.FAILED, error=error, finished_at=utc_now())
    host.desk.operations[command.command_id] = [withdrawn]
    mail = Mail(command)
    host.run.inbox.queue.put_nowait(mail)
    await host.deliver(create(VmSpec(image="tiny")))
    await host.run.quiet()
    assert host.desk.operations[command.command_id] == [withdrawn]
    assert not [one for one in host.desk.statuses if one.vm_id == command.vm_id]
    assert command.vm_id not in host.run.admission.lately()


async def test_vms_that_must_be_apart_are_refused_side_by_side(host: Host) -> None:
    """Whatever gateways know; another customer's, another value's and deleted ones do not count."""
    first = create()
    assert (await host.deliver(first)).error is None
    refused = await host.deliver(create())
    assert refused.error is not None
    assert refused.error.code is ErrorCode.NO_CAPACITY
    assert (await host.deliver(create(customer_id="other"))).error is None
    assert (await host.deliver(create(replace(DB, labels={"app": "web"})))).error is None
    preferred = PlacementWishes(apart_by="app")
    soft = create(replace(DB, placement=preferred))
    assert (await host.deliver(soft)).error is None
    for gone in (first, soft):
        delete = DeleteVm(
            command_id=new_id(),
            customer_id="acme",
            vm_id=gone.vm_id,
            host_id="h1",
            issued_at=utc_now(),
            deadline=utc_now() + timedelta(hours=1),
        )
        assert (await host.deliver(delete)).error is None
    assert (await host.deliver(create())).error is None


def test_a_heartbeat_names_the_vms_of_the_last_seconds() -> None:
    """At most so many; those that are gone again too, whose room is free again."""
    now = [0.0]
    capacity = Resources(vcpus=10_000, memory_mib=10**7, disk_mib=0, slots=10_000)
    admission = Admission(capacity, lambda: now[0])
    spec = VmSpec(image="tiny")
    first, second = new_id(), new_id()
    admission.reserve(first, spec)
    admission.reserve(first, spec)
    now[0] = 10.0
    admission.reserve(second, spec)
    admission.release(second)
    assert admission.lately() == (first, second)
    now[0] = 20.0
    assert admission.lately() == (second,)
    for _ in range(MAX_ADMITTED + 5):
        admission.reserve(new_id(), spec)
    assert len(admission.lately()) == MAX_ADMITTED


@pytest.mark.parametrize(
    ("text", "labels"),
    [("", {}), ("disk=nvme", {"disk": "nvme"}), ("disk=nvme,gpu=", {"disk": "nvme", "gpu": ""})],
)
def test_labels_are_read_from_one_setting(text: str, labels: dict[str, str]) -> None:
    settings = load(
        AgentSettings, "agent", env={"DECISEC_AGENT_HOST_ID": "h1", "DECISEC_AGENT_LABELS": text}
    )
    assert settings.host_labels == labels


@pytest.mark.parametrize("text", ["disk", "disk=a,", "Disk=a", "disk=a b", "disk=a\n", ",disk=a"])
def test_labels_that_are_none_are_refused(text: str) -> None:
    env = {"DECISEC_AGENT_HOST_ID": "h1", "DECISEC_AGENT_LABELS": text}
    with pytest.raises(SettingsError, match="DECISEC_AGENT_LABELS"):
        load(AgentSettings, "agent", env=env)


async def test_a_host_begins_or_a_gateway_withdraws_never_both(tmp_path: Path) -> None:
    """On a real bucket: the one that comes second finds it changed."""
    async with bus_with_streams(tmp_path) as (_, bus):
        operations, desk = Bucket(bus, OPERATIONS, decode_operation), NatsDesk(bus)
        begun, withdrawn = pending(create()), pending(create())
        key = str(begun.operation_id)
        revision = await operations.create(key, begun)
        seen = await desk.begin(begun.operation_id)
        assert seen is not None
        assert seen.status is OperationStatus.RUNNING
        assert await desk.begin(begun.operation_id) == seen
        gateway = Operations(bus)
        error = ErrorInfo(code=ErrorCode.NO_CAPACITY, message="")
        assert not await gateway.fail(begun, error, revision)
        revision = await operations.create(str(withdrawn.operation_id), withdrawn)
        assert await gateway.fail(withdrawn, error, revision)
        found = await desk.begin(withdrawn.operation_id)
        assert found is not None
        assert found.finished
        assert await desk.begin(new_id()) is None
