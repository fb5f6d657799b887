"""The inventory of several gateways that hear of each other late: what is held, and until when."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from gateway.placement import need_of, total
from schemas.errors import ErrorCode
from schemas.ids import new_id
from schemas.vms import VmState
from tests.support.inventory import (
    MS,
    NOW,
    ROOM,
    SPEC,
    ended,
    heartbeat,
    known,
    record,
    status,
)


def test_a_placement_of_another_gateway_counts_as_soon_as_its_record_is_heard_of() -> None:
    """Before any operation, status or heartbeat."""
    inventory = known()
    vm_ids = [new_id() for _ in range(4)]
    for vm_id in vm_ids:
        assert inventory.choose(SPEC, NOW, pool="default", region="local").host
        inventory.take_record(None, record(vm_id, "h"), None)
    assert inventory.taken("h") == total([need_of(SPEC)] * 4)
    refused = inventory.choose(SPEC, NOW, pool="default", region="local")
    assert refused.reasons == {"short of slots": 1}
    inventory.take_record(record(vm_ids[0], "h"), None, None)
    assert inventory.choose(SPEC, NOW, pool="default", region="local").host


def test_a_heartbeat_that_names_the_vm_ends_its_hold() -> None:
    """At whatever time it was written, and even if it comes before the record."""
    inventory, vm_id, late = known(), new_id(), new_id()
    inventory.take_record(None, record(vm_id, "h"), None)
    inventory.take_host("h", heartbeat("h", NOW, ROOM))
    assert inventory.taken("h") == need_of(SPEC)
    inventory.take_host("h", heartbeat("h", NOW, ROOM, vm_id, late))
    assert inventory.taken("h") is None
    inventory.take_record(None, record(late, "h"), None)
    assert inventory.taken("h") is None


def test_a_heartbeat_younger_than_the_hosts_first_word_of_the_vm_ends_its_hold() -> None:
    """For agents that name no VMs; by the host's own clock, in whatever order the two come."""
    for first in ("status", "operation"):
        inventory, vm_id = known(), new_id()
        inventory.take_record(None, record(vm_id, "h"), None)
        at = NOW + timedelta(seconds=2)
        if first == "status":
            inventory.take_status(status(vm_id, "h", at, VmState.CREATING))
        else:
            inventory.take_operation(ended(vm_id, "h", at))
        inventory.take_host("h", heartbeat("h", at, ROOM))
        assert inventory.taken("h") == need_of(SPEC)
        inventory.take_status(status(vm_id, "h", at + 9 * MS))
        inventory.take_host("h", heartbeat("h", at + MS, ROOM))
        assert inventory.taken("h") is None
    inventory, vm_id = known(), new_id()
    inventory.take_host("h", heartbeat("h", at + MS, ROOM))
    inventory.take_record(None, record(vm_id, "h"), status(vm_id, "h", at))
    assert inventory.taken("h") is None


def test_a_hold_ends_with_a_refusal_but_not_with_a_foreign_one() -> None:
    """Only the host that it is on, only a create, and only what left nothing there."""
    inventory, vm_id = known(), new_id()
    inventory.take_record(None, record(vm_id, "h"), None)
    inventory.take_operation(ended(vm_id, "other", NOW, ErrorCode.NO_CAPACITY))
    inventory.take_operation(ended(vm_id, "h", NOW, ErrorCode.NO_CAPACITY, "boot"))
    inventory.take_status(status(vm_id, "other", NOW - 9 * MS))
    inventory.take_operation(ended(vm_id, "h", NOW + MS, ErrorCode.INTERNAL))
    assert inventory.taken("h") == need_of(SPEC)
    inventory.take_operation(ended(vm_id, "h", NOW, ErrorCode.NO_CAPACITY))
    assert inventory.taken("h") is None


def test_a_vm_that_is_moved_holds_room_in_one_place() -> None:
    """Where its record says it is; a changed record that stays on its host holds nothing anew."""
    inventory, vm_id = known(), new_id()
    inventory.take_host("i", heartbeat("i", NOW, ROOM))
    before, after = record(vm_id, "h"), record(vm_id, "i")
    inventory.take_record(None, before, None)
    inventory.take_record(before, after, None)
    assert (inventory.taken("h"), inventory.taken("i")) == (None, need_of(SPEC))
    inventory.take_operation(ended(vm_id, "h", NOW, ErrorCode.NO_CAPACITY))
    assert inventory.taken("i") == need_of(SPEC)
    inventory.take_host("i", heartbeat("i", NOW, ROOM, vm_id))
    inventory.take_host("i", heartbeat("i", NOW + MS, ROOM))
    inventory.take_record(after, msgspec.structs.replace(after, name="new"), None)
    assert inventory.taken("i") is None
    gone = msgspec.structs.replace(after, deleted_at=NOW)
    inventory.take_record(after, gone, None)
    assert inventory.taken("i") is None


def test_nothing_is_held_for_ever_and_old_records_hold_nothing() -> None:
    """A minute and ten seconds after a create that nobody answered its room is free."""
    inventory, vm_id = known(), new_id()
    inventory.take_record(None, record(new_id(), "h", at=NOW - timedelta(seconds=71)), None)
    assert inventory.taken("h") is None
    inventory.take_record(None, record(vm_id, "h", at=NOW), None)
    inventory.choose(SPEC, NOW + timedelta(seconds=70), pool="default", region="local")
    assert inventory.taken("h") == need_of(SPEC)
    inventory.choose(SPEC, NOW + timedelta(seconds=71), pool="default", region="local")
    assert inventory.taken("h") is None


def test_a_host_that_is_gone_is_not_chosen_and_forgets_no_hold() -> None:
    """Its heartbeat has expired; when it comes back its room is as it was."""
    inventory, vm_id = known(), new_id()
    inventory.take_record(None, record(vm_id, "h"), None)
    inventory.take_host("h", None)
    assert inventory.choose(SPEC, NOW, pool="default", region="local").host is None
    assert list(inventory.pool("default", "local")) == []
    inventory.take_host("h", heartbeat("h", NOW, ROOM))
    assert inventory.taken("h") == need_of(SPEC)
    moved = msgspec.structs.replace(heartbeat("h", NOW, ROOM), pool="gold")
    inventory.take_host("h", moved)
    assert inventory.choose(SPEC, NOW, pool="default", region="local").host is None
    assert inventory.choose(SPEC, NOW, pool="gold", region="local").host is moved
