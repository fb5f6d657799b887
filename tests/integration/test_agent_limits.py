"""An agent holds QEMU's VMs to limits of their network: its own VMM could not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.commands import DeleteVm, ShutdownVm
from schemas.devices import RateLimits
from schemas.vms import VmSpec
from tests.support.agents import AgentProcess, booted, running_agent
from tests.support.connected_agent import Surroundings, lack
from tests.support.hypervisors import Lab
from tests.support.samples import assert_exact, has_final, samples_of
from tests.support.wires import run_in
from vm_agent.data_dir import identity
from vm_agent.network.filter import Filter
from vm_agent.network.layout import netns_of
from vm_agent.network.nft import Nft
from vm_agent.network.reasons import Reason

pytestmark = [
    pytest.mark.hypervisor,
    pytest.mark.timeout(120),
    pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing"),
]

FRAMES, FRAME_BYTES = 200, 1000
LIMIT = 50_000
AT_ONCE = 1 << 16
"""A second's worth, and the largest packet at least."""
SPEC = VmSpec(
    image="tiny",
    memory_mib=64,
    kernel_args={"tx": str(FRAMES)},
    limits=RateLimits(net_rx_bytes_per_s=LIMIT, net_tx_bytes_per_s=LIMIT),
)


async def buckets(agent: AgentProcess) -> str:
    """The buckets of taps in an agent's fabric."""
    listed = await run_in(netns_of(identity(agent.data_dir)), "tc", "qdisc", "show")
    return "\n".join(line for line in listed.splitlines() if line.startswith("qdisc tbf"))


async def dropped(agent: AgentProcess) -> int:
    """Packets that the one VM has sent too fast."""
    nft = Nft(netns_of(identity(agent.data_dir)))
    try:
        drops = await Filter(nft).drops()
        (tap,) = [tap for tap in drops.by_tap if tap.startswith("vm")]
        return drops.of(tap, Reason.RATE_TX)
    finally:
        await nft.close()


async def test_a_vm_of_qemu_keeps_its_limits_for_its_life(
    tmp_path: Path, lab: Lab, around: Surroundings
) -> None:
    """Over the death of its agent, and somebody's hand; billed is what it sent, dropped or not."""
    async with running_agent(tmp_path, lab, "qemu", **around.settings) as (agent, client):
        run_id = (await client.host()).run_id
        vm_id = await booted(client, SPEC)
        stands = await buckets(agent)
        assert "rate 400Kbit burst 50000b" in stands
        await client.frames_until(
            lambda all_: any(
                s.counters.net_tx_bytes == FRAMES * FRAME_BYTES for s in samples_of(all_, vm_id)
            )
        )
        passed = AT_ONCE // (FRAME_BYTES - 14)
        assert FRAMES - passed - 30 <= await dropped(agent) <= FRAMES - passed
        await agent.kill()
        assert await buckets(agent) == stands
        tap = stands.split(" dev ")[1].split()[0]
        fabric = netns_of(identity(agent.data_dir))
        await run_in(fabric, "tc", "qdisc", "del", "dev", tap, "root")
        await agent.start()
        await client.host(other_than=run_id)
        async with asyncio.timeout(10):
            while await buckets(agent) != stands:
                await asyncio.sleep(0.05)
        await client.do(ShutdownVm, vm_id, grace_s=5)
        assert await buckets(agent) == ""
        samples = samples_of(await client.frames_until(has_final(vm_id)), vm_id)
        assert_exact(samples)
        assert samples[-1].counters.net_tx_bytes == FRAMES * FRAME_BYTES
        await client.do(DeleteVm, vm_id)
