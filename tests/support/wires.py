"""A fabric in namespaces of a test: the world outside, VMs as tap descriptors, rules that note."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from pyroute2 import IPRoute

from schemas.ids import new_id
from vm_agent import namespace
from vm_agent.drivers.abc import Nic
from vm_agent.network import taps
from vm_agent.network.attachment import GATEWAY_MAC, Attachment
from vm_agent.network.fabric import Fabric, Rules
from vm_agent.network.filtering import FilterRules
from vm_agent.network.layout import Layout, Owner
from vm_agent.network.lease import mac_of
from vm_agent.network.leases import Ranges
from vm_agent.network.nft import NftSession
from vm_agent.network.taps import NetworkError

PREFIX = IPv6Network("2001:db8:1::/56")
IPV4 = IPv4Network("203.0.113.0/28")
WORLD = IPv6Address("2001:db8:ffff::1")
WORLD_IPV4 = IPv4Address("198.51.100.1")
HOST = IPv6Address("2001:db8:ffff::100")
_NODAD = 2
_HEADER_BYTES = 10
"""virtio-net's, before every frame."""


class NotedRules:
    """`Rules` that let everything through and remember what they were told.

    Attributes:
        told: Verbs and taps, in their order.
        standing: VMs whose rules are in force.
        links: Says whether a link is open at the time, for who asks.
        refuses: Verbs that fail.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.standing: dict[str, Attachment] = {}
        self.refuses: set[str] = set()
        self.protected: tuple[IPv6Network | IPv4Network, ...] | None = None
        self.dropped: dict[str, dict[str, int]] = {}

    async def install(
        self, vms: Iterable[Attachment], protected: Iterable[IPv6Network | IPv4Network] = ()
    ) -> bool:
        """`Rules`."""
        wanted = tuple(protected)
        if self.protected == wanted:
            return False
        self.protected = wanted
        self.standing = {vm.tap: vm for vm in vms}
        self._tell("install", "")
        return True

    async def add(self, vm: Attachment) -> None:
        """`Rules`."""
        self._tell("add", vm.tap)
        self.standing[vm.tap] = vm

    async def change(self, vm: Attachment) -> None:
        """`Rules`."""
        self._tell("change", vm.tap)
        self.standing[vm.tap] = vm

    async def remove(self, tap: str) -> None:
        """`Rules`."""
        self._tell("remove", tap)
        self.standing.pop(tap, None)

    async def reconcile(self, vms: Iterable[Attachment]) -> frozenset[str]:
        """`Rules`."""
        wanted = {vm.tap: vm for vm in vms}
        taps = wanted.keys() | self.standing.keys()
        wrong = {tap for tap in taps if wanted.get(tap) != self.standing.get(tap)}
        self.standing = wanted
        return frozenset(wrong)

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """`Rules`."""
        return self.dropped

    async def wrong(self, vm: Attachment) -> tuple[str, ...]:
        """`Rules`."""
        return () if self.standing.get(vm.tap) == vm else (f"{vm.tap} differs",)

    async def close(self) -> None:
        """`Rules`."""

    def _tell(self, verb: str, tap: str) -> None:
        if verb in self.refuses:
            raise NetworkError(f"{verb} is refused as told")
        self.told.append((verb, tap))


@dataclass(eq=False)
class Guest:
    """A VM whose VMM is this process: the tap's descriptor."""

    nic: Nic
    vm: Attachment
    tap: int
    identity: str
    received_bytes: int = 0

    @property
    def owner(self) -> Owner:
        """What its link's alias says."""
        return Owner(self.identity, self.vm.vm_id, self.vm.incarnation)

    def send(self, frame: bytes) -> None:
        """Send an Ethernet frame."""
        os.write(self.tap, bytes(_HEADER_BYTES) + frame)

    def solicitation(self, hops: int = 255) -> bytes:
        """A frame that asks for a router, as a guest that has its link-local address does."""
        source, to = self.vm.link_local, IPv6Address("ff02::2")
        body = struct.pack("!BBHI", 133, 0, 0, 0)
        pseudo = source.packed + to.packed + struct.pack("!II", len(body), 58)
        body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
        ip = struct.pack("!IHBB", 6 << 28, len(body), 58, hops) + source.packed + to.packed
        return bytes.fromhex(f"333300000002{self.vm.mac.replace(':', '')}86dd") + ip + body

    async def advertised(self, within_s: float = 2.0) -> bytes:
        """The router advertisement that comes to it, from its type on; TimeoutError."""
        while True:
            frame = await self.frame(within_s, multicast=True)
            if frame[54] == 134:
                assert frame[:6] == bytes.fromhex("333300000001")
                assert (frame[21], frame[22:38]) == (255, IPv6Address("fe80::1").packed)
                return frame[54:]

    async def frame(self, within_s: float = 2.0, *, multicast: bool = False) -> bytes:
        """The next frame that comes to it; TimeoutError.

        Args:
            within_s: How long to wait.
            multicast: Also what is for everybody: without a filter the host's own stack talks.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within_s):
            while True:
                coming: asyncio.Future[None] = loop.create_future()
                loop.add_reader(self.tap, _ready, coming)
                try:
                    await coming
                finally:
                    loop.remove_reader(self.tap)
                frame = os.read(self.tap, 65_536)[_HEADER_BYTES:]
                self.received_bytes += len(frame)
                if multicast or frame[:2] != b"\x33\x33":
                    return frame

    def udp(self, to: IPv6Address, port: int, data: bytes) -> bytes:
        """A frame with a datagram of its own to an address, by way of the host."""
        source = next(iter(self.vm.addresses)).network_address
        size = 8 + len(data)
        pseudo = source.packed + to.packed + struct.pack("!II", size, 17)
        head = struct.pack("!HHHH", port, port, size, 0)
        head = head[:6] + struct.pack("!H", checksum(pseudo + head + data))
        ip = struct.pack("!IHBB", 6 << 28, size, 17, 64) + source.packed + to.packed
        macs = bytes.fromhex((GATEWAY_MAC + self.vm.mac).replace(":", ""))
        return macs + b"\x86\xdd" + ip + head + data


def _ready(coming: asyncio.Future[None]) -> None:
    if not coming.done():
        coming.set_result(None)


def checksum(data: bytes) -> int:
    """The Internet's (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


@dataclass(eq=False)
class FabricRig:
    """A fabric, and all that a test makes in it."""

    fabric: Fabric
    rules: Rules
    outside: str
    world: str
    guests: list[Guest] = field(default_factory=list)
    slots: int = 0

    @property
    def layout(self) -> Layout:
        """What the fabric is made of."""
        return self.fabric.layout

    async def guest(self, *, attach: bool = True, **more: object) -> Guest:
        """A VM, attached unless told otherwise."""
        self.slots += 1
        slot = 0xF000_0000 + self.slots
        own = PREFIX.network_address + (1 << 16) + self.slots
        vm = Attachment(
            slot=slot, vm_id=new_id(), customer_id="acme", tenant=1 << 20, mac=mac_of(slot),
            addresses=(IPv6Network(own),), incarnation=1,
        )  # fmt: skip
        return await self.start(replace(vm, **more), attach=attach)  # type: ignore[arg-type]

    async def start(self, vm: Attachment, *, attach: bool = True) -> Guest:
        """A VM's interface, opened as a VMM does it."""
        nic = replace(await taps.create(taps.nic_of(vm.vm_id, vm.incarnation)), mac=vm.mac)
        tap = await namespace.in_own_thread(lambda: open_tap(nic.netns, nic.tap))
        guest = Guest(nic, vm, tap, self.layout.identity)
        self.guests.append(guest)
        if attach:
            await self.fabric.attach(nic, vm)
        return guest

    async def inside(self, *command: str) -> str:
        """What a command prints that runs in the fabric."""
        return await run_in(self.layout.netns, *command)

    async def beyond(self, *command: str) -> str:
        """The same in the world."""
        return await run_in(self.world, *command)

    async def outer(self, *command: str) -> str:
        """The same where the uplink leads."""
        return await run_in(self.outside, *command)

    async def again(self) -> Fabric:
        """Let the agent start anew: another `Fabric` over what stands."""
        attached = tuple(self.fabric.attached.values())
        await self.fabric.close()
        if isinstance(self.rules, FilterRules):
            self.rules = FilterRules(self.layout)
        self.fabric = Fabric(self.layout, self.rules, self.outside)
        await self.fabric.open(attached)
        return self.fabric


@asynccontextmanager
async def fabric_rig(
    make_rules: Callable[[Layout], Rules] | None = None, mtu: int = 1500
) -> AsyncIterator[FabricRig]:
    """A fabric with a world outside that answers at `WORLD`; nothing of it is left."""
    outside, world = (f"dct-{new_id().hex[-8:]}-{what}" for what in ("host", "world"))
    layout = Layout(identity=new_id().hex[-8:], ranges=Ranges(PREFIX, (IPV4,)), mtu=mtu)
    rules = make_rules(layout) if make_rules else NotedRules()
    rig = FabricRig(Fabric(layout, rules, outside), rules, outside, world)
    try:
        await namespace.in_own_thread(lambda: make_host(outside))
        await namespace.in_own_thread(lambda: make_world(world, outside))
        await rig.fabric.open()
        yield rig
    finally:
        try:
            await rig.fabric.close()
        finally:
            for guest in rig.guests:
                os.close(guest.tap)
                await taps.destroy(guest.nic)
            for name in (layout.netns, outside, world):
                namespace.remove(name)


async def run_in(netns: str, *command: str) -> str:
    """What a command prints that runs in a namespace; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--net={namespace.NETNS_DIR / netns}", *command,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def silence(netns: str) -> None:
    """Let a namespace say nothing but where it is, and pass nothing on."""
    await nft_in(
        netns,
        """
        table inet silence {
            chain output {
                type filter hook output priority 0; policy drop;
                icmpv6 type { 135, 136 } accept
            }
            chain forward { type filter hook forward priority 0; policy drop; }
        }
        """,
    )


async def nft_in(netns: str, commands: str, *, terse: bool = False) -> str:
    """What commands of nft(8) list in a namespace, by the library: the tool may not be there."""

    def work() -> bytes:
        namespace.enter(netns)
        session = NftSession()
        try:
            return session.run(commands, terse=terse, json=False)
        finally:
            session.close()

    return (await namespace.in_own_thread(work)).decode()


def udp_socket_in(netns: str, address: str, port: int) -> socket.socket:
    """A bound socket of a namespace."""
    namespace.enter(netns)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.bind((address, port))
    return made


def open_tap(netns: str, name: str) -> int:
    """A tap as a VMM opens it; blocks, and stays in the namespace."""
    namespace.enter(netns)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    return tap


def make_host(name: str) -> None:
    """A host that routes, and has a service of its own."""
    namespace.make(name)
    for setting in ("ipv6/conf/all/forwarding", "ipv4/ip_forward"):
        Path("/proc/sys/net", setting).write_text("1")
    with IPRoute() as route:
        index = socket.if_nametoindex("lo")
        route.link("set", index=index, state="up")
        route.addr("add", index=index, address=str(HOST), prefixlen=128)


def make_world(name: str, host: str) -> None:
    """Somebody out there, one hop behind the host."""
    namespace.make(name)
    with IPRoute() as route, (namespace.NETNS_DIR / host).open("rb") as other:
        lo = socket.if_nametoindex("lo")
        route.link("set", index=lo, state="up")
        route.addr("add", index=lo, address=str(WORLD), prefixlen=128)
        route.addr("add", index=lo, address=str(WORLD_IPV4), prefixlen=32)
        route.link(
            "add", ifname="host", kind="veth",
            peer={"ifname": "world", "net_ns_fd": other.fileno()},
        )  # fmt: skip
        index = socket.if_nametoindex("host")
        route.addr("add", index=index, address="fe80::2", prefixlen=64, flags=_NODAD)
        route.link("set", index=index, state="up")
        hop = {"family": socket.AF_INET6, "addr": "fe80::1"}
        route.route("add", dst="::/0", family=socket.AF_INET6, gateway="fe80::1", oif=index)
        route.route("add", dst="0.0.0.0/0", family=socket.AF_INET, via=hop, oif=index)
    namespace.enter(host)
    with IPRoute() as route:
        index = socket.if_nametoindex("world")
        route.addr("add", index=index, address="fe80::1", prefixlen=64, flags=_NODAD)
        route.link("set", index=index, state="up")
        hop = {"family": socket.AF_INET6, "addr": "fe80::2"}
        route.route("add", dst=f"{WORLD}/128", gateway="fe80::2", oif=index)
        route.route("add", dst=f"{WORLD_IPV4}/32", family=socket.AF_INET, via=hop, oif=index)
