"""Sends from VMs' taps what must not get through, whoever lives, and looks where it comes out.

A frame is written to the descriptor that a VMM holds of its tap, as a guest does that has taken
its VMM over; and to taps that nobody holds, wherever they are. What is looked at: what leaves by
any tap or by the way out of the fabric, and what the fabric's own sockets hear.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import count
from pathlib import Path
from uuid import UUID

from schemas.networking import Inbound
from tests.network.suite import OneCpu
from tests.support import packets as p
from tests.support.connected_agent import Surroundings
from tests.support.fabric import inside, listen
from tests.support.held_taps import held_by, open_unheld, send
from tests.support.readable import readable
from tests.support.wires import HOST, PREFIX, WORLD, WORLD_IPV4, udp_socket_in
from vm_agent.cgroups import Cgroups
from vm_agent.data_dir import identity
from vm_agent.network.attachment import GATEWAY_MAC, interface_id
from vm_agent.network.layout import netns_of
from vm_agent.network.lease import Lease
from vm_agent.network.taps import nic_of
from vm_agent.ports import incarnation_name
from vm_agent.store import Record, RecordStore

_PORT = 4000
_PATIENCE_S = 5.0
_EVERY_FRAME = 3
_EVERYBODY, _NOBODYS = IPv6Address("ff02::1"), IPv6Address("2001:db8:dead::1")
_OUTSIDE, _SOCKETS = "the way out", "a socket of the host"

Make = Callable[[bytes], bytes]
Seen = list[tuple[str, bytes]]


class Intruder:
    """Watches one agent's fabric, and breaks into VMs of it.

    Args:
        data_dir: The agent's.
        bystander: A VM of another customer, open to the world, that runs all the time.
        inner: All frames of the fabric.
        outer: Those at the host's end of its way out.
        listeners: Sockets of the fabric, which hear what the host itself takes.
        world: A socket out there.

    Attributes:
        written: Bytes that went into taps in place of a guest's, by VM and incarnation.
        attacks: How often it was tried.
        taps: Through how many taps.
    """

    def __init__(
        self,
        data_dir: Path,
        bystander: UUID,
        inner: socket.socket,
        outer: socket.socket,
        listeners: list[socket.socket],
        world: socket.socket,
    ) -> None:
        self.written: Counter[tuple[UUID, int]] = Counter()
        self.attacks = self.taps = 0
        self._data_dir = data_dir
        self._fabric = netns_of(identity(data_dir))
        self._groups = Cgroups(identity(data_dir))
        self._inner, self._outer = inner, outer
        self._listeners = listeners
        self._world = world
        self._bystander = bystander
        self._numbers = count(1)

    def attack(self, vm_id: UUID, *, runs: bool = False) -> list[str]:
        """Send all of it from a VM's taps and to the VM; what is wrong, in words.

        Args:
            vm_id: Whose. Meanwhile the bystander has to be heard, and reached.
            runs: It is connected: what it may send and get has to arrive.
        """
        vm, other = self._record(vm_id), self._record(self._bystander)
        assert other is not None
        assert other.lease is not None
        self.attacks += 1
        taps: list[tuple[str, int, bool]] = []
        harm: dict[bytes, str] = {}
        unwanted: dict[bytes, str] = {}
        good: dict[bytes, tuple[str, str]] = {}
        self._look()
        with OneCpu(), ExitStack() as stack:
            if vm is not None and vm.lease is not None:
                taps = list(self._taps(vm, stack))
                self.taps += len(taps)
                for where, tap, held in taps:
                    into = partial(self._write, vm if held else None, tap)
                    for name, make in _harmful(vm.lease, other.lease).items():
                        harm[mark := self._mark()] = f"{name}, from {where}"
                        into(make(mark))
                    good[mark := self._mark()] = _OUTSIDE, f"what it may send, from {where}"
                    into(_datagram(vm.lease, _address(vm.lease), WORLD)(mark))
                visit = self._visit(vm.lease)
                if vm.spec.networking.inbound is Inbound.OPEN:
                    good[visit] = vm.lease.tap, "what the world sends to it"
                else:
                    unwanted[visit] = "what the world sends to it, though it is closed"
            seen = self._look_until_others_are_seen(other, stack)
        own = vm.lease.tap if vm is not None and vm.lease is not None else ""
        found = [
            f"{harm[mark]}, was seen at {place}"
            for place, frame in seen
            for mark in harm
            if mark in frame and place != own  # the sender may be told that it must not
        ]
        found += [
            f"{name}, comes"
            for mark, name in unwanted.items()
            if any(mark in frame for at, frame in seen if at == own)
        ]
        if runs:
            found += [] if taps else ["its VMM holds no tap"]
            found += [
                f"{name}, does not arrive"
                for mark, (place, name) in good.items()
                if not any(mark in frame for at, frame in seen if at == place)
            ]
        return found

    def _taps(self, vm: Record, stack: ExitStack) -> Iterator[tuple[str, int, bool]]:
        """Every tap of a VM: what it is, a descriptor, and whether its VMM has it open."""
        group = self._groups.group(incarnation_name(vm.vm_id, vm.incarnation))
        pids = {vm.vmm.pid} if vm.vmm else set()
        for pid in pids | (group.pids() if group is not None else set()):
            for tap in held_by(pid):
                stack.callback(os.close, tap)
                yield "its VMM", tap, True
        if vm.vmm is not None:
            return  # what comes into its tap is billed until it is settled, and no guest sent it
        assert vm.lease is not None
        nic = nic_of(vm.vm_id, vm.incarnation)
        for netns, name in ((nic.netns, nic.tap), (self._fabric, vm.lease.tap)):
            unheld = open_unheld(netns, name)
            if unheld is not None:
                stack.callback(os.close, unheld)
                yield f"{name} in {netns}", unheld, False

    def _write(self, vm: Record | None, tap: int, frame: bytes) -> None:
        """Send a frame, in place of a guest if it has one."""
        with suppress(OSError):  # it is closed
            send(tap, frame)
            if vm is not None:
                self.written[vm.vm_id, vm.incarnation] += len(frame)

    def _visit(self, lease: Lease) -> bytes:
        mark = self._mark()
        self._world.sendto(mark, (str(_address(lease)), _PORT))
        return mark

    def _look_until_others_are_seen(self, other: Record, stack: ExitStack) -> Seen:
        """All that was seen before a frame of the bystander and one to it, which come last.

        Raises:
            TimeoutError: One of them is not seen.
        """
        assert other.lease is not None
        assert other.vmm is not None
        (tap,) = held_by(other.vmm.pid)
        stack.callback(os.close, tap)
        out = self._mark()
        self._write(other, tap, _datagram(other.lease, _address(other.lease), WORLD)(out))
        awaited = {(_OUTSIDE, out), (other.lease.tap, self._visit(other.lease))}
        seen: Seen = []
        until = time.monotonic() + _PATIENCE_S
        while True:
            seen += self._look()
            awaited = {
                (place, mark)
                for place, mark in awaited
                if not any(mark in frame for at, frame in seen if at == place)
            }
            if not awaited:
                return seen
            if time.monotonic() > until:
                raise TimeoutError(f"whoever has nothing to do with it is cut off: {awaited}")
            readable([self._inner, self._outer, *self._listeners], 0.1)

    def _look(self) -> Seen:
        """What waits: frames that left the fabric, by tap or uplink, and what sockets heard."""
        seen: Seen = []
        for wire in (self._inner, self._outer):
            with suppress(BlockingIOError):
                while True:
                    frame, (name, _, kind, *_) = wire.recvfrom(1 << 16)
                    leaves = kind == socket.PACKET_OUTGOING
                    if wire is self._inner and leaves and name.startswith("vm"):
                        seen.append((name, frame))
                    elif wire is self._outer and not leaves:
                        seen.append((_OUTSIDE, frame))
        for listener in self._listeners:
            with suppress(BlockingIOError):
                while True:
                    seen.append((_SOCKETS, listener.recv(1 << 16)))
        return seen

    def _mark(self) -> bytes:
        return b"\xdc\x0f" + next(self._numbers).to_bytes(6, "big")

    def _record(self, vm_id: UUID) -> Record | None:
        while True:
            with suppress(FileNotFoundError):  # another VM's was removed meanwhile
                records = RecordStore(self._data_dir / "vms").load()
                return next((record for record in records if record.vm_id == vm_id), None)


@contextmanager
def intruder(data_dir: Path, around: Surroundings, bystander: UUID) -> Iterator[Intruder]:
    """An intruder in the fabric of an agent that runs."""
    who = identity(data_dir)
    netns = netns_of(who)
    with ExitStack() as stack:

        def opened(where: str, make: Callable[[], socket.socket]) -> socket.socket:
            return stack.enter_context(inside(where, make))

        inner = opened(netns, _listen_everywhere)
        outer = opened(around.host, lambda: listen(f"dcf{who}"))
        listeners = [
            opened(netns, _hear_icmp),
            opened(netns, lambda: udp_socket_in(netns, "::", _PORT)),
        ]
        world = opened(around.world, lambda: udp_socket_in(around.world, str(WORLD), _PORT))
        yield Intruder(data_dir, bystander, inner, outer, listeners, world)


def _listen_everywhere() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_PACKET, kind, socket.htons(_EVERY_FRAME))


def _hear_icmp() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)


def _harmful(lease: Lease, other: Lease) -> dict[str, Make]:
    """What must not get anywhere from a VM, given a mark of eight octets."""
    own, theirs = _address(lease), _address(other)
    link_local = IPv6Address("fe80::") + int(interface_id(lease.mac))

    def advertisement(mark: bytes) -> bytes:
        body = p.router_advertisement(lease.mac, mark)
        message = p.icmp6(link_local, _EVERYBODY, p.RA, body)
        packet = p.ip6(link_local, _EVERYBODY, p.ICMP6, message, hops=255)
        return p.ether(lease.mac, "33:33:00:00:00:01", p.ETH_IP6, packet)

    def claim(mark: bytes) -> bytes:
        body = p.neighbor(theirs, lease.mac, flags=0x20, option=2) + b"\x0e\x01" + mark[2:]
        message = p.icmp6(theirs, _EVERYBODY, p.NA, body)
        packet = p.ip6(theirs, _EVERYBODY, p.ICMP6, message, hops=255)
        return p.ether(lease.mac, "33:33:00:00:00:01", p.ETH_IP6, packet)

    def old(mark: bytes) -> bytes:
        source = IPv4Address("198.51.100.77")
        packet = p.ip4(source, WORLD_IPV4, p.UDP, p.udp(source, WORLD_IPV4, 9, _PORT, mark))
        return p.ether(lease.mac, GATEWAY_MAC, p.ETH_IP4, packet)

    def borrowed(mark: bytes) -> bytes:
        frame = _datagram(lease, own, WORLD)(mark)
        return frame[:6] + p.mac(other.mac) + frame[12:]

    return {
        "a router advertisement": advertisement,
        "another's address claimed": claim,
        "another's address as source": _datagram(lease, theirs, WORLD),
        "nobody's address as source": _datagram(lease, _NOBODYS, WORLD),
        "another's MAC as source": borrowed,
        "an IPv4 address that it has not": old,
        "a datagram to another customer": _datagram(lease, own, theirs),
        "a datagram to the host": _datagram(lease, own, HOST),
        "a datagram to the fabric's own address": _datagram(lease, own, PREFIX.network_address + 1),
    }


def _datagram(lease: Lease, source: IPv6Address, to: IPv6Address) -> Make:
    def make(mark: bytes) -> bytes:
        packet = p.ip6(source, to, p.UDP, p.udp(source, to, 9, _PORT, mark))
        return p.ether(lease.mac, GATEWAY_MAC, p.ETH_IP6, packet)

    return make


def _address(lease: Lease) -> IPv6Address:
    """One that is the VM's."""
    network = IPv6Network(lease.prefix)
    host_bits = int(interface_id(lease.mac)) if network.prefixlen < network.max_prefixlen else 0
    return network.network_address + host_bits
