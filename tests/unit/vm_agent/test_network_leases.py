"""Leases: nothing is given out twice, whenever the agent dies; what is used up is refused."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtime.errors import FatalError
from schemas.errors import ErrorCode
from schemas.ids import new_id
from schemas.networking import Networking
from tests.support.memory_agent import InlineExecutor
from vm_agent.network.attachment import interface_id
from vm_agent.network.lease import Lease, mac_of
from vm_agent.network.leases import SLOTS, Leases, Ranges
from vm_agent.network.numbers import FIRST_TENANT, Numbers
from vm_agent.states import RefusedError
from vm_agent.store import write_durably

RANGES = Ranges(
    IPv6Network("2001:db8:1:8::/62"), (IPv4Network("203.0.113.8/31"), IPv4Network("198.51.100.7"))
)
PLAIN = Networking()
BOTH = Networking(ipv4=True, prefix=64)


def leases_in(folder: Path, ranges: Ranges = RANGES) -> Leases:
    """As an agent has them after its start, before it has read its records."""
    return Leases(ranges, Numbers(folder / "numbers.json"))


async def test_a_plain_vm_gets_the_address_that_its_guest_makes_itself(tmp_path: Path) -> None:
    """The shared /64 and what follows from the MAC; asked again, it is the same."""
    leases = leases_in(tmp_path)
    vm_id = new_id()
    lease = await leases.take(vm_id, "acme", PLAIN)
    assert IPv6Network(lease.prefix) == IPv6Network(
        RANGES.shared.network_address + int(interface_id(lease.mac))
    )
    assert lease.addresses == (lease.prefix.removesuffix("/128"),)
    assert IPv6Address(lease.addresses[0]) != RANGES.gateway
    assert lease.mac == mac_of(lease.slot)
    assert 0 < lease.slot <= SLOTS
    assert lease.tenant >= FIRST_TENANT
    assert await leases.take(vm_id, "acme", PLAIN) is lease


async def test_a_customer_has_one_number(tmp_path: Path) -> None:
    """As long as it has a VM here; another one has another, and nobody gets it later."""
    leases = leases_in(tmp_path)
    vms = [new_id() for _ in range(4)]
    first, second = [await leases.take(vm, "acme", PLAIN) for vm in vms[:2]]
    other = await leases.take(vms[2], "globex", PLAIN)
    assert first.tenant == second.tenant != other.tenant
    leases.release(vms[0])
    assert leases.tenants["acme"] == first.tenant
    leases.release(vms[1])
    assert "acme" not in leases.tenants
    again = await leases.take(vms[3], "initech", PLAIN)
    assert again.tenant not in (first.tenant, other.tenant)


async def test_what_is_used_up_is_refused_by_name(tmp_path: Path) -> None:
    """And nothing is held by who was refused."""
    leases = leases_in(tmp_path)
    vms = [new_id() for _ in range(3)]
    given = [await leases.take(vm, "acme", BOTH) for vm in vms]
    assert {lease.prefix for lease in given} == {f"2001:db8:1:{n}::/64" for n in ("9", "a", "b")}
    assert {lease.ipv4 for lease in given} == {"203.0.113.8", "203.0.113.9", "198.51.100.7"}
    for wish, words in (
        (Networking(prefix=64), "no /64 networks left: all 3 are taken"),
        (Networking(ipv4=True), "no IPv4 addresses left: all 3 are taken"),
    ):
        refused = new_id()
        with pytest.raises(RefusedError, match=words) as caught:
            await leases.take(refused, "acme", wish)
        assert caught.value.info.code is ErrorCode.NO_CAPACITY
        assert refused not in leases.held
    leases.release(vms[1])
    again = await leases.take(new_id(), "acme", BOTH)
    assert (again.prefix, again.ipv4) == (given[1].prefix, given[1].ipv4)


async def test_a_host_with_a_64_has_no_networks_to_give(tmp_path: Path) -> None:
    """Which it says."""
    leases = leases_in(tmp_path, Ranges(IPv6Network("2001:db8::/64")))
    for wish in (Networking(prefix=64), Networking(ipv4=True)):
        with pytest.raises(RefusedError, match="it has none to give"):
            await leases.take(new_id(), "acme", wish)


async def test_what_is_given_back_rests_the_longest(tmp_path: Path) -> None:
    """Also over a restart."""
    first = leases_in(tmp_path)
    early = new_id()
    taken = await first.take(early, "acme", BOTH)
    first.release(early)
    second = leases_in(tmp_path)
    for _ in range(2):
        later = new_id()
        given = await second.take(later, "acme", BOTH)
        assert (given.prefix, given.ipv4) != (taken.prefix, taken.ipv4)
        assert given.slot != taken.slot
        second.release(later)


async def test_a_lease_from_ranges_of_before_is_replaced(tmp_path: Path) -> None:
    """When the VM is asked for anew; slot and customer's number stay."""
    before = leases_in(tmp_path)
    vm_id = new_id()
    old = await before.take(vm_id, "acme", PLAIN)
    moved = leases_in(tmp_path, Ranges(IPv6Network("2001:db8:2::/64")))
    moved.restore(vm_id, "acme", old)
    new = await moved.take(vm_id, "acme", PLAIN)
    assert (new.slot, new.tenant) == (old.slot, old.tenant)
    assert IPv6Network(new.prefix).subnet_of(IPv6Network("2001:db8:2::/64"))


async def test_slots_wrap_around_those_that_are_held(tmp_path: Path) -> None:
    """After four thousand million VMs."""
    path = tmp_path / "numbers.json"
    path.write_bytes(b'{"slot": %d}' % (SLOTS - 1))
    leases = leases_in(tmp_path)
    leases.restore(new_id(), "acme", Lease(slot=1, tenant=FIRST_TENANT, prefix="::/128"))
    taken = [(await leases.take(new_id(), "acme", PLAIN)).slot for _ in range(2)]
    assert taken == [SLOTS, 2]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """With what moving it away means."""
    path = tmp_path / "numbers.json"
    path.write_text("{")
    with pytest.raises(FatalError, match=r"numbers\.json.*move it away"):
        Numbers(path)


class CrashError(OSError):
    """The agent dies here."""


class LeasesMachine(RuleBasedStateMachine):
    """VMs come and go, and the agent dies before or after any write to disk.

    Records are a dictionary here; what was written to it survives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="dsl-")
        self.runner = asyncio.Runner()
        self.runner.get_loop().set_default_executor(InlineExecutor(1))
        self.records: dict[UUID, tuple[str, Networking, Lease]] = {}
        self.slots: list[int] = []
        self.writes_left: int | None = None
        self._start()

    def teardown(self) -> None:
        self.runner.close()
        self.directory.cleanup()

    def _write(self, path: Path, data: bytes) -> None:
        """A write that may be the last thing that this run does: odd before, even after it."""
        if self.writes_left is None:
            write_durably(path, data)
            return
        self.writes_left -= 1
        if self.writes_left == 0:
            raise CrashError
        write_durably(path, data)
        self.writes_left -= 1
        if self.writes_left == 0:
            raise CrashError

    def _start(self) -> None:
        self.writes_left = None
        folder = Path(self.directory.name)
        self.leases = Leases(RANGES, Numbers(folder / "numbers.json", self._write))
        for vm_id, (customer, _, lease) in self.records.items():
            self.leases.restore(vm_id, customer, lease)

    def _create(self, customer: str, wish: Networking) -> None:
        vm_id = new_id()
        lease = self.runner.run(self.leases.take(vm_id, customer, wish))
        self._write_record(vm_id, (customer, wish, lease))
        self.slots.append(lease.slot)

    def _write_record(self, vm_id: UUID, record: tuple[str, Networking, Lease]) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left == 0:
                raise CrashError
        self.records[vm_id] = record
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left == 0:
                raise CrashError

    customers = st.sampled_from(["acme", "globex", "initech"])
    wishes = st.builds(Networking, ipv4=st.booleans(), prefix=st.sampled_from([128, 64]))

    @rule(customer=customers, wish=wishes)
    def create(self, customer: str, wish: Networking) -> None:
        """A VM, or the word that there is no address."""
        networks = sum(wish.prefix == 64 for _, wish, _ in self.records.values())
        ipv4 = sum(wish.ipv4 for _, wish, _ in self.records.values())
        room = not (wish.prefix == 64 and networks == 3) and not (wish.ipv4 and ipv4 == 3)
        try:
            self._create(customer, wish)
        except RefusedError:
            assert not room
        else:
            assert room

    @rule(customer=customers, wish=wishes, at=st.integers(1, 10))
    def create_and_die(self, customer: str, wish: Networking, at: int) -> None:
        """Cut short at any write."""
        self.writes_left = at
        with contextlib.suppress(CrashError, RefusedError):
            self._create(customer, wish)
        # A record that made it to disk is a VM that is there.
        self.slots += [
            lease.slot for _, _, lease in self.records.values() if lease.slot not in self.slots
        ]
        self._start()

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """What a VM had is free again."""
        if self.records:
            vm_id = data.draw(st.sampled_from(sorted(self.records)))
            del self.records[vm_id]
            self.leases.release(vm_id)

    @rule()
    def restart(self) -> None:
        """Everybody keeps what it has."""
        before = dict(self.leases.held)
        self._start()
        assert dict(self.leases.held) == before
        for vm_id, (customer, wish, lease) in self.records.items():
            assert self.runner.run(self.leases.take(vm_id, customer, wish)) == lease

    @invariant()
    def nothing_is_given_out_twice(self) -> None:
        """Slots never again, the rest not while it is held; a number is one customer's."""
        held = [lease for _, _, lease in self.records.values()]
        assert len(set(self.slots)) == len(self.slots)
        prefixes = [IPv6Network(lease.prefix) for lease in held]
        assert len(set(prefixes)) == len(prefixes)
        assert not any(a.overlaps(b) for a in prefixes for b in prefixes if a is not b)
        ipv4 = [lease.ipv4 for lease in held if lease.ipv4]
        assert len(set(ipv4)) == len(ipv4)
        pairs = {(customer, lease.tenant) for customer, _, lease in self.records.values()}
        assert len({c for c, _ in pairs}) == len({t for _, t in pairs}) == len(pairs)


LeasesMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestLeases = LeasesMachine.TestCase
