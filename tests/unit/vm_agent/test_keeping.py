"""What the agent keeps on disk: records, the newest tick, reservations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import utc_now
from runtime.errors import FatalError
from schemas.errors import ErrorCode
from schemas.frames import encode_frame
from schemas.hosts import Resources
from schemas.ids import new_id
from schemas.units import MIB
from schemas.vms import TRANSITIONS, VmSpec, VmState
from vm_agent.admission import Admission
from vm_agent.checkpoint import Checkpoint
from vm_agent.data_dir import owned
from vm_agent.disks import sync
from vm_agent.framing import FrameBuilder
from vm_agent.metering import Row
from vm_agent.settings import AgentSettings
from vm_agent.states import PERMITTED, IllegalTransitionError, RefusedError, advance, permit
from vm_agent.store import Record, RecordStore
from vm_agent.ticks import Tick

SPEC = VmSpec(image="tiny")


def a_record() -> Record:
    return Record(
        vm_id=new_id(),
        customer_id="acme",
        spec=SPEC,
        state=VmState.CREATED,
        created_at=utc_now(),
    )


def test_records_survive_and_leftovers_of_a_crash_do_not(tmp_path: Path) -> None:
    """A write that was cut short leaves the record before it."""
    store = RecordStore(tmp_path)
    record = a_record()
    store.put(record)
    (tmp_path / f"{record.vm_id}.tmp").write_bytes(b'{"vm_id":')
    after = RecordStore(tmp_path)
    after.clear_leftovers()
    assert after.load() == [record]
    assert not list(tmp_path.glob("*.tmp"))
    store.delete(record.vm_id)
    store.delete(record.vm_id)
    assert store.load() == []


def test_a_damaged_record_stops_the_agent(tmp_path: Path) -> None:
    """It names the file; going on would lose a VM."""
    (tmp_path / "x.json").write_bytes(b"{}")
    with pytest.raises(FatalError, match=r"x\.json"):
        RecordStore(tmp_path).load()


def test_the_newest_whole_tick_is_found_again(tmp_path: Path) -> None:
    """Also if the write of the one after it was cut short at any byte."""
    builder = FrameBuilder("h1", new_id())
    vm_id = new_id()
    checkpoint = Checkpoint(tmp_path)
    for n in range(5):
        row = Row(1, VmState.RUNNING, 0, 0, (n, n, n, n, n, n, n))
        frames = builder.build(Tick(100 * n, 0, 0, 0), 0, [(vm_id, row)])
        checkpoint.write([encode_frame(frame) for frame in frames])
    checkpoint.close()
    found = Checkpoint(tmp_path)
    found.close()
    assert (found.tick_ms, found.values) == (400, {(vm_id, 1): (4,) * 7})
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        for cut in (0, 3, 8, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            again = Checkpoint(tmp_path)
            again.close()
            assert again.tick_ms in (300, 400)
        path.write_bytes(whole)


def test_a_new_run_never_overwrites_the_newest_tick_first(tmp_path: Path) -> None:
    """Its first write replaces the older file, whichever that is."""
    builder = FrameBuilder("h1", new_id())
    for n in range(1, 6):
        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.tick_ms == (100 * (n - 1) if n > 1 else -1)
        frames = builder.build(Tick(100 * n, 0, 0, 0), 0, [])
        checkpoint.write([encode_frame(frame) for frame in frames])
        checkpoint.close()
        kept = {p.read_bytes() for p in tmp_path.iterdir() if p.stat().st_size}
        assert len(kept) == min(n, 2)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 8), st.integers(16, 512), st.booleans()),
        max_size=30,
    )
)
def test_what_is_given_out_never_passes_the_capacity(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """Reserved once per VM, refused whole, released whole."""
    capacity = Resources(vcpus=16, memory_mib=1024, disk_mib=10, slots=4)
    admission = Admission(capacity)
    ids = [new_id() for _ in range(6)]
    held: dict[int, tuple[int, int]] = {}
    for which, vcpus, memory_mib, release in steps:
        if release:
            admission.release(ids[which])
            held.pop(which, None)
        else:
            spec = VmSpec(image="tiny", vcpus=vcpus, memory_mib=memory_mib)
            free = admission.free
            fits = free.slots > 0 and vcpus <= free.vcpus and memory_mib <= free.memory_mib
            if which in held or fits:
                admission.reserve(ids[which], spec)
                held.setdefault(which, (vcpus, memory_mib))
            else:
                with pytest.raises(RefusedError) as refused:
                    admission.reserve(ids[which], spec)
                assert refused.value.info.code is ErrorCode.NO_CAPACITY
        assert admission.free.slots == 4 - len(held)
        assert admission.free.vcpus == 16 - sum(v for v, _ in held.values()) >= 0
        assert admission.free.memory_mib == 1024 - sum(m for _, m in held.values()) >= 0


def test_a_verb_begins_only_where_the_state_machine_has_a_way_on() -> None:
    """What is permitted leads somewhere; everything else is refused with a reason."""
    first_step = {
        "boot": VmState.BOOTING,
        "shutdown": VmState.STOPPING,
        "pause": VmState.PAUSED,
        "resume": VmState.RUNNING,
        "reboot": VmState.STOPPING,
    }
    for verb, to in first_step.items():
        for state in VmState:
            if state in PERMITTED[verb]:
                permit(verb, state)
                assert advance(state, to) is to
            else:
                with pytest.raises(RefusedError):
                    permit(verb, state)
    with pytest.raises(RefusedError) as refused:
        permit("migrate", VmState.RUNNING)
    assert refused.value.info.code is ErrorCode.UNSUPPORTED
    for state, following in TRANSITIONS.items():
        for to in set(VmState) - following:
            with pytest.raises(IllegalTransitionError):
                advance(state, to)


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    """The second one is told so; after the first it may come."""
    with owned(tmp_path / "a") as folder:
        assert folder.is_absolute()
        with pytest.raises(FatalError, match="another agent"), owned(tmp_path / "a"):
            pass
    with owned(tmp_path / "a"):
        pass


def test_room_for_disks_does_not_shrink_with_each_restart(tmp_path: Path) -> None:
    """What disks take already is part of the capacity, since their VMs hold it of that."""
    settings = AgentSettings(host_id="h1", data_dir=str(tmp_path))
    before = settings.capacity().disk_mib
    disk = tmp_path / "disks" / "a.img"
    disk.parent.mkdir()
    disk.write_bytes(os.urandom(64 * MIB))
    sync(disk)
    # Other programs use the disk as well meanwhile.
    assert abs(settings.capacity().disk_mib - before) < 48


def test_what_is_reserved_is_told_in_full_when_the_capacity_was_lowered() -> None:
    """Nothing is free then; a new VM is refused, those that are here keep what they hold."""
    admission = Admission(Resources(vcpus=2, memory_mib=100, disk_mib=10, slots=1))
    for _ in range(2):
        admission.restore(new_id(), VmSpec(image="tiny", vcpus=1, memory_mib=80))
    assert admission.reserved == Resources(vcpus=2, memory_mib=160, disk_mib=0, slots=2)
    assert admission.free == Resources(vcpus=0, memory_mib=0, disk_mib=10, slots=0)
    with pytest.raises(RefusedError):
        admission.reserve(new_id(), SPEC)
