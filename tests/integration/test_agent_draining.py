"""A real agent that is told to drain: while it runs, while it is down, and over its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from runtime.buckets import Bucket
from runtime.clock import utc_now
from runtime.reading import read_stream
from schemas.commands import BootVm, CreateVm, DeleteVm, RebootVm, ShutdownVm
from schemas.errors import ErrorCode
from schemas.events import HostDrained, decode_host_event
from schemas.hosts import HostInfo, HostOrders, Operation, OperationStatus, decode_host_orders
from schemas.ids import new_id
from schemas.subjects import HOST_EVENTS, HOST_ORDERS, host_event
from schemas.vms import VmSpec, VmState
from tests.support.agents import HOST, AgentProcess, Client, agent
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.samples import samples_of

pytestmark = pytest.mark.timeout(60)

SPEC = VmSpec(image="tiny", memory_mib=64, disk_mib=4)


@dataclass
class Stage:
    """A bus, an agent on it, somebody who sends commands, and an operator."""

    server: NatsServer
    agent: AgentProcess
    client: Client

    async def order(self, *, draining: bool, reason: str = "") -> HostOrders:
        """Write an order, as the CLI does."""
        order = HostOrders(
            host_id=HOST,
            draining=draining,
            reason=reason,
            requested_by="test",
            ordered_at=utc_now(),
        )
        bucket = Bucket(self.client.bus, HOST_ORDERS, decode_host_orders)
        await bucket.put(HOST, order)
        return order

    async def beat(self, condition: Callable[[HostInfo], object]) -> HostInfo:
        """A heartbeat that meets a condition."""
        while not condition(info := await self.client.host()):
            await asyncio.sleep(0.05)
        return info

    async def create(self) -> Operation:
        """Ask for a VM."""
        return await self.client.do(CreateVm, new_id(), spec=SPEC)

    async def running_vm(self) -> UUID:
        """A VM that has been created and booted."""
        created = await self.create()
        assert created.status is OperationStatus.SUCCEEDED, created
        assert (await self.client.do(BootVm, created.vm_id)).state is VmState.RUNNING
        return created.vm_id

    async def restart(self) -> None:
        """Another run of the agent, which has told of itself."""
        before = (await self.client.host()).run_id
        assert await self.agent.stop() == 0
        await self.agent.start()
        await self.client.host(other_than=before)

    async def drained(self) -> list[HostDrained]:
        """All words that the host is empty, from its own subject."""
        messages = await read_stream(self.client.bus, HOST_EVENTS)
        events = [(m.subject, decode_host_event(m.data)) for m in messages]
        assert all(subject == host_event(event) for subject, event in events)
        return [event for _, event in events if isinstance(event, HostDrained)]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(tmp_path / "agent", server.url, kernel, driver="simulator") as process,
    ):
        yield Stage(server, process, Client(bus))


def assert_refused(operation: Operation) -> None:
    """Refused so that the gateway places it elsewhere; no VM was made."""
    assert (operation.status, operation.state) == (OperationStatus.FAILED, None)
    assert operation.error is not None
    assert operation.error.code is ErrorCode.NO_CAPACITY
    assert "draining" in operation.error.message


async def test_a_host_is_drained_and_taken_back(stage: Stage) -> None:
    """New VMs are refused, the one that is here goes on; empty is said once, over a restart."""
    client = stage.client
    vm_id = await stage.running_vm()
    order = await stage.order(draining=True, reason="new disks")
    info = await stage.beat(lambda info: info.draining)
    assert (info.drain_reason, info.vms, info.drained) == ("new disks", 1, False)
    assert_refused(await stage.create())

    seen = len(samples_of(await client.frames(), vm_id))
    await client.frames_until(lambda frames: len(samples_of(frames, vm_id)) > seen + 3)
    assert (await client.do(RebootVm, vm_id)).state is VmState.RUNNING
    assert (await client.do(ShutdownVm, vm_id)).state is VmState.STOPPED
    assert (await client.do(BootVm, vm_id)).state is VmState.RUNNING
    await stage.restart()
    assert_refused(await stage.create())
    assert await stage.drained() == []

    assert (await client.do(DeleteVm, vm_id)).state is VmState.DELETED
    info = await stage.beat(lambda info: info.drained)
    assert info.free == info.capacity
    while not (told := await stage.drained()):
        await asyncio.sleep(0.05)
    assert [(e.host_id, e.reason, e.ordered_at) for e in told] == [
        (HOST, "new disks", order.ordered_at)
    ]
    await stage.restart()
    info = await client.host()
    assert (info.draining, info.drained) == (True, True)

    await stage.order(draining=False)
    await stage.beat(lambda info: not info.draining)
    await stage.running_vm()
    # Whatever the restarted agent had to say of the order, it has said by now.
    assert await stage.drained() == told
    assert stage.agent.log().count('"event": "host.drained"') == 1


async def test_an_order_that_was_given_while_the_agent_was_down_is_obeyed(stage: Stage) -> None:
    """From the very first command, which was waiting already."""
    await stage.client.host()
    assert await stage.agent.stop() == 0
    await stage.order(draining=True)
    command = await stage.client.send(CreateVm, new_id(), spec=SPEC)
    await stage.agent.start()
    assert_refused(await stage.client.result(command.command_id))


async def test_the_last_order_stands_while_nats_is_away(stage: Stage) -> None:
    """And the next one is heard after it has come back."""
    await stage.order(draining=True)
    await stage.beat(lambda info: info.draining)
    await stage.server.kill()
    await stage.server.start()
    assert_refused(await stage.create())
    await stage.order(draining=False)
    await stage.beat(lambda info: not info.draining)
    assert (await stage.create()).status is OperationStatus.SUCCEEDED


async def test_the_setting_counts_until_there_is_an_order(tmp_path: Path) -> None:
    """An order to take VMs wins over it; without one it says where it comes from."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(
            tmp_path / "agent", server.url, kernel, driver="simulator", draining="true"
        ) as process,
    ):
        stage = Stage(server, process, Client(bus))
        info = await stage.client.host()
        assert info.drained
        assert "draining" in info.drain_reason
        assert_refused(await stage.create())
        while not (told := await stage.drained()):
            await asyncio.sleep(0.05)
        assert [event.ordered_at for event in told] == [None]
        await stage.order(draining=False)
        await stage.beat(lambda info: not info.draining)
        assert (await stage.create()).status is OperationStatus.SUCCEEDED
