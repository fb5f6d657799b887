"""Limits of the network that the host holds VMs to: real TCP, real buckets of the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.support.connected_agent import lack
from tests.support.wired_guest import Moved, moved, wired
from tests.support.wires import WORLD, FabricRig, Guest, fabric_rig
from vm_agent.network.filtering import FilterRules
from vm_agent.network.mending import Repairs
from vm_agent.network.nft import Nft

pytestmark = pytest.mark.skipif(lack() is not None, reason=lack() or "nothing is missing")

LIMIT = 1_000_000
FOR_S = 4.0
LEAST = 0.7


@pytest.fixture
async def rig() -> AsyncIterator[FabricRig]:
    """A fabric for one test."""
    async with fabric_rig(FilterRules) as made:
        yield made


async def both_ways(rig: FabricRig, guest: Guest) -> tuple[Moved, Moved]:
    """What TCP brings to a guest and from it at the same time."""
    address = guest.vm.addresses[0].network_address
    async with wired(guest) as netns:
        return await asyncio.gather(
            moved(rig.world, netns, address, FOR_S, 5000),
            moved(netns, rig.world, WORLD, FOR_S, 5001),
        )


async def test_a_limited_vm_moves_what_it_may_and_no_more(rig: FabricRig) -> None:
    """Both ways at once; what was too much is counted, and told once more when the tap is gone."""
    guest = await rig.guest(rx_bytes_per_s=LIMIT, tx_bytes_per_s=LIMIT)
    received, sent = await both_ways(rig, guest)
    for side in (received, sent):
        most = (side.took_s + 1) * LIMIT
        assert LEAST * most <= side.payload_bytes <= most
    taken = rig.fabric.read(guest.vm.index)
    assert taken is not None
    assert received.payload_bytes < taken[0] <= (FOR_S + 2) * LIMIT
    drops = (await rig.fabric.drops())[guest.vm.tap]
    assert drops["rate_tx"] > 0
    assert drops["rate_rx"] > 0
    # Each drop is billed as sent all the same, as others are; what waits at the tap is not.
    assert taken[1] > sent.payload_bytes
    await rig.fabric.detach(guest.vm.tap, guest.owner)
    assert (await rig.fabric.drops())[guest.vm.tap]["rate_rx"] == drops["rate_rx"]
    assert "rate_rx" not in (await rig.fabric.drops()).get(guest.vm.tap, {})


async def test_counts_go_on_with_the_next_incarnation(rig: FabricRig) -> None:
    """Whose tap has the same name: nothing is counted twice, or not at all."""
    guest = await rig.guest(rx_bytes_per_s=2000)
    counts = [0]
    for _ in range(2):
        await overfill(rig, guest)
        counts.append((await rig.fabric.drops())[guest.vm.tap]["rate_rx"])
        await rig.fabric.detach(guest.vm.tap, guest.owner)
        guest = await rig.start(replace(guest.vm, incarnation=guest.vm.incarnation + 1))
        assert (await rig.fabric.drops())[guest.vm.tap]["rate_rx"] == counts[-1]
    first, second = counts[1], counts[2] - counts[1]
    assert first > 0
    # Of 120 datagrams that a guest is sent at once, as many as before find no place.
    assert abs(second - first) <= 5


async def overfill(rig: FabricRig, guest: Guest) -> None:
    """Send a guest more at once than may wait for it."""
    address = str(guest.vm.addresses[0].network_address)
    await rig.beyond(
        "python3", "-c",
        "import socket\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        f"for _ in range(120): s.sendto(bytes(1400), ('{address}', 4000))",
    )  # fmt: skip


_OURS = "tc qdisc {verb} dev {tap} handle dec0: root tbf limit 1m"
DAMAGE = {
    "no bucket": "tc qdisc del dev {tap} root",
    "another kind": "tc qdisc replace dev {tap} root pfifo limit 9",
    "twice the rate": f"{_OURS} rate 16mbit burst 1m",
    "twice the burst": f"{_OURS} rate 8mbit burst 2m",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_bucket_that_somebody_touched_is_put_back(rig: FabricRig, damage: str) -> None:
    """And only that: a second look finds nothing."""
    guest = await rig.guest(rx_bytes_per_s=LIMIT, tx_bytes_per_s=LIMIT)
    before = await rig.inside("tc", "qdisc", "show", "dev", guest.vm.tap)
    assert "rate 8Mbit burst 1000000b" in before
    await rig.inside(*DAMAGE[damage].format(tap=guest.vm.tap, verb="change").split())
    assert (await rig.fabric.reconcile()).kinds == {"limit": 1}
    assert await rig.inside("tc", "qdisc", "show", "dev", guest.vm.tap) == before
    assert await rig.fabric.reconcile() == Repairs({})


@pytest.mark.parametrize(
    "rules", ["goto vm", "limit rate over 2000000 bytes/second goto drop_rate_tx; goto vm", ""]
)
async def test_a_rule_that_somebody_touched_is_put_back(rig: FabricRig, rules: str) -> None:
    """Whether the VM could send more than it may, or nothing any more."""
    guest = await rig.guest(rx_bytes_per_s=LIMIT, tx_bytes_per_s=LIMIT)
    chain = f"netdev decisec {guest.vm.tap}"
    nft = Nft(rig.layout.netns)
    try:
        before = await nft.read_text(f"list chain {chain}")
        assert f"limit rate over {LIMIT} bytes/second goto drop_rate_tx" in before
        await nft.run(f"flush chain {chain}")
        for rule in filter(None, rules.split("; ")):
            await nft.run(f"add rule {chain} {rule}")
        assert (await rig.fabric.reconcile()).kinds == {"rules": 1}
        assert await nft.read_text(f"list chain {chain}") == before
        assert await rig.fabric.reconcile() == Repairs({})
    finally:
        await nft.close()


async def test_the_next_agent_finds_limits_as_they_were(rig: FabricRig) -> None:
    """It repairs nothing, goes on counting, and knows a VM without limits from one with."""
    guest, free = await rig.guest(rx_bytes_per_s=2000, tx_bytes_per_s=1), await rig.guest()
    await overfill(rig, guest)
    dropped = (await rig.fabric.drops())[guest.vm.tap]["rate_rx"]
    assert dropped > 0
    fabric = await rig.again()
    assert await fabric.reconcile() == Repairs({})
    assert (await fabric.drops())[guest.vm.tap]["rate_rx"] == dropped
    assert "tbf" not in await rig.inside("tc", "qdisc", "show", "dev", free.vm.tap)
    added = f"{_OURS} rate 8mbit burst 1m".format(tap=free.vm.tap, verb="add")
    await rig.inside(*added.split())
    assert (await fabric.reconcile()).kinds == {"limit": 1}
    assert "tbf" not in await rig.inside("tc", "qdisc", "show", "dev", free.vm.tap)


@pytest.mark.parametrize("limit", [1, 70_000, 5_000_000_000, 100_000_000_000])
async def test_any_limit_is_one_that_the_kernel_takes(rig: FabricRig, limit: int) -> None:
    """And is read back as it was put."""
    await rig.guest(rx_bytes_per_s=limit, tx_bytes_per_s=limit)
    assert await rig.fabric.reconcile() == Repairs({})
