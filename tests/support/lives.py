"""Lives of VMs on several hosts, as Hypothesis draws them, and the frames that tell of them.

A VM starts, idles, works, is paused, stops or crashes, starts again on the same host or on another
one; a host's agent is restarted, a host goes down and takes its VMs with it. What the counters were
is the truth that bills are held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from hypothesis import strategies as st

from schemas.frames import Frame, SampleFlag
from schemas.ids import new_id
from schemas.units import TICK_MS
from schemas.vms import METERS, VmRecord, VmState
from tests.support.frames import Row, frame, record
from tests.support.store import Reading

_MEMORY_MIB = 128
_NS_PER_TICK = TICK_MS * 10**6
GAPS = (1, 1, 1, 2, 7, 150, 599, 600, 601, 1300)
"""Ticks from one frame to the next: within a minute, over its border, over several."""
AMOUNTS = (0, 0, 1, 4096, 100_000_000, 2**40 + 1)
"""Bytes moved between two frames."""
ACTS = ("work", "work", "work", "idle", "pause", "stop", "crash", "stay off", "start", "move")


@dataclass(slots=True)
class _Vm:
    vm_id: UUID
    customer: str
    known: VmRecord
    incarnation: int = 0
    state: VmState = VmState.STOPPED
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return self.known.host_id

    @property
    def runs(self) -> bool:
        return self.state is not VmState.STOPPED


@dataclass(frozen=True, slots=True)
class World:
    """What has happened.

    Attributes:
        frames: Of all hosts, oldest tick first.
        records: Each VM's first one.
        moves: What the gateway wrote before a VM started on another host, and the first tick there.
        readings: Every row of every frame.
        hosts: All there are.
        owners: Which host each VM's incarnation ran on.
        ticks_ms: When there were frames.
    """

    frames: Sequence[Frame]
    records: Sequence[VmRecord]
    moves: Sequence[tuple[int, VmRecord]]
    readings: Sequence[Reading]
    ticks_ms: Sequence[int]
    hosts: Sequence[str]
    owners: Mapping[tuple[UUID, int], str]

    def last(self) -> dict[tuple[UUID, int], dict[str, int]]:
        """The last counters of each incarnation."""
        return {(r.vm_id, r.incarnation): dict(r.counters) for r in self.readings}


@dataclass(slots=True)
class _Host:
    host_id: str
    run_id: UUID = field(default_factory=new_id)
    seq: int = 0


def _vm(customer: str, host: str, vcpus: int) -> _Vm:
    known = record(
        new_id(), customer=customer, host=host, vcpus=vcpus, memory_mib=_MEMORY_MIB
    )  # fmt: skip
    return _Vm(known.vm_id, customer, known)


@st.composite
def worlds(draw: st.DrawFn, customers: Sequence[str], base_ms: int) -> World:
    """Up to three hosts, four VMs, twenty frames of each host."""
    hosts = [_Host(f"host-{n}") for n in range(draw(st.integers(1, 3)))]
    vms = [
        _vm(
            draw(st.sampled_from(customers)), draw(st.sampled_from(hosts)).host_id,
            draw(st.sampled_from([1, 2, 8])),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]  # fmt: skip
    first = [vm.known for vm in vms]
    owners: dict[tuple[UUID, int], str] = {}
    frames: list[Frame] = []
    moves: list[tuple[int, VmRecord]] = []
    readings: list[Reading] = []
    ticks_ms: list[int] = []
    tick_ms = base_ms + TICK_MS * draw(st.integers(0, 1500))
    gap = 0
    for _ in range(draw(st.integers(2, 20))):
        lost_hosts = {h.host_id for h in hosts if draw(st.integers(0, 30)) == 0}
        told: dict[str, list[Row]] = {}
        for vm in vms:
            before = vm.known
            row = _live(draw, vm, gap, lost_hosts, hosts)
            if row is not None:
                told.setdefault(vm.host, []).append(row)
                owners[vm.vm_id, vm.incarnation] = vm.host
                if vm.known is not before:
                    moves.append((tick_ms, vm.known))
        for host in hosts:
            if host.host_id in lost_hosts or draw(st.integers(0, 9)) == 0:
                host.run_id, host.seq = new_id(), 0
            rows = told.get(host.host_id)
            if not rows:
                continue
            one = frame(
                rows, run_id=host.run_id, seq=host.seq, tick_ms=tick_ms, host=host.host_id,
                read_late_ms=draw(st.integers(0, 80)),
            )  # fmt: skip
            host.seq += 1
            frames.append(one)
            readings += _readings(rows, vms, tick_ms)
        ticks_ms.append(tick_ms)
        gap = draw(st.sampled_from(GAPS))
        tick_ms += gap * TICK_MS
    return World(frames, first, moves, readings, ticks_ms, [h.host_id for h in hosts], owners)


def _live(
    draw: st.DrawFn, vm: _Vm, gap: int, lost_hosts: set[str], hosts: Sequence[_Host]
) -> Row | None:
    """What a VM did since the last frame, and the row that tells of it; None if it is off."""
    if vm.host in lost_hosts:
        vm.state = VmState.STOPPED
        return None
    act = draw(st.sampled_from(ACTS))
    if not vm.runs:
        if act in ("stay off", "stop", "crash"):
            return None
        if act == "move":
            other = draw(st.sampled_from(hosts)).host_id
            if other in lost_hosts:
                return None
            vm.known = vm.known.moved(other, last_incarnation=vm.incarnation, left_at=None)
        vm.incarnation += 1
        vm.state, vm.counters = VmState.RUNNING, dict.fromkeys(METERS, 0)
        return Row(vm.vm_id, dict(vm.counters), vm.incarnation, flags=SampleFlag.BASELINE)
    counters = vm.counters
    counters["uptime_ms"] += gap * TICK_MS
    counters["mem_kib_ms"] += gap * TICK_MS * _MEMORY_MIB * 1024
    if vm.state is VmState.RUNNING and act != "idle":
        counters["cpu_ns"] += (
            gap * _NS_PER_TICK * vm.known.spec.vcpus * draw(st.integers(0, 100)) // 100
        )
        for meter in METERS[3:]:
            counters[meter] += draw(st.sampled_from(AMOUNTS))
    flags = 0
    if act in ("stop", "crash"):
        vm.state, flags = VmState.STOPPED, SampleFlag.FINAL
    elif act == "pause":
        vm.state = VmState.PAUSED
    elif act == "work":
        vm.state = VmState.RUNNING
    return Row(vm.vm_id, dict(counters), vm.incarnation, flags=flags, state=vm.state)


def _readings(rows: Sequence[Row], vms: Sequence[_Vm], tick_ms: int) -> Iterator[Reading]:
    customers = {vm.vm_id: vm.customer for vm in vms}
    for row in rows:
        yield Reading(
            row.vm_id, tick_ms, row.incarnation, row.flags, row.counters,
            customer=customers[row.vm_id],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delivery:
    """A frame as it comes to a collector.

    Attributes:
        restarted: The collector has forgotten everything just before.
        forged: All its rows are of VMs that were elsewhere then.
    """

    frame: Frame
    redelivered: bool
    restarted: bool
    forged: bool = False


@st.composite
def deliveries(draw: st.DrawFn, frames: Sequence[Frame]) -> list[Delivery]:
    """Some lost, some twice, out of order; the collector is restarted now and then."""
    if not frames:
        return []
    lost = draw(st.sets(st.integers(0, len(frames) - 1), max_size=len(frames) // 2))
    arrived = [one for number, one in enumerate(frames) if number not in lost]
    again = draw(st.lists(st.sampled_from(arrived), max_size=6)) if arrived else []
    how = draw(st.sampled_from(["in order", "late", "any order"]))
    if how == "any order":
        order = draw(st.permutations([*arrived, *again]))
    else:
        order = [*arrived, *again]
        if how == "late" and order:
            for _ in range(draw(st.integers(1, 4))):
                late = order.pop(draw(st.integers(0, len(order) - 1)))
                order.insert(draw(st.integers(0, len(order))), late)
    seen: set[str] = set()
    out = []
    for one in order:
        repeated = one.msg_id in seen
        seen.add(one.msg_id)
        out.append(Delivery(one, repeated and draw(st.booleans()), draw(st.integers(0, 9)) == 0))
    return out


@st.composite
def forgeries(draw: st.DrawFn, world: World) -> list[Delivery]:
    """Frames of hosts that claim what ran on another one: sooner, later, or never on theirs."""
    made = []
    for reading in draw(st.lists(st.sampled_from(world.readings), max_size=4)):
        owner = world.owners[reading.vm_id, reading.incarnation]
        liar = draw(st.sampled_from([h for h in (*world.hosts, "host-x") if h != owner]))
        more = {meter: count + 2**41 for meter, count in reading.counters.items()}
        row = Row(reading.vm_id, more, reading.incarnation, flags=draw(st.sampled_from([0, 2])))
        one = frame([row], run_id=new_id(), tick_ms=reading.tick_ms, host=liar)
        made.append(Delivery(one, redelivered=False, restarted=False, forged=True))
    return made


@st.composite
def mixed(draw: st.DrawFn, first: Sequence[Delivery], more: Sequence[Delivery]) -> list[Delivery]:
    """Some deliveries somewhere among others."""
    out = list(first)
    for one in more:
        out.insert(draw(st.integers(0, len(out))), one)
    return out
