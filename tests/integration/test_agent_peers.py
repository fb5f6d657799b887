"""VMs of two customers on a host, by packets: apart until both agree, and once one does not."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Network
from pathlib import Path

import pytest

from runtime.hosts import Hosts
from runtime.streams import apply, declared
from schemas.commands import BootVm, CreateVm
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.subjects import NETWORK_PEERS
from schemas.vms import VmSpec
from tests.support.agents import AgentProcess, Client, agent
from tests.support.connected_agent import Surroundings, lack
from tests.support.halves import Halves
from tests.support.hypervisors import Lab
from tests.support.nats import NatsServer, bus_with_streams
from tests.support.wires import Guest, open_tap
from vm_agent import namespace
from vm_agent.data_dir import identity
from vm_agent.network.attachment import Attachment
from vm_agent.network.layout import netns_of
from vm_agent.store import RecordStore

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing"),
]

_PORT = 4000
_WITHIN_S = 1.0
"""Customers are promised that a change is in force by then."""


class Wire:
    """Guests of simulated VMs: nobody else has their taps open."""

    def __init__(self, agent: AgentProcess, client: Client) -> None:
        self._agent = agent
        self._client = client
        self._netns = netns_of(identity(agent.data_dir))
        self.guests: list[Guest] = []

    async def guest(self, customer_id: str) -> Guest:
        """A VM that runs, and its end of the tap."""
        vm_id = new_id()
        for kind, fields in (
            (CreateVm, {"spec": VmSpec(image="tiny", memory_mib=64)}),
            (BootVm, {}),
        ):
            done = await self._client.do(kind, vm_id, customer_id=customer_id, **fields)
            assert done.status is OperationStatus.SUCCEEDED, done
        (record,) = [
            r for r in RecordStore(self._agent.data_dir / "vms").load() if r.vm_id == vm_id
        ]
        lease, nic = record.lease, record.nic
        assert lease is not None
        assert nic is not None
        vm = Attachment(
            slot=lease.slot, vm_id=vm_id, customer_id=customer_id, tenant=lease.tenant,
            mac=lease.mac, addresses=(IPv6Network(lease.prefix),), incarnation=1,
        )  # fmt: skip

        tap = await namespace.in_own_thread(lambda: open_tap(self._netns, vm.tap))
        self.guests.append(Guest(nic, vm, tap, identity(self._agent.data_dir)))
        return self.guests[-1]

    def close(self) -> None:
        """Close the taps."""
        for guest in self.guests:
            os.close(guest.tap)


@dataclass(frozen=True)
class Rig:
    """An agent that connects simulated VMs, and all around it."""

    server: NatsServer
    agent: AgentProcess
    client: Client
    wire: Wire


@asynccontextmanager
async def rig(folder: Path, lab: Lab, around: Surroundings) -> AsyncIterator[Rig]:
    """All of it, with a bus of its own."""
    settings = {"driver": "simulator", **around.settings}
    async with (
        bus_with_streams(folder / "nats") as (server, bus),
        agent(folder / "agent", server.url, lab.image.kernel, **settings) as process,
    ):
        client = Client(bus)
        await client.host()
        made = Rig(server, process, client, Wire(process, client))
        try:
            yield made
        finally:
            made.wire.close()


async def reaches(one: Guest, other: Guest, within_s: float = 0.25) -> bool:
    """Whether a datagram of its own gets there."""
    word = os.urandom(8)
    to = other.vm.addresses[0].network_address
    give_up_s = time.monotonic() + within_s
    one.send(one.udp(to, _PORT, word))
    try:
        while (left_s := give_up_s - time.monotonic()) > 0:
            if (await other.frame(left_s)).endswith(word):
                return True
    except TimeoutError:
        pass
    return False


async def apart(one: Guest, other: Guest) -> bool:
    """Whether nothing gets through, either way."""
    return not await reaches(one, other) and not await reaches(other, one)


async def soon(one: Guest, other: Guest, *, together: bool) -> None:
    """Both ways become open, or shut, within a second, while both send all the time."""
    began_s = time.monotonic()
    while True:
        ways = [await reaches(one, other, 0.05), await reaches(other, one, 0.05)]
        if ways == [together, together]:
            break
        assert time.monotonic() - began_s < _WITHIN_S, ways
    if not together:
        assert await apart(one, other)


async def test_vms_reach_each_other_while_both_customers_agree(
    tmp_path: Path, lab: Lab, around: Surroundings
) -> None:
    """Each way within a second; over a kill of the agent, and a bus that says nothing."""
    async with rig(tmp_path, lab, around) as made:
        client, wire = made.client, made.wire
        halves = Halves(client.bus)
        ours, theirs = await wire.guest("acme"), await wire.guest("globex")
        assert await apart(ours, theirs)
        await halves.say("acme", "globex")
        assert await apart(ours, theirs)
        await halves.say("globex", "acme", "initech")
        await soon(ours, theirs, together=True)

        # A customer whose first VM comes later, and what is of no peer.
        await halves.say("initech", "globex")
        third = await wire.guest("initech")
        await soon(third, theirs, together=True)
        assert await apart(third, ours)

        await halves.say("acme")
        await soon(ours, theirs, together=False)
        await halves.say("acme", "globex")
        await soon(ours, theirs, together=True)
        await halves.say("globex", "initech")
        await soon(ours, theirs, together=False)
        await halves.say("globex", "acme")
        await soon(ours, theirs, together=True)
        await soon(third, theirs, together=False)

        # Neither a dead agent, nor one that finds no bus, nor one that hears nothing changes it.
        for away in ("server", "bucket"):
            run = (await client.host()).run_id
            await made.agent.kill()
            if away == "server":
                await made.server.kill()
            else:
                await client.bus.js.delete_stream(f"KV_{NETWORK_PEERS}")
            assert await reaches(ours, theirs)
            await made.agent.start()
            if away == "server":
                await asyncio.sleep(_WITHIN_S)
                assert [await reaches(ours, theirs), await apart(third, theirs)] == [True, True]
                await made.server.start()
            await client.host(other_than=run)
            await asyncio.sleep(_WITHIN_S)
            assert [await reaches(ours, theirs), await reaches(theirs, ours)] == [True, True]
            assert await apart(third, theirs)

        # A bucket that was made anew says of nobody that he agrees.
        await apply(client.bus, declared())
        async with asyncio.timeout(10):
            while not await apart(ours, theirs):
                pass


async def test_who_is_cut_off_has_no_peers(tmp_path: Path, lab: Lab, around: Surroundings) -> None:
    """Whatever is agreed meanwhile; let back, it has those that there are then."""
    async with rig(tmp_path, lab, around) as made:
        client, wire = made.client, made.wire
        halves = Halves(client.bus)
        ours, theirs = await wire.guest("acme"), await wire.guest("globex")
        await halves.say("acme", "globex")
        await halves.say("globex", "acme")
        await soon(ours, theirs, together=True)
        hosts = Hosts(client.bus)
        status = await client.status(ours.vm.vm_id)
        assert status is not None
        await hosts.quarantine(status, cut_off=True, reason="scans", requested_by="ops")
        await soon(ours, theirs, together=False)
        await halves.say("acme")
        await halves.say("acme", "globex")
        await asyncio.sleep(_WITHIN_S)
        assert await apart(ours, theirs)
        await hosts.quarantine(status, cut_off=False, reason="done", requested_by="ops")
        await soon(ours, theirs, together=True)
