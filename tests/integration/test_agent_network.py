"""The agent connects VMs of real hypervisors: addresses, counts, restarts, and what is left."""

from __future__ import annotations

import asyncio
import re
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from uuid import UUID

import pytest

from runtime.hosts import Hosts
from schemas.commands import BootVm, CreateVm, DeleteVm, ShutdownVm
from schemas.errors import ErrorCode
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.networking import Networking
from schemas.vms import VmSpec, VmState
from tests.support.agents import AgentProcess, Client, booted, running_agent
from tests.support.connected_agent import Surroundings, lack, looked_at
from tests.support.hypervisors import Lab
from tests.support.samples import assert_exact, has_final, samples_of
from tests.support.wires import PREFIX, nft_in, run_in
from vm_agent import namespace
from vm_agent.data_dir import identity
from vm_agent.network.layout import netns_of
from vm_agent.store import RecordStore

pytestmark = [
    pytest.mark.hypervisor,
    pytest.mark.timeout(120),
    pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing"),
]

FRAMES = 40
SENDER = VmSpec(image="tiny", memory_mib=64, kernel_args={"tx": str(FRAMES)})


def fabric_of(agent: AgentProcess) -> str:
    """The namespace of an agent's fabric."""
    return netns_of(identity(agent.data_dir))


async def taps(agent: AgentProcess) -> set[str]:
    """Names of the taps in an agent's fabric."""
    words = (await run_in(fabric_of(agent), "ip", "-o", "link")).split()
    return {word.strip(":") for word in words if word.startswith("vm") and word.endswith(":")}


@pytest.mark.parametrize("driver", ["firecracker", "qemu"])
async def test_a_vm_is_connected_for_its_life_and_counted_to_the_byte(
    tmp_path: Path, lab: Lab, around: Surroundings, driver: str
) -> None:
    """Over a kill of the agent, a stop and a start; then nothing of it is left."""
    async with running_agent(tmp_path, lab, driver, **around.settings) as (agent, client):
        host = await client.host()
        assert (host.no_network, host.networks) == ("", (str(PREFIX),))
        vm_id = await booted(client, SENDER)
        before = await client.status(vm_id)
        assert before is not None
        (address,) = before.addresses
        assert IPv6Address(address) in IPv6Network((PREFIX.network_address, 64))
        assert len(await taps(agent)) == 1

        await agent.kill()
        assert len(await taps(agent)) == 1
        await agent.start()
        await client.host(other_than=host.run_id)
        await client.frames_until(
            lambda all_: any(
                s.counters.net_tx_bytes == FRAMES * 1000 for s in samples_of(all_, vm_id)
            )
        )
        assert (await client.do(ShutdownVm, vm_id, grace_s=5)).status is OperationStatus.SUCCEEDED
        assert await taps(agent) == set()
        frames = await client.frames_until(has_final(vm_id))
        samples = samples_of(frames, vm_id)
        assert_exact(samples)
        assert samples[-1].counters.net_tx_bytes == FRAMES * 1000

        assert (await client.do(BootVm, vm_id)).status is OperationStatus.SUCCEEDED
        after = await client.status(vm_id)
        assert after is not None
        assert (after.state, after.addresses) == (VmState.RUNNING, before.addresses)
        assert (await client.do(DeleteVm, vm_id)).status is OperationStatus.SUCCEEDED
        assert await taps(agent) == set()
        await agent.kill()
        assert f"removed network namespace {fabric_of(agent)}" in await agent.reap()
        assert not (namespace.NETNS_DIR / fabric_of(agent)).exists()


async def test_an_operator_cuts_a_vm_off_and_lets_it_back(
    tmp_path: Path, lab: Lab, around: Surroundings
) -> None:
    """At once, in the kernel; a new agent keeps to it, and draining the host does not end it."""
    async with running_agent(tmp_path, lab, "firecracker", **around.settings) as (agent, client):
        run = (await client.host()).run_id
        vm_id = await booted(client, SENDER)
        hosts = Hosts(client.bus)
        status = await client.status(vm_id)
        assert status is not None
        for changed in (True, False):
            assert changed is await hosts.quarantine(
                status, cut_off=True, reason="scans", requested_by="ops"
            )
        await says_it_is(client, vm_id, cut_off=True)
        assert await cut_off(agent) == await taps(agent)
        check = await looked_at(client.bus, vm_id)
        assert (check.proven, check.quarantined) == (False, True)
        assert check.summary.endswith("nothing passes")
        await hosts.order("h1", draining=True, reason="", requested_by="ops")
        await agent.kill()
        assert await cut_off(agent) == await taps(agent)
        await agent.start()
        await client.host(other_than=run)
        assert await cut_off(agent) == await taps(agent)
        assert await hosts.quarantine(status, cut_off=False, reason="done", requested_by="ops")
        await says_it_is(client, vm_id, cut_off=False)
        assert await cut_off(agent) == set()
        assert (await client.host()).draining


async def says_it_is(client: Client, vm_id: UUID, *, cut_off: bool) -> None:
    """Wait until the agent tells a VM's owner that it is cut off, or that it is not."""
    async with asyncio.timeout(10):
        while (now := await client.status(vm_id)) is None or now.quarantined is not cut_off:
            await asyncio.sleep(0.05)


async def cut_off(agent: AgentProcess) -> set[str]:
    """Taps that the packet filter lets nothing through from."""
    listed = await nft_in(fabric_of(agent), "list set inet decisec cut")
    return set(re.findall(r'"(vm[0-9a-f]{8})"', listed))


async def test_what_the_host_has_not_is_refused_and_leaves_nothing(
    tmp_path: Path, lab: Lab, around: Surroundings
) -> None:
    """No IPv4 here; and without a prefix whoever says how it is to be connected is refused."""
    wish = SENDER.__class__(image="tiny", memory_mib=64, networking=Networking(ipv4=True))
    async with running_agent(tmp_path, lab, "simulator", **around.settings) as (agent, client):
        done = await client.do(CreateVm, new_id(), spec=wish)
        assert done.error is not None
        assert (done.error.code, done.error.message) == (
            ErrorCode.NO_CAPACITY,
            "the host has no IPv4 addresses left: it has none to give",
        )
        assert RecordStore(agent.data_dir / "vms").load() == []
    other = tmp_path / "other"
    other.mkdir()
    async with running_agent(other, lab, "simulator") as (agent, client):
        assert (await client.host()).networks == ()
        done = await client.do(CreateVm, new_id(), spec=wish)
        assert done.error is not None
        assert "the host connects no VMs" in done.error.message
        assert not (namespace.NETNS_DIR / fabric_of(agent)).exists()


async def test_a_host_that_cannot_connect_says_so_and_runs_nothing_open(
    tmp_path: Path, lab: Lab, around: Surroundings
) -> None:
    """VMs run with an interface that leads nowhere."""
    settings = {**around.settings, "net_uplink": "eth9", "net_next_hop": "fe80::1"}
    async with running_agent(tmp_path, lab, "simulator", **settings) as (agent, client):
        host = await client.host()
        assert host.no_network == "there is no interface eth9 for the uplink"
        assert host.networks == ()
        vm_id = await booted(client, VmSpec(image="tiny", memory_mib=64))
        status = await client.status(vm_id)
        assert status is not None
        assert status.addresses == ()
        assert await taps(agent) == set()


async def test_vms_of_former_settings_run_on_connected_and_counted(
    tmp_path: Path, lab: Lab, around: Surroundings
) -> None:
    """A prefix that is taken out of the settings takes nothing from whoever runs."""
    async with running_agent(tmp_path, lab, "firecracker", **around.settings) as (agent, client):
        run = (await client.host()).run_id
        vm_id = await booted(client, SENDER)
        await client.frames_until(
            lambda all_: any(
                s.counters.net_tx_bytes == FRAMES * 1000 for s in samples_of(all_, vm_id)
            )
        )
        await agent.kill()
        agent.set("DECISEC_AGENT_NET_PREFIX", "")
        await agent.start()
        await client.host(other_than=run)
        assert (await client.do(ShutdownVm, vm_id, grace_s=5)).status is OperationStatus.SUCCEEDED
        samples = samples_of(await client.frames_until(has_final(vm_id)), vm_id)
        assert_exact(samples)
        assert samples[-1].counters.net_tx_bytes == FRAMES * 1000
        assert await taps(agent) == set()
