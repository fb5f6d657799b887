"""A stock Linux that knows nothing of its host: it finds its address, and talks to whom it may."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from uuid import UUID

import pytest

from decisec.devkit import guest as guest_kit
from decisec.devkit import linux as linux_kit
from decisec.devkit.uv import DevkitError
from schemas.commands import BootVm, CreateVm, ShutdownVm
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.network_checks import Outcome
from schemas.networking import Networking
from schemas.vms import VmSpec
from tests.support.agents import AgentProcess, Client, agent
from tests.support.connected_agent import (
    Surroundings,
    answers_ping,
    lack,
    looked_at,
    pings,
)
from tests.support.linux_guest import ACCEL, MEMORY_MIB, linux_parts, totals_in
from tests.support.nats import bus_with_streams
from tests.support.wires import HOST, IPV4, WORLD, WORLD_IPV4
from vm_agent.images import ImageStore

pytestmark = [
    pytest.mark.hypervisor,
    pytest.mark.timeout(240),
    pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing"),
]


async def test_linux_finds_its_address_and_talks_to_whom_it_may(
    tmp_path: Path, around: Surroundings
) -> None:
    """To the world, to its customer's other VM, not to another customer's nor to the host.

    The first one has an IPv4 address as well, which it took from its kernel's command line. And
    the bill is what its own kernel has counted, advertisements and all.
    """
    tiny = tmp_path / "guest"
    try:
        guest_kit.build(tiny)
    except DevkitError as error:
        pytest.skip(f"the tiny guest cannot be built: {error}")
    parts = linux_parts()
    folder = tmp_path / "agent"
    settings = {**around.settings, "net_ipv4": str(IPV4)}
    async with (
        bus_with_streams(tmp_path / "nats") as (server, bus),
        agent(folder, server.url, tiny, driver="qemu", qemu_accel=ACCEL, **settings) as host,
    ):
        client = Client(bus)
        linux_kit.add_to(ImageStore(folder / "images"), parts)
        first, address, ipv4 = await started(client, host, "acme", WORLD, WORLD_IPV4)
        assert ipv4 in IPV4
        assert f"ADDRESS {address} MTU 1400" in said(host, first)
        await says(host, first, "PING yes")
        assert await answers_ping(around.world, address)
        assert not await pings(around.host, address, HOST)
        check = await looked_at(client.bus, first)
        assert check.proven, check
        assert {one.reason for one in check.stopped} <= {"mld"}
        assert check.addresses == (str(address), str(ipv4))
        assert {one.outcome for one in check.findings} == {Outcome.OK}
        assert f"IPV4 {ipv4}" in said(host, first)
        await says(host, first, "PING4 yes")
        assert await answers_ping(around.world, ipv4)

        for customer, answer in (("acme", "PING yes"), ("globex", "PING no")):
            other, *_ = await started(client, host, customer, address, ipv4)
            await says(host, other, answer)
            await says(host, other, answer.replace("PING", "PING4"))

        console = said_later(host, first)
        await ended(client, "acme", first)
        totals = totals_in(console.read_text())
        status = await client.status(first)
        assert status is not None
        assert status.final_counters is not None
        counted = status.final_counters
        assert (counted.net_rx_bytes, counted.net_tx_bytes) == (
            totals.net_received,
            totals.net_sent,
        )
        assert totals.net_received > 0


async def started(
    client: Client, host: AgentProcess, customer: str, ping: IPv6Address, ping4: IPv4Address
) -> tuple[UUID, IPv6Address, IPv4Address]:
    """A Linux that is on the network and pings two addresses, and its own."""
    vm_id = new_id()
    spec = VmSpec(
        image=linux_kit.IMAGE,
        memory_mib=MEMORY_MIB,
        disk_mib=8,
        kernel_args={"net": "1", "ping": str(ping), "ping4": str(ping4)},
        networking=Networking(mtu=1400, ipv4=True),
    )
    fields = {"customer_id": customer}
    for kind, more in ((CreateVm, {"spec": spec}), (BootVm, {})):
        done = await client.do(kind, vm_id, **fields, **more)
        assert done.status is OperationStatus.SUCCEEDED, done
    status = await client.status(vm_id, customer)
    assert status is not None
    await says(host, vm_id, "DONE")
    own, own4 = status.addresses
    return vm_id, IPv6Address(own), IPv4Address(own4)


async def ended(client: Client, customer: str, vm_id: UUID) -> None:
    """Ask a guest to stop."""
    done = await client.do(ShutdownVm, vm_id, grace_s=50.0, customer_id=customer)
    assert done.status is OperationStatus.SUCCEEDED, done


def said_later(host: AgentProcess, vm_id: UUID) -> Path:
    """The file that a guest's words are in."""
    return host.data_dir / "consoles" / f"{vm_id}.log"


def said(host: AgentProcess, vm_id: UUID) -> str:
    """What a guest has printed."""
    return said_later(host, vm_id).read_text(errors="replace")


async def says(host: AgentProcess, vm_id: UUID, word: str) -> None:
    """Wait until a guest has printed a word."""
    async with asyncio.timeout(60):
        while word not in said(host, vm_id):
            await asyncio.sleep(0.05)
