"""What an index of corrections copies, and that what it hands out stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from runtime.corrections import Attribution, CorrectionIndex
from schemas.corrections import VmCorrections
from schemas.ids import new_id
from tests.support.corrections import corrected, owned

VMS = [new_id() for _ in range(4)]
VALUES = {
    vm_id: [corrected(vm_id), *(corrected(vm_id, owned(name)) for name in ("acme", "bolt"))]
    for vm_id in VMS
}


def read(index: CorrectionIndex, count: int) -> None:
    for _ in range(count):
        vm_id = new_id()
        index.change(str(vm_id), corrected(vm_id, owned("bolt")))


def test_a_first_reading_copies_nothing() -> None:
    """However many there are, as long as nobody takes a snapshot meanwhile."""
    index = CorrectionIndex()
    read(index, 2000)
    assert (len(index), index.version, index.copied) == (2000, 2000, 0)


def test_a_snapshot_is_copied_once_and_only_if_something_changes() -> None:
    """By the first change after it, with as many VMs as it holds; taken twice, it is one."""
    index = CorrectionIndex()
    read(index, 100)
    assert index.snapshot() is index.snapshot()
    index.change(str(new_id()), None)
    assert index.copied == 0
    read(index, 100)
    assert index.copied == 100
    index.snapshot()
    read(index, 300)
    assert (len(index), index.copied) == (500, 300)


class Simple:
    """An index that copies everything for each change."""

    def __init__(self) -> None:
        self.version = 0
        self.by_vm: Mapping[bytes, str] = {}
        self.versions: dict[bytes, int] = {}

    def change(self, vm_id: UUID, value: VmCorrections | None) -> None:
        after = {known: mark for known, mark in self.by_vm.items() if known != vm_id.bytes}
        if value is not None:
            after[vm_id.bytes] = Attribution(value).mark
        if after == self.by_vm:
            return
        self.by_vm = after
        self.version += 1
        self.versions[vm_id.bytes] = self.version


def marks(snapshot: Mapping[bytes, Attribution]) -> dict[bytes, str]:
    return {vm_id: one.mark for vm_id, one in snapshot.items()}


change = st.sampled_from(VMS).flatmap(
    lambda vm_id: st.tuples(st.just(vm_id), st.sampled_from([None, *VALUES[vm_id]]))
)


@given(st.lists(st.one_of(st.none(), change), max_size=40))
def test_snapshots_are_those_of_an_index_that_copies_each_time(
    steps: list[tuple[UUID, VmCorrections | None] | None],
) -> None:
    """Whatever changes between them and after them; None takes a snapshot."""
    index, simple = CorrectionIndex(), Simple()
    taken: list[tuple[Mapping[bytes, Attribution], Mapping[bytes, str]]] = []
    for step in steps:
        if step is None:
            taken.append((index.snapshot(), simple.by_vm))
            continue
        vm_id, value = step
        index.change(str(vm_id), value)
        simple.change(vm_id, value)
        assert index.version == simple.version
        assert {one.vm_id: one.mark for one in index} == simple.by_vm
        assert len(index) == len(simple.by_vm)
        for vm in VMS:
            found = index.get(vm.bytes)
            assert (found.mark if found else None) == simple.by_vm.get(vm.bytes)
    for version in range(simple.version + 1):
        later = {vm for vm, at in simple.versions.items() if at > version}
        assert index.changed_since(version) == later
    for snapshot, then in taken:
        assert marks(snapshot) == then
    assert index.copied <= len(VMS) * len(taken)
