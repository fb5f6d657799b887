"""A small fabric in namespaces of its own: taps that tests hold open, and an uplink with a peer.

    uplink namespace: wan0 (2001:db8:ffff::2) ═ up0 (2001:db8:ffff::1) :fabric namespace: taps

No packet leaves the two namespaces. There are no rules until a test brings some.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute

from schemas.ids import new_id
from tests.support.readable import readable
from vm_agent import namespace
from vm_agent.network.attachment import (
    GATEWAY_IPV4,
    GATEWAY_LINK_LOCAL,
    GATEWAY_MAC,
    Attachment,
)
from vm_agent.network.nft import LIBRARY, NftMissingError, NftSession
from vm_agent.network.plan import FabricPlan, HostService

__all__ = ["GATEWAY_MAC"]

T = TypeVar("T")

GATEWAY = IPv6Address("2001:db8:1::1")
UPLINK_MAC = "0a:00:00:00:01:01"
WAN_MAC = "0a:00:00:00:01:02"
WAN = IPv6Address("2001:db8:ffff::2")
WAN_V4 = IPv4Address("203.0.113.2")
OUTSIDE = IPv6Address("2001:db8:ffff::99")
"""Somebody in the world."""

PLAN = FabricPlan(
    uplink="up0",
    prefix=IPv6Network("2001:db8:1::/48"),
    gateways=(GATEWAY_LINK_LOCAL, GATEWAY_IPV4, GATEWAY, IPv6Address("2001:db8:ffff::1")),
    services=(
        HostService(address=GATEWAY, protocol="udp", port=53),
        HostService(address=GATEWAY_IPV4, protocol="udp", port=53),
    ),
    protected=(IPv6Network("2001:db8:ffff:aaaa::/64"), IPv4Network("203.0.113.128/25")),
    prefix_v4=IPv4Network("192.0.2.0/24"),
)

VNET_HEADER_BYTES = 12

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x10  # checksums, segmentation, as Firecracker asks for
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17


def available() -> str | None:
    """None if a fabric with rules can be made here, else the reason why not."""
    if os.geteuid() != 0:
        return "not root, so there are no taps and no rules of nftables"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun does not exist: the tun module is not there"
    try:
        NftSession().close()
    except NftMissingError as error:
        return f"{LIBRARY} is not there: {error}"
    return None


def inside(netns: str, work: Callable[[], T]) -> T:
    """Do something in a namespace, in a thread that ends with it."""

    def entered() -> T:
        namespace.enter(netns)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()


def vm(slot: int, customer: str, tenant: int, **more: object) -> Attachment:
    """A VM with one address, which follows from its slot."""
    made = Attachment(
        slot=slot,
        vm_id=new_id(),
        customer_id=customer,
        tenant=tenant,
        mac=bytes([6, 0, *slot.to_bytes(4, "big")]).hex(":"),
        addresses=(IPv6Network((int(IPv6Address("2001:db8:1::")) + 0x1000 + slot, 128)),),
    )
    return replace(made, **more)  # type: ignore[arg-type] # whatever an attachment has


@dataclass(slots=True)
class Guest:
    """A VM of which only the tap is real: what is written to it, the VM sent."""

    vm: Attachment
    descriptor: int

    @property
    def address(self) -> IPv6Address:
        """Its first one."""
        return self.vm.addresses[0].network_address

    def send(self, frame: bytes, header: bytes = bytes(VNET_HEADER_BYTES)) -> None:
        """Send a frame. The kernel has dealt with it on return.

        Raises:
            OSError: The kernel refuses the header of virtio, or the frame.
        """
        os.write(self.descriptor, header + frame)

    def received(self) -> Iterator[bytes]:
        """Frames that wait for the VM."""
        with suppress(BlockingIOError):
            while True:
                yield os.read(self.descriptor, 1 << 17)[VNET_HEADER_BYTES:]

    def waits(self, patience_s: float) -> bool:
        """Whether a frame comes for the VM in time."""
        return bool(readable([self.descriptor], patience_s))


@dataclass(slots=True)
class Fabric:
    """Namespaces, guests by number of slot, the wire behind the uplink, and a service of the host.

    The service is on UDP port 53, and says what it was told.
    """

    netns: str
    uplink_netns: str
    wire: socket.socket
    names: socket.socket
    guests: dict[int, Guest] = field(default_factory=dict)

    def send_from_outside(self, frame: bytes) -> None:
        """Send a frame to the uplink."""
        self.wire.send(frame)

    def seen_outside(self) -> Iterator[bytes]:
        """Frames that left through the uplink."""
        with suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, _, _) = self.wire.recvfrom(1 << 17)
                if kind != socket.PACKET_OUTGOING:
                    yield frame

    def answer(self) -> None:
        """Let the host's service answer all that was asked so far."""
        with suppress(BlockingIOError):
            while True:
                question, asker = self.names.recvfrom(1 << 16)
                self.names.sendto(question, asker)

    def plug(self, *vms: Attachment) -> None:
        """Make VMs' taps, up, with routes and fixed neighbours."""

        def work() -> None:
            self.guests |= {one.slot: Guest(one, open_tap(one.tap)) for one in vms}
            _route(vms)

        inside(self.netns, work)

    def unplug(self, slot: int) -> None:
        """Remove a VM's tap."""
        os.close(self.guests.pop(slot).descriptor)


@contextmanager
def fabric(vms: Sequence[Attachment]) -> Iterator[Fabric]:
    """A fabric with these VMs' taps, up, with routes and fixed neighbours."""
    tag = new_id().hex[-8:]
    netns, uplink_netns = f"decisec-test-fabric-{tag}", f"decisec-test-uplink-{tag}"
    made: Fabric | None = None
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(namespace.make, uplink_netns).result()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(namespace.make, netns).result()
            pool.submit(_wire_up, uplink_netns).result()
        wire = inside(uplink_netns, listen)
        made = Fabric(netns, uplink_netns, wire, inside(netns, serve))
        made.plug(*vms)
        yield made
    finally:
        if made is not None:
            made.wire.close()
            made.names.close()
            for guest in made.guests.values():
                os.close(guest.descriptor)
        for name in (netns, uplink_netns):
            namespace.remove(name)


def _set(**values: str) -> None:
    """Settings below /proc/sys/net, of this thread's namespace; `__` is a slash."""
    for name, value in values.items():
        Path("/proc/sys/net", name.replace("__", "/")).write_text(value)


def _wire_up(uplink_netns: str) -> None:
    for setting in ("ipv6/conf/all/forwarding", "ipv4/ip_forward"):
        Path("/proc/sys/net", setting).write_text("1")
    _set(ipv6__conf__default__accept_dad="0", ipv6__conf__default__addr_gen_mode="1")
    _set(ipv4__conf__all__rp_filter="0", ipv4__conf__default__rp_filter="0")
    _set(ipv4__conf__all__send_redirects="0", ipv4__conf__default__send_redirects="0")
    _set(ipv6__conf__default__mldv2_unsolicited_report_interval="0")
    with IPRoute() as route:
        route.link("add", ifname="up0", kind="veth", peer={"ifname": "wan0"})
        up, wan = socket.if_nametoindex("up0"), socket.if_nametoindex("wan0")
        descriptor = os.open(namespace.NETNS_DIR / uplink_netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            route.link("set", index=wan, net_ns_fd=descriptor, address=WAN_MAC)
        finally:
            os.close(descriptor)
        route.link("set", index=up, address=UPLINK_MAC, state="up")
        lo = socket.if_nametoindex("lo")
        route.link("set", index=lo, state="up")
        route.addr("add", index=lo, address=str(GATEWAY), prefixlen=128)
        route.addr("add", index=up, address="2001:db8:ffff::1", prefixlen=128)
        route.addr("add", index=up, address="fe80::1:1", prefixlen=64)
        route.addr("add", index=up, address="203.0.113.1", prefixlen=32)
        for address, length in ((WAN, 128), (WAN_V4, 32)):
            route.route("add", dst=f"{address}/{length}", oif=up, scope="link")
            route.neigh("add", dst=str(address), lladdr=WAN_MAC, ifindex=up, state="permanent")
        route.route("add", dst="::/0", gateway=str(WAN), oif=up)
        route.route("add", dst="0.0.0.0/0", gateway=str(WAN_V4), oif=up)
        route.route("add", dst=str(PLAN.prefix), type="unreachable", priority=4096)
    _compute_checksums("up0")
    inside(uplink_netns, _far_end)


def _compute_checksums(interface: str) -> None:
    """Take the interface's offloads away, so that frames leave it as they would leave a host."""
    value = array.array("B", struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sQ16x", interface.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def _far_end() -> None:
    _set(ipv6__conf__all__disable_ipv6="1", ipv6__conf__default__disable_ipv6="1")
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex("wan0"), state="up")


def listen(interface: str = "wan0") -> socket.socket:
    """All frames of an interface, for a thread that is where it is."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    wire.bind((interface, _ETH_P_ALL))
    wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    wire.setblocking(False)
    return wire


def serve() -> socket.socket:
    """A service on UDP port 53, for a thread that is in the fabric."""
    service = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    service.setblocking(False)
    service.bind(("::", 53))
    return service


def open_tap(name: str) -> int:
    """A tap as Firecracker opens it; it is made if it is not there."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    return descriptor


def _route(vms: Sequence[Attachment]) -> None:
    with IPRoute() as route:
        for one in vms:
            tap = socket.if_nametoindex(one.tap)
            route.link("set", index=tap, address=GATEWAY_MAC, state="up")
            route.addr("add", index=tap, address=str(GATEWAY_LINK_LOCAL), prefixlen=64)
            link_local = str(one.link_local)
            route.neigh("add", dst=link_local, lladdr=one.mac, ifindex=tap, state="permanent")
            for network in one.addresses:
                route.route("add", dst=str(network), gateway=link_local, oif=tap)
            if one.ipv4 is not None:
                route.addr("add", index=tap, address=str(GATEWAY_IPV4), prefixlen=32)
                route.route("add", dst=f"{one.ipv4}/32", oif=tap, scope="link")
                route.neigh(
                    "add", dst=str(one.ipv4), lladdr=one.mac, ifindex=tap, state="permanent"
                )
