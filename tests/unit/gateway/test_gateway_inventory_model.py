"""Three gateways that hear of agents and of each other late, as a model: no host is overfilled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from uuid import UUID

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.inventory import Inventory
from gateway.placement import Strategy, lacking, need_of, total
from schemas.errors import ErrorCode
from schemas.hosts import Resources
from schemas.ids import new_id
from schemas.vms import VmRecord, VmSpec, VmState, VmStatus
from tests.support.inventory import (
    BUCKETS,
    MS,
    NOW,
    ended,
    heartbeat,
    record,
    status,
)


@dataclass
class _ModelHost:
    """An agent: it has the last word.

    Attributes:
        skew: What its clock is ahead.
        names: Its heartbeats name what it has admitted.
    """

    host_id: str
    capacity: Resources
    skew: timedelta
    names: bool
    vms: dict[UUID, VmSpec] = field(default_factory=dict)
    admitted: list[UUID] = field(default_factory=list)
    commands: deque[tuple[UUID, VmSpec, int]] = field(default_factory=deque)

    @property
    def free(self) -> Resources:
        used = total(map(need_of, self.vms.values()))
        return Resources(
            **{
                name: getattr(self.capacity, name) - getattr(used, name)
                for name in Resources.__struct_fields__
            }
        )


_Message = Callable[[], None]


@dataclass
class _ModelGateway:
    """A gateway, and what it has yet to hear, by bucket: each bucket's word comes in order."""

    inventory: Inventory
    records: dict[UUID, VmRecord] = field(default_factory=dict)
    statuses: dict[UUID, VmStatus] = field(default_factory=dict)
    unheard: dict[str, deque[_Message]] = field(
        default_factory=lambda: {name: deque() for name in BUCKETS}
    )

    def note(self, vm_id: UUID, new: VmRecord | None) -> None:
        """As the fleet does it."""
        before = self.records.get(vm_id)
        if new is None:
            self.records.pop(vm_id, None)
        elif before is not None and before.deleted_at is not None:
            return
        else:
            self.records[vm_id] = new
        self.inventory.take_record(before, new, self.statuses.get(vm_id))

    def hear_status(self, status: VmStatus) -> None:
        """Likewise: a status may be heard before its record."""
        self.statuses[status.vm_id] = status
        self.inventory.take_status(status)


amounts = st.builds(
    Resources,
    vcpus=st.integers(0, 8),
    memory_mib=st.integers(0, 4096),
    disk_mib=st.just(1000),
    slots=st.integers(0, 6),
)
specs = st.builds(
    VmSpec, image=st.just("tiny"), vcpus=st.integers(1, 3), memory_mib=st.integers(16, 2048)
)


class ThreeGateways(RuleBasedStateMachine):
    """Creates over three gateways that hear of agents and of each other whenever it pleases."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.hosts: dict[str, _ModelHost] = {}
        self.gateways: list[_ModelGateway] = []
        self.refused_by: dict[UUID, set[str]] = {}

    @initialize(
        hosts=st.lists(
            st.tuples(amounts, st.integers(-2000, 2000), st.booleans()), min_size=1, max_size=4
        ),
        strategy=st.sampled_from(list(Strategy)),
    )
    def begin(self, hosts: list[tuple[Resources, int, bool]], strategy: Strategy) -> None:
        self.strategy = strategy
        self.gateways = [_ModelGateway(Inventory(clock=lambda: self.now)) for _ in range(3)]
        for number, (capacity, skew, names) in enumerate(hosts):
            name = f"h{number}"
            self.hosts[name] = _ModelHost(name, capacity, skew * MS, names)
            self.beat(number)
        self.hear_all()

    def tell(self, bucket: str, message: Callable[[_ModelGateway], None]) -> None:
        for gateway in self.gateways:
            gateway.unheard[bucket].append(partial(message, gateway))

    def place(self, number: int, vm_id: UUID, spec: VmSpec) -> bool:
        gateway = self.gateways[number]
        gateway.inventory.release(vm_id)
        host = gateway.inventory.choose(
            spec,
            self.now,
            pool="default",
            region="local",
            strategy=self.strategy,
            avoid=self.refused_by.get(vm_id, frozenset()),
        ).host
        if host is None:
            return False
        gateway.inventory.hold(vm_id, host.host_id, spec, self.now)
        made = record(vm_id, host.host_id, spec, self.now)
        gateway.note(vm_id, made)
        self.tell("vm_specs", lambda g: g.note(vm_id, made))
        self.hosts[host.host_id].commands.append((vm_id, spec, number))
        return True

    @rule(number=st.integers(0, 2), spec=specs)
    def create(self, number: int, spec: VmSpec) -> None:
        self.now += MS
        self.place(number, new_id(), spec)

    @rule(number=st.integers(0, 3))
    def work(self, number: int) -> None:
        """A host takes its next command: it admits, or refuses and the gateway places again."""
        host = self.hosts.get(f"h{number}")
        if host is None or not host.commands:
            return
        self.now += MS
        vm_id, spec, owner = host.commands.popleft()
        at, host_id = self.now + host.skew, host.host_id
        if not lacking(need_of(spec), host.free):
            host.vms[vm_id] = spec
            host.admitted.append(vm_id)
            said, done = status(vm_id, host_id, at), ended(vm_id, host_id, at)
            self.tell("vm_status", lambda g: g.hear_status(said))
            self.tell("operations", lambda g: g.inventory.take_operation(done))
            return
        refusal = ended(vm_id, host_id, at, ErrorCode.NO_CAPACITY)
        self.refused_by.setdefault(vm_id, set()).add(host_id)

        def hear(gateway: _ModelGateway) -> None:
            gateway.inventory.take_operation(refusal)
            if gateway is self.gateways[owner] and not self.place(owner, vm_id, spec):
                gateway.note(vm_id, None)
                self.tell("vm_specs", lambda g: g.note(vm_id, None))

        self.tell("operations", hear)

    @rule(number=st.integers(0, 3), which=st.integers(0, 5))
    def delete(self, number: int, which: int) -> None:
        host = self.hosts.get(f"h{number}")
        if host is None or not host.vms:
            return
        self.now += MS
        vm_id = list(host.vms)[which % len(host.vms)]
        made = record(vm_id, host.host_id, host.vms.pop(vm_id))
        said = status(vm_id, host.host_id, self.now + host.skew, VmState.DELETED)
        self.tell("vm_status", lambda g: g.hear_status(said))
        gone = msgspec.structs.replace(made, deleted_at=self.now)
        self.tell("vm_specs", lambda g: g.note(vm_id, gone))

    @rule(number=st.integers(0, 3))
    def beat(self, number: int) -> None:
        host = self.hosts.get(f"h{number}")
        if host is None:
            return
        self.now += MS
        admitted = host.admitted if host.names else ()
        info = heartbeat(host.host_id, self.now + host.skew, host.free, *admitted)
        self.tell("hosts", lambda g: g.inventory.take_host(info.host_id, info))

    @rule(number=st.integers(0, 2), bucket=st.sampled_from(BUCKETS), messages=st.integers(1, 5))
    def hear(self, number: int, bucket: str, messages: int) -> None:
        gateway = self.gateways[number]
        for _ in range(min(messages, len(gateway.unheard[bucket]))):
            gateway.unheard[bucket].popleft()()

    def hear_all(self) -> None:
        while any(queue for g in self.gateways for queue in g.unheard.values()):
            for number in range(3):
                for bucket in BUCKETS:
                    self.hear(number, bucket, 5)

    @rule(probe=specs)
    def settle(self, probe: VmSpec) -> None:
        """Once all have heard, all know exactly what is free, and nobody ignores a host."""
        for _ in range(20):
            for number in range(len(self.hosts)):
                while self.hosts[f"h{number}"].commands:
                    self.work(number)
            self.hear_all()
        assert not any(host.commands for host in self.hosts.values())
        for number in range(len(self.hosts)):
            self.beat(number)
        self.hear_all()
        fitting = {
            name for name, host in self.hosts.items() if not lacking(need_of(probe), host.free)
        }
        for gateway in self.gateways:
            inventory = gateway.inventory
            for name, host in self.hosts.items():
                assert inventory.taken(name) is None
                assert inventory.hosts[name].free == host.free
            found = inventory.choose(
                probe, self.now, pool="default", region="local", strategy=self.strategy
            ).host
            assert (found.host_id in fitting) if found else not fitting

    @invariant()
    def no_host_is_over_its_capacity(self) -> None:
        for host in self.hosts.values():
            assert not lacking(total(map(need_of, host.vms.values())), host.capacity)


def test_a_record_that_is_heard_last_holds_room_until_the_next_heartbeat() -> None:
    """An agent that names no VM in its heartbeats has told status and operation before."""
    model = ThreeGateways()
    room = Resources(vcpus=1, memory_mib=16, disk_mib=1000, slots=1)
    model.begin([(room, 0, False)], Strategy.SPREAD)
    spec = VmSpec(image="tiny", vcpus=1, memory_mib=16)
    model.create(0, spec)
    model.work(0)
    model.hear(1, "vm_status", 1)
    model.hear(1, "operations", 1)
    model.settle(spec)


ThreeGateways.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
test_three_gateways_never_overfill_nor_ignore_a_host = ThreeGateways.TestCase
