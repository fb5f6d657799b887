"""Peers on a host: symmetric, as both say or last said, and put in force once."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import utc_now
from schemas.commands import BootVm, CreateVm, DeleteVm
from schemas.ids import new_id
from schemas.networking import Networking
from schemas.vms import VmState
from tests.support.memory_host import LooseTasks, MemoryDesk, MemoryDriver, memory_host
from tests.support.memory_kernel import MemoryKernel
from tests.support.memory_peers import MemoryPeers
from tests.support.whole_agent import SPEC, Rig, whole_agent
from vm_agent.agreements import Agreements
from vm_agent.connecting import Connecting
from vm_agent.fleet import Fleet
from vm_agent.network.attachment import Attachment
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.numbers import Numbers
from vm_agent.network.taps import NetworkError
from vm_agent.peering import Peering
from vm_agent.store import Record, RecordStore

pytestmark = pytest.mark.timeout(60)

RANGES = Ranges(IPv6Network("2001:db8::/64"))
NAMES = ("acme", "bolt", "carl", "dora")


def write(path: Path, data: bytes) -> None:
    """As durable as a test needs it."""
    path.write_bytes(data)


class CountingKernel(MemoryKernel):
    """Notes whose rules were changed, and refuses where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[str] = []
        self.refuses = False

    async def change(self, vm: Attachment) -> None:
        """Count what is different, as the fabric does."""
        if self.refuses:
            raise NetworkError("refused as told")
        if self.attached.get(vm.tap, vm) != vm:
            self.changes.append(vm.customer_id)
        await super().change(vm)


class Bench:
    """A host with VMs of some customers, whose agent can be started anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = MemoryPeers()
        self.kernel = CountingKernel()
        self.numbers = Numbers(folder / "numbers.json", write)
        self.full = False
        self.records: dict[UUID, Record] = {}
        self.start()

    def start(self) -> None:
        """A run of the agent, up to its first look."""
        self.words.forget()
        self.kernel.leases = Leases(RANGES, self.numbers)
        host = memory_host(self.kernel, MemoryDriver(self.kernel), self.folder)
        self.fleet = Fleet("h1", RecordStore(self.folder / "vms"), MemoryDesk(), LooseTasks().spawn)
        self.agreements = Agreements(self.folder / "peers.json", self._write)
        self.agreements.load()
        self.connecting = Connecting(host, self.agreements)
        for record in self.records.values():
            assert record.lease is not None
            self.kernel.restore(record.vm_id, record.customer_id, record.lease)
            self.fleet.add(record)
        self.peering = Peering(host, self.fleet, self.connecting, self.agreements, self.words)
        self.kernel.attached = {
            vm.tap: vm for vm in map(self.connecting.attachment, self.records.values()) if vm
        }

    def _write(self, path: Path, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        write(path, data)

    async def come(self, customer_id: str) -> None:
        """A VM of a customer."""
        vm_id = new_id()
        lease = await self.kernel.lease(vm_id, customer_id, Networking())
        record = Record(
            vm_id=vm_id,
            customer_id=customer_id,
            spec=SPEC,
            state=VmState.RUNNING,
            created_at=utc_now(),
            incarnation=1,
            lease=lease,
            nic=self.kernel.nic_of(vm_id, 1, lease),
        )
        self.records[vm_id] = record
        self.fleet.add(record)
        found = self.connecting.attachment(record)
        assert found is not None
        self.kernel.attached[found.tap] = found

    def go(self, customer_id: str) -> None:
        """All VMs of a customer are deleted."""
        for vm_id, record in tuple(self.records.items()):
            if record.customer_id == customer_id:
                assert record.lease is not None
                self.kernel.attached.pop(record.lease.tap)
                self.kernel.release(vm_id)
                self.fleet._vms.pop(vm_id)
                del self.records[vm_id]

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Whose VMs let whose reach them, by rules that stand; every VM alike."""
        names = {vm.tenant: vm.customer_id for vm in self.kernel.attached.values()}
        found: dict[str, set[frozenset[int]]] = {}
        for vm in self.kernel.attached.values():
            found.setdefault(vm.customer_id, set()).add(vm.peers)
        assert all(len(alike) == 1 for alike in found.values()), found
        return {
            (customer_id, names[number])
            for customer_id, (peers,) in found.items()
            for number in peers
        }


@contextmanager
def bench() -> Iterator[Bench]:
    """In a folder of its own."""
    with TemporaryDirectory() as folder:
        yield Bench(Path(folder))


step = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(NAMES), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("come"), st.sampled_from(NAMES)),
    st.tuples(st.just("go"), st.sampled_from(NAMES)),
    st.tuples(st.just("close"), st.sampled_from(NAMES)),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("restart")),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(step, max_size=40))
def test_peers_are_symmetric_and_never_more_than_both_last_said(
    steps: list[tuple[str, ...]],
) -> None:
    """Over customers that come, go and close, a bus that is away, a full disk, and restarts."""

    async def story() -> None:
        with bench() as made:
            heard: dict[str, set[str]] = {}
            for name in NAMES[:2]:
                await made.come(name)
            for kind, *what in steps:
                match kind, what:
                    case "say", (one, other, agrees):
                        made.words.say(one, other, agrees=bool(agrees))
                    case "come", (one,):
                        await made.come(one)
                    case "go", (one,):
                        made.go(one)
                    case "close", (one,):
                        made.words.halves[one] = set()
                        made.words.hear()
                    case "away", (away,):
                        made.words.away = bool(away)
                        made.words.hear()
                    case "full", (full,):
                        made.full = bool(full)
                    case _:
                        made.start()
                before = made.pairs
                await made.peering.follow()
                here = {record.customer_id for record in made.records.values()}
                now = made.pairs
                assert now == {(other, one) for one, other in now}
                if made.words.away:
                    # Nothing is opened that was not heard of, whoever comes back.
                    assert now <= before | {
                        (one, other)
                        for one in here
                        for other in heard.get(one, ())
                        if one in heard.get(other, ())
                    }
                else:
                    heard = {one: set(made.words.halves.get(one, ())) for one in NAMES}
                    assert now == {
                        (one, other)
                        for one in here
                        for other in heard[one] & here
                        if one in heard[other] and one != other
                    }
                count = len(made.kernel.changes)
                await made.peering.follow()
                assert len(made.kernel.changes) == count

    asyncio.run(story())


async def test_what_is_said_again_costs_no_message(tmp_path: Path) -> None:
    """And a change costs one for each VM that it is about, none for others."""
    made = Bench(tmp_path)
    for name in ("acme", "acme", "bolt", "carl"):
        await made.come(name)
    await made.peering.follow()
    assert made.kernel.changes == []
    made.words.say("acme", "bolt")
    await made.peering.follow()
    assert made.kernel.changes == []
    made.words.say("bolt", "acme")
    await made.peering.follow()
    assert sorted(made.kernel.changes) == ["acme", "acme", "bolt"]
    made.words.say("bolt", "acme")
    await made.peering.follow()
    assert len(made.kernel.changes) == 3


async def test_what_the_kernel_refuses_is_tried_again(tmp_path: Path) -> None:
    """Until it is in force."""
    made = Bench(tmp_path)
    for name in ("acme", "bolt"):
        await made.come(name)
    made.words.say("acme", "bolt")
    made.words.say("bolt", "acme")
    made.kernel.refuses = True
    await made.peering.follow()
    assert made.pairs == set()
    made.kernel.refuses = False
    await made.peering.follow()
    assert made.pairs == {("acme", "bolt"), ("bolt", "acme")}


async def test_a_full_disk_keeps_nothing_rather_than_too_much(tmp_path: Path) -> None:
    """What is taken back holds no more, for the next run either, which hears nothing."""
    made = Bench(tmp_path)
    for name in ("acme", "bolt"):
        await made.come(name)
    made.words.say("acme", "bolt")
    made.words.say("bolt", "acme")
    await made.peering.follow()
    assert made.pairs
    made.full = True
    made.words.say("acme", "bolt", agrees=False)
    await made.peering.follow()
    assert made.pairs == set()
    made.words.away = True
    made.start()
    await made.peering.follow()
    assert made.pairs == set()


async def test_who_comes_back_unheard_has_not_what_was_agreed_before(tmp_path: Path) -> None:
    """What an earlier run has kept is over once its customer was heard, or has gone."""
    made = Bench(tmp_path)
    for name in ("acme", "bolt"):
        await made.come(name)
    made.words.say("acme", "bolt")
    made.words.say("bolt", "acme")
    await made.peering.follow()
    made.words.away = True
    made.start()
    await made.peering.follow()
    assert made.pairs == {("acme", "bolt"), ("bolt", "acme")}
    for heard in (False, True):
        made.words.away = not heard
        made.words.say("acme", "bolt", agrees=False)
        await made.peering.follow()
        made.words.away = True
        made.go("acme")
        await made.peering.follow()
        await made.come("acme")
        await made.peering.follow()
        assert made.pairs == set()


def test_what_cannot_be_read_agrees_with_nobody(tmp_path: Path) -> None:
    """A damaged file ends no agent."""
    path = tmp_path / "peers.json"
    path.write_text('{"agreed": [["acme", "bolt"], ["carl"]]}')
    agreements = Agreements(path)
    agreements.load()
    assert agreements.of("acme") == frozenset()


async def test_the_agent_obeys_from_the_first_vm_to_the_last(tmp_path: Path) -> None:
    """Also for VMs that were there before; over a restart that hears nothing."""
    rig = Rig(tmp_path)
    rig.kernel.leases = Leases(RANGES, Numbers(tmp_path / "numbers.json"))

    def peers() -> dict[str, set[str]]:
        names = {vm.tenant: vm.customer_id for vm in rig.kernel.attached.values()}
        return {
            vm.customer_id: {names.get(number, "gone") for number in vm.peers}
            for vm in rig.kernel.attached.values()
        }

    both = {"acme": {"globex"}, "globex": {"acme"}}
    rig.peers.say("acme", "globex")
    rig.peers.say("globex", "acme")
    async with whole_agent(rig):
        await rig.running_vm()
        assert peers() == {"acme": set()}
        vm_id = new_id()
        for kind, fields in ((CreateVm, {"spec": SPEC}), (BootVm, {})):
            await rig.do(kind, vm_id, customer_id="globex", **fields)
        await rig.until(lambda: peers() == both)
    rig.peers.away = True
    rig.peers.forget()
    rig.peers.say("acme", "globex", agrees=False)
    assert rig.kernel.attached
    async with whole_agent(rig):
        assert peers() == both
        rig.peers.away = False
        rig.peers.hear()
        await rig.until(lambda: peers() == {"acme": set(), "globex": set()})
        rig.peers.say("acme", "globex")
        await rig.until(lambda: peers() == both)
        await rig.do(DeleteVm, vm_id, customer_id="globex")
        await rig.until(lambda: peers() == {"acme": set()})
