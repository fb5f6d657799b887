"""The fabric: one namespace per agent that holds every VM's tap and the way out.

A tap comes here after its VMM has opened it, closed and without an address; its rules are put in
force first, and only then is it opened. It goes in the order rules, link. Whatever the agent dies
amid, what is left lets nothing through, and its alias says whose it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Protocol, TypeVar

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from vm_agent import namespace
from vm_agent.drivers.abc import Nic
from vm_agent.network import base
from vm_agent.network.advertising import Advertiser
from vm_agent.network.attachment import Attachment
from vm_agent.network.changes import delete_links, put
from vm_agent.network.items import Link, find_link, read_links
from vm_agent.network.layout import Layout, Owner, owner_in
from vm_agent.network.mending import Repairs, in_order, repair
from vm_agent.network.moving import move
from vm_agent.network.netlink import Netlink, opened
from vm_agent.network.path_check import Facts, examine
from vm_agent.network.readings import Readings
from vm_agent.network.reasons import Reason
from vm_agent.network.resident import Resident, refused
from vm_agent.network.shaping import Overflow
from vm_agent.network.taps import NetworkError
from vm_agent.network.turnstile import Turnstile

_log = structlog.get_logger("decisec.fabric")

T = TypeVar("T")


class Rules(Protocol):
    """The packet filter of the fabric. All verbs may be repeated; errors are `NetworkError`."""

    async def install(
        self, vms: Iterable[Attachment], protected: Iterable[IPv6Network | IPv4Network] = ()
    ) -> bool:
        """Put the base rules in force, and those of these VMs. Whether they were not.

        Nothing of `protected` is reached by way of the uplink.
        """

    async def add(self, vm: Attachment) -> None:
        """Put a VM's rules in force; its tap is there, and closed."""

    async def change(self, vm: Attachment) -> None:
        """Put in force what is different now."""

    async def remove(self, tap: str) -> None:
        """Take a VM's rules away, which cuts it off."""

    async def reconcile(self, vms: Iterable[Attachment]) -> frozenset[str]:
        """Make the kernel hold just these VMs' rules; the taps it did not hold right."""

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """Packets dropped so far, by tap and reason."""

    async def wrong(self, vm: Attachment) -> tuple[str, ...]:
        """What of a VM's rules, and of those below them, does not stand as it should, in words."""

    async def close(self) -> None:
        """Let go; what is in force stays."""


class Fabric:
    """One agent's fabric.

    Args:
        layout: What it is made of.
        rules: Its packet filter.
        outside: The namespace that the uplink leads to; empty for the agent's own.
        protected: What VMs must not reach through the uplink, besides the addresses out there.
        name_servers: What guests are told to ask for names.
    """

    def __init__(
        self,
        layout: Layout,
        rules: Rules,
        outside: str = "",
        protected: Iterable[IPv6Network | IPv4Network] = (),
        name_servers: Iterable[IPv6Address] = (),
    ) -> None:
        self.layout = layout
        self._rules = rules
        self._inside = Resident(layout.netns, make=True)
        self._outside = Resident(outside)
        self._protected = tuple(protected)
        self._turnstile = Turnstile()
        self._ruling = asyncio.Lock()
        self._deleting = asyncio.Lock()
        self._leaving: dict[str, asyncio.Future[Exception | None]] = {}
        self._attached: dict[str, Attachment] = {}
        self._readings: Readings | None = None
        self._ruling_here = False
        self._by_index: dict[int, Attachment] = {}
        self._overflow = Overflow()
        self._advertiser = Advertiser(self._by_index.get, layout.mtu, name_servers)

    @property
    def attached(self) -> Mapping[str, Attachment]:
        """The VMs that are connected, by tap."""
        return self._attached

    async def open(self, vms: Iterable[Attachment] = ()) -> None:
        """Make what is missing of the fabric, with those of these VMs that have a tap in it.

        What else is in it of this agent's is removed by the first `reconcile`.

        Raises:
            NetworkError: The kernel refuses; no VM may be attached.
        """
        try:
            await self._inside.run(lambda route: base.settle(route, self.layout))
            await base.lay_uplink(self.layout, self._inside, self._outside)
            await self._recognise(vms)
            await self._inside.run(lambda _: self._advertiser.open())
        except (OSError, NetlinkError) as error:
            raise NetworkError(f"cannot make the fabric: {refused(error)}") from error
        await self._install()
        self._ruling_here = True
        self._advertiser.listen()

    async def look(self, vms: Iterable[Attachment]) -> None:
        """Take over VMs in a fabric that takes no new ones: it is counted what they use.

        Raises:
            NetworkError: There is no fabric.
        """
        try:
            await self._inside.run(lambda _: None)
            await self._recognise(vms)
        except (OSError, NetlinkError) as error:
            raise NetworkError(f"cannot look into the fabric: {refused(error)}") from error

    async def close(self) -> None:
        """Let go of it; everything stands and works on. May be called twice."""
        self._advertiser.close()
        await self._rules.close()
        if self._readings is not None:
            self._readings.close()
            self._readings = None
        await self._inside.close()
        await self._outside.close()

    async def attach(self, nic: Nic, vm: Attachment) -> None:
        """Connect a VM whose VMM has opened its tap, and whose guest does not run yet. 20 ms.

        Cut short, it has left what `detach` removes.

        Raises:
            NetworkError: The kernel refuses; nothing gets through.
        """
        async with self._turnstile.together():
            await self._clear_name(vm)
            try:
                link = self.layout.tap(vm)
                await namespace.in_own_thread(lambda: move(nic, link, vm.index, self.layout.netns))
                async with self._ruling:
                    await self._rules.add(vm)
                    self._note(vm)
                await self._inside.run(lambda _: self._connect(vm))
            except (OSError, NetlinkError) as error:
                raise NetworkError(f"cannot connect {vm.tap}: {refused(error)}") from error

    async def change(self, vm: Attachment) -> None:
        """Let other rules hold for a VM; nothing happens if it is not attached.

        Raises:
            NetworkError: The kernel refuses.
        """
        async with self._turnstile.together():
            if self._attached.get(vm.tap, vm) == vm:
                return
            async with self._ruling:
                await self._rules.change(vm)
                self._note(vm)

    async def detach(self, tap: str, owner: Owner) -> None:
        """Remove a VM's tap with all that is about it; those that go at one time go together.

        Nothing happens if it is not there, or is another incarnation's.

        Raises:
            NetworkError: The kernel refuses.
        """
        async with self._turnstile.together():
            link = await self._link(tap)
            if link is not None and owner_in(link.alias) != owner:
                return
            async with self._ruling:
                vm = self._attached.get(tap)
                if vm is not None and vm.incarnation != owner.incarnation:
                    return
                self._forget(tap)
                await self._unrule(tap)
            if link is not None:
                await self._delete(tap)
            self._overflow.forget(tap)

    async def reconcile(self) -> Repairs:
        """Compare all that stands with what should, and put it right. What is foreign stays.

        Raises:
            NetworkError: The kernel refuses.
        """
        self._advertiser.refresh(self._attached.values(), asyncio.get_running_loop().time())
        async with self._turnstile.alone():
            vms = tuple(self._attached.values())
            # The host's own addresses may have changed.
            renewed = await self._install()
            ruled = await self._rules.reconcile(vms)
            try:
                repairs = await self._inside.run(lambda _: repair(self.layout, vms))
                outer = await self._outside.run(lambda _: base.mend(self.layout.outside()))
            except (OSError, NetlinkError) as error:
                raise NetworkError(f"cannot repair the fabric: {refused(error)}") from error
        kinds = dict(repairs.kinds)
        for kind, count in (*outer.items(), ("rules", len(ruled) + renewed)):
            kinds[kind] = kinds.get(kind, 0) + count
        return Repairs({kind: n for kind, n in kinds.items() if n}, repairs.lost)

    async def taps(self) -> dict[str, Owner]:
        """All taps of this agent in the fabric, by name."""
        links = await self._inside.run(lambda _: _read(read_links))
        found = {link.name: owner_in(link.alias) for link in links.values()}
        return {
            name: owner
            for name, owner in found.items()
            if owner is not None and owner.identity == self.layout.identity
        }

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """Packets dropped so far, by tap and reason."""
        async with self._turnstile.together():
            drops = {tap: dict(some) for tap, some in (await self._rules.drops()).items()}
            try:
                overflow = await self._inside.run(lambda _: self._overflow.read())
            except OSError as error:
                raise NetworkError(f"cannot count drops: {error}") from error
        for tap, count in overflow.items():
            drops.setdefault(tap, {})[Reason.RATE_RX.label] = count
        return drops

    async def examine(self, tap: str) -> Facts:
        """Look at one VM's path, with probes; nothing is changed.

        Raises:
            NetworkError: It is not connected, or the kernel refuses.
        """
        async with self._turnstile.together():
            vm = self._attached.get(tap)
        if vm is None:
            raise NetworkError("it is not connected")
        try:
            return await examine(vm, self.layout, self._inside, self._outside, self._rules)
        except (OSError, NetlinkError) as error:
            raise NetworkError(f"cannot look at {tap}: {refused(error)}") from error

    def read(self, index: int) -> tuple[int, int] | None:
        """Bytes that the guest of a tap has received and sent; None if it is not here."""
        return self._readings.read(index) if self._readings is not None else None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Read the bytes of all taps now, for everybody who asks within the block."""
        if self._readings is None:
            yield
            return
        with self._readings.at_once():
            yield

    def _note(self, vm: Attachment) -> None:
        self._attached[vm.tap] = self._by_index[vm.index] = vm
        if vm.rx_bytes_per_s:
            self._overflow.watch(vm.tap, vm.index)
        if self._readings is not None:
            self._readings.watch(vm.index)

    def _forget(self, tap: str) -> None:
        vm = self._attached.pop(tap, None)
        if vm is not None:
            del self._by_index[vm.index]
            if self._readings is not None:
                self._readings.forget(vm.index)

    async def _recognise(self, vms: Iterable[Attachment]) -> None:
        if self._readings is None:
            self._readings = await self._inside.run(lambda _: Readings())
        there = await self.taps()
        identity = self.layout.identity
        for vm in vms:
            if there.get(vm.tap) == Owner(identity, vm.vm_id, vm.incarnation):
                self._note(vm)

    async def _install(self) -> bool:
        try:
            own = await self._outside.run(lambda _: base.addresses())
        except (OSError, NetlinkError) as error:
            raise NetworkError(f"cannot look around the host: {refused(error)}") from error
        return await self._rules.install(self._attached.values(), (*self._protected, *own))

    def _connect(self, vm: Attachment) -> None:
        put(sorted((self.layout.tap(vm), *self.layout.behind(vm)), key=in_order))

    def _remove(self, taps: list[str]) -> None:
        self._overflow.leave(taps)
        delete_links(taps)

    async def _clear_name(self, vm: Attachment) -> None:
        """Make way for a tap: an earlier incarnation may have left one."""
        link = await self._link(vm.tap)
        if link is None:
            return
        owner = owner_in(link.alias)
        if owner is None or (owner.identity, owner.vm_id) != (self.layout.identity, vm.vm_id):
            raise NetworkError(f"there is a foreign link {vm.tap} in {self.layout.netns}")
        async with self._ruling:
            self._forget(vm.tap)
            await self._rules.remove(vm.tap)
        await self._delete(vm.tap)

    async def _unrule(self, tap: str) -> None:
        try:
            await self._rules.remove(tap)
        except NetworkError:
            # Where this agent keeps no rules there may be none; the link goes all the same.
            if self._ruling_here:
                raise

    async def _link(self, name: str) -> Link | None:
        try:
            found = await self._inside.run(lambda _: _read(lambda n: find_link(n, name)))
        except (OSError, NetlinkError) as error:
            raise NetworkError(f"cannot look into the fabric: {refused(error)}") from error
        return found[1] if found is not None else None

    async def _delete(self, tap: str) -> None:
        loop = asyncio.get_running_loop()
        done = self._leaving.setdefault(tap, loop.create_future())
        async with self._deleting:
            # Whoever waited for its turn may have gone with those before.
            if not done.done():
                batch, self._leaving = self._leaving, {}
                problem: Exception | None = None
                try:
                    await self._inside.run(lambda _: self._remove(list(batch)))
                except (OSError, NetlinkError) as error:
                    problem = error
                finally:
                    for one in batch.values():
                        one.set_result(problem)
        if (cause := done.result()) is not None:
            raise NetworkError(f"cannot remove {tap}: {cause}") from cause


def _read(question: Callable[[Netlink], T]) -> T:
    with opened() as netlink:
        return question(netlink)
