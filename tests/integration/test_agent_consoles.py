"""Consoles on a real bus: over crashes, restarts, cuts, and the death of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from runtime.errors import TransientError
from schemas.codec import encode
from schemas.commands import BootVm, DeleteVm, RebootVm, ShutdownVm
from schemas.consoles import ConsoleChunk, ConsoleQuery, ConsoleReply, decode_console_reply
from schemas.errors import ErrorCode
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.subjects import vm_console
from schemas.units import MIB
from schemas.vms import VmSpec
from tests.support.agents import CUSTOMER, HOST, AgentProcess, Client, agent, booted, running_agent
from tests.support.hypervisors import REAL_DRIVERS, Lab
from tests.support.nats import bus_with_streams

pytestmark = pytest.mark.timeout(90)

SPEC = VmSpec(image="tiny", memory_mib=64)


@asynccontextmanager
async def simulated(tmp_path: Path) -> AsyncIterator[tuple[AgentProcess, Client]]:
    """An agent with the simulator."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(tmp_path / "agent", server.url, kernel, driver="simulator") as process,
    ):
        yield process, Client(bus)


async def ask(client: Client, vm_id: UUID, customer: str = CUSTOMER, **query: Any) -> ConsoleReply:
    """What the host answers."""
    asked = ConsoleQuery(customer_id=customer, vm_id=vm_id, **query)
    answer = await client.bus.request(vm_console(HOST, vm_id), encode(asked), timeout_s=5)
    return decode_console_reply(answer.data)


async def read(client: Client, vm_id: UUID, **query: Any) -> ConsoleChunk:
    """A part of a console."""
    reply = await ask(client, vm_id, **query)
    assert reply.chunk is not None, reply
    return reply.chunk


async def says(client: Client, vm_id: UUID, word: bytes, times: int) -> ConsoleChunk:
    """The whole console, once it holds a word so many times."""
    async with asyncio.timeout(40):
        while (chunk := await read(client, vm_id)).data.count(word) < times:
            await asyncio.sleep(0.02)
    return chunk


@pytest.mark.parametrize(
    "name", ["simulator", *(pytest.param(n, marks=pytest.mark.hypervisor) for n in REAL_DRIVERS)]
)
async def test_a_console_goes_on_over_every_end_of_its_vm(
    tmp_path: Path, lab: Lab, name: str
) -> None:
    """Reboot, shutdown and boot, the agent killed in between: all of it is there, in its order."""
    async with (
        simulated(tmp_path) if name == "simulator" else running_agent(tmp_path, lab, name)
    ) as (process, client):
        first_run = (await client.host()).run_id
        vm_id = await booted(client, SPEC)
        first = await says(client, vm_id, b"READY", 1)
        assert (await client.do(RebootVm, vm_id)).status is OperationStatus.SUCCEEDED
        second = await says(client, vm_id, b"READY", 2)
        assert second.data.startswith(first.data)
        await process.kill()
        with pytest.raises(TransientError):
            await ask(client, vm_id)
        await process.start()
        await client.host(other_than=first_run)
        assert (await client.do(ShutdownVm, vm_id)).status is OperationStatus.SUCCEEDED
        stopped = await says(client, vm_id, b"BYE", 2)
        assert stopped.data.startswith(second.data)
        assert (await client.do(BootVm, vm_id)).status is OperationStatus.SUCCEEDED
        await says(client, vm_id, b"READY", 3)
        rest = await read(client, vm_id, offset=stopped.next_offset)
        assert rest.data.count(b"READY") == 1
        assert rest.lost_bytes == 0


async def test_the_agent_cuts_a_console_and_offsets_stay_right(tmp_path: Path) -> None:
    """Cut while the VM runs; the next agent knows of it, and a new cut is added to it."""
    async with simulated(tmp_path) as (process, client):
        first_run = (await client.host()).run_id
        vm_id = await booted(client, SPEC)
        ready = await says(client, vm_id, b"READY", 1)
        (console,) = (process.data_dir / "consoles").glob("*.log")
        cut = 0
        for flood in (b"a", b"b"):
            with console.open("ab") as file:
                file.write(flood * (2 * MIB) + b"end\n")
            async with asyncio.timeout(40):
                while console.stat().st_size > 2 * MIB:
                    await asyncio.sleep(0.05)
            tail = await read(client, vm_id, tail_bytes=4)
            assert (tail.data, tail.end) == (b"end\n", True)
            left = await read(client, vm_id, offset=ready.next_offset)
            assert left.data == flood * len(left.data)
            assert left.offset == tail.next_offset - MIB > cut
            assert left.lost_bytes == left.offset - ready.next_offset
            cut = left.offset
            await process.kill()
            await process.start()
            first_run = (await client.host(other_than=first_run)).run_id
            assert await read(client, vm_id, offset=ready.next_offset) == left
        assert cut == ready.next_offset + 2 * (2 * MIB + 4) - MIB


async def test_only_the_owner_reads_it_and_nobody_after_its_deletion(tmp_path: Path) -> None:
    """The files go with the VM."""
    async with simulated(tmp_path) as (process, client):
        vm_id = await booted(client, SPEC)
        await says(client, vm_id, b"READY", 1)
        foreign = await ask(client, vm_id, "globex")
        assert foreign.error is not None
        assert foreign.error.code is ErrorCode.NOT_FOUND
        assert await ask(client, new_id()) == foreign
        assert (await client.do(DeleteVm, vm_id)).status is OperationStatus.SUCCEEDED
        assert await ask(client, vm_id) == foreign
        assert list((process.data_dir / "consoles").iterdir()) == []
