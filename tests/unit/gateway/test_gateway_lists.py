"""Lists of VMs, operations and snapshots: filters, orders, and cursors while things come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import cursors, listing
from gateway.attempts import boot_id, create_id
from gateway.catalog import Catalog
from gateway.cursors import Position
from gateway.errors import RefusedError
from gateway.history import History, place_of
from gateway.host_names import Naming
from gateway.listing import MAX_EXAMINED, VmQuery
from gateway.snapshot_index import SnapshotIndex
from runtime.clock import utc_now
from schemas.api import VmList, VmView
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.requests import Sort
from schemas.subjects import vm_key
from schemas.vms import SnapshotInfo, SnapshotKind, VmRecord, VmSpec, VmState, VmStatus

NOW = utc_now()


class MemoryFleet:
    """What `listing.page` needs of a fleet."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.records: dict[UUID, VmRecord] = {}
        self.looked = 0

    def add(self, name: str = "", **spec: Any) -> UUID:
        record = VmRecord(
            vm_id=new_id(),
            customer_id="acme",
            host_id=spec.pop("host", "h1"),
            spec=VmSpec(**{"image": "tiny", **spec}),
            name=name,
            created_at=NOW,
        )
        self.records[record.vm_id] = record
        self.catalog.add("acme", name, record.vm_id)
        return record.vm_id

    def remove(self, vm_id: UUID) -> None:
        self.catalog.remove("acme", self.records.pop(vm_id).name, vm_id)

    def wanted(
        self,
        customer_id: str,
        name: str,
        wants: Callable[[VmRecord, VmState], bool],
        naming: Naming,
    ) -> VmView | None:
        self.looked += 1
        vm_id = UUID(name)
        record = self.records[vm_id]
        assert record.customer_id == customer_id
        if not wants(record, VmState.RUNNING):
            return None
        return VmView(
            vm_id=vm_id, customer_id=customer_id, name=record.name, state=VmState.RUNNING,
            spec=record.spec, host_id=naming(record), created_at=record.created_at,
        )  # fmt: skip

    async def page(self, query: VmQuery, cursor: str = "", limit: int = 100) -> VmList:
        fleet: Any = self
        return await listing.page(fleet, "acme", query, cursor=cursor, limit=limit)

    async def all(self, query: VmQuery, limit: int = 3) -> list[UUID]:
        found, cursor = [], ""
        while True:
            page = await self.page(query, cursor, limit)
            found += [vm.vm_id for vm in page.vms]
            cursor = page.next_cursor
            if not cursor:
                return found


async def test_filters_are_all_to_be_met() -> None:
    """State, labels with and without value, image, name, host: each, and together."""
    fleet = MemoryFleet()
    web = fleet.add("web", labels={"team": "a", "tier": ""}, image="linux")
    db = fleet.add("db", labels={"team": "b"}, host="h2")
    bare = fleet.add("db")
    for query, wanted in (
        (VmQuery(), [web, db, bare]),
        (VmQuery(state=VmState.RUNNING), [web, db, bare]),
        (VmQuery(state=VmState.PAUSED), []),
        (VmQuery(labels={"team": None}), [web, db]),
        (VmQuery(labels={"team": "b"}), [db]),
        (VmQuery(labels={"tier": ""}), [web]),
        (VmQuery(labels={"team": "a", "tier": None}), [web]),
        (VmQuery(labels={"team": "b", "tier": None}), []),
        (VmQuery(image="linux"), [web]),
        (VmQuery(name="db"), [db, bare]),
        (VmQuery(name="db", sort=Sort.NAME_BACK), [bare, db]),
        (VmQuery(name="d"), []),
        (VmQuery(host="h2"), [db]),
        (VmQuery(host="h2", name="web"), []),
        (VmQuery(sort=Sort.NEWEST), [bare, db, web]),
        (VmQuery(sort=Sort.NAME), [db, bare, web]),
        (VmQuery(sort=Sort.NAME_BACK), [web, bare, db]),
    ):
        assert await fleet.all(query, 1) == await fleet.all(query, 100) == wanted, query


@given(st.data())
def test_what_stays_is_seen_once_while_others_come_and_go(data: st.DataObject) -> None:
    """In each order, with pages of any size."""
    fleet = MemoryFleet()
    names = st.sampled_from(["", "a", "b", "c"])
    staying = [fleet.add(data.draw(names)) for _ in range(data.draw(st.integers(0, 8)))]
    going = [fleet.add(data.draw(names)) for _ in range(data.draw(st.integers(0, 4)))]
    chance = st.booleans()
    sort = data.draw(st.sampled_from(list(Sort)))
    query = VmQuery(sort=sort)

    async def walk() -> list[VmView]:
        seen: list[VmView] = []
        cursor = ""
        while True:
            page = await fleet.page(query, cursor, data.draw(st.integers(1, 3)))
            seen += page.vms
            cursor = page.next_cursor
            if not cursor:
                return seen
            go, come = data.draw(chance), data.draw(chance)
            if going and go:
                fleet.remove(going.pop(data.draw(st.integers(0, len(going) - 1))))
            if come:
                fleet.add(data.draw(names))

    seen = asyncio.run(walk())
    ids = [vm.vm_id for vm in seen]
    assert len(set(ids)) == len(ids)
    assert set(staying) <= set(ids)
    keys = [(vm.name if "name" in sort else "", vm.vm_id) for vm in seen]
    assert keys == sorted(keys, reverse=sort.startswith("-"))


async def test_a_filter_that_matches_nothing_costs_a_bounded_look() -> None:
    """An empty page with a cursor, again and again, until all have been looked at."""
    fleet = MemoryFleet()
    vm_id = fleet.add("last")
    fleet.remove(vm_id)
    for _ in range(2 * MAX_EXAMINED + 10):
        fleet.add()
    last = fleet.add("last", image="linux")
    query = VmQuery(image="linux")
    cursor, pages = "", 0
    while True:
        fleet.looked = 0
        page = await fleet.page(query, cursor, 10)
        assert fleet.looked <= MAX_EXAMINED
        pages += 1
        cursor = page.next_cursor
        if not cursor:
            break
        assert page.vms == ()
    assert pages == 3
    assert [vm.vm_id for vm in page.vms] == [last]
    # By name there is an index.
    fleet.looked = 0
    assert [vm.vm_id for vm in (await fleet.page(VmQuery(name="last"))).vms] == [last]
    assert fleet.looked == 1


async def test_others_have_their_turn_during_a_long_search() -> None:
    """The loop is not held from the first VM to the last."""
    fleet = MemoryFleet()
    for _ in range(MAX_EXAMINED):
        fleet.add()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count(), name="count")
        await fleet.page(VmQuery(image="none"))
        counting.cancel()
    assert turns >= MAX_EXAMINED // listing.SLICE - 1


@pytest.mark.parametrize(
    "other",
    [
        VmQuery(sort=Sort.NEWEST),
        VmQuery(sort=Sort.NAME),
        VmQuery(state=VmState.RUNNING),
        VmQuery(labels={"a": None}),
        VmQuery(labels={"a": ""}),
        VmQuery(image="x"),
        VmQuery(name="x"),
        VmQuery(host="x"),
    ],
)
async def test_a_cursor_of_another_query_is_refused_in_words(other: VmQuery) -> None:
    """Both ways; and another customer's too."""
    position = Position("", new_id())
    for made, used in ((VmQuery(), other), (other, VmQuery())):
        cursor = cursors.seal(made.digest("acme"), position)
        assert cursors.unseal(made.digest("acme"), cursor) == position
        with pytest.raises(RefusedError, match="of another query") as caught:
            cursors.unseal(used.digest("acme"), cursor)
        assert caught.value.fields[0].field == "cursor"
        with pytest.raises(RefusedError, match="of another query"):
            cursors.unseal(made.digest("globex"), cursor)


@given(st.text() | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_garbage_is_no_cursor(text: str) -> None:
    """Refused as a bad request, whatever it is."""
    if text == "":
        return
    with pytest.raises(RefusedError) as caught:
        cursors.unseal("q", text)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def operation(customer: str = "acme", **changes: Any) -> Operation:
    fields: dict[str, Any] = {
        "operation_id": new_id(),
        "vm_id": new_id(),
        "host_id": "h1",
        "verb": "boot",
        "status": OperationStatus.PENDING,
        "created_at": NOW,
        "deadline": NOW + timedelta(seconds=60),
    }
    return Operation(customer_id=customer, **{**fields, **changes})


def test_the_history_is_bounded_and_nobody_pushes_others_out() -> None:
    """By customer and in all; the oldest go first."""
    history = History(per_customer=3, in_all=5)
    mine = [operation("acme") for _ in range(2)]
    theirs = [operation("globex") for _ in range(10)]
    for one in (*mine, *theirs):
        history.take(one)
    assert history.before("acme", None) == mine[::-1]
    assert history.before("globex", None) == theirs[:-4:-1]
    history.take(operation("third"))
    assert history.before("acme", None) == [mine[1]]
    assert history.before("nobody", None) == []
    assert history.get(mine[0].operation_id) is None


def test_the_history_knows_no_way_back() -> None:
    """What has ended does not begin again by an old word; an unwritten one is forgotten."""
    history = History()
    begun = operation()
    ended = operation(operation_id=begun.operation_id, status=OperationStatus.SUCCEEDED)
    for one in (begun, ended, begun):
        history.take(one)
    assert history.before("acme", None) == [ended]
    # Another customer cannot take an id over.
    history.take(operation("globex", operation_id=begun.operation_id))
    assert history.before("globex", None) == []
    history.forget(begun.operation_id)
    assert history.before("acme", None) == []


def status(vm_id: UUID, *snapshots: UUID, **changes: Any) -> VmStatus:
    fields: dict[str, Any] = {"state": VmState.RUNNING, "host_id": "h1", **changes}
    infos = tuple(
        SnapshotInfo(
            snapshot_id=snapshot_id, kind=SnapshotKind.FULL, image="tiny", vcpus=1,
            memory_mib=64, disk_mib=8, created_at=NOW,
        )
        for snapshot_id in snapshots
    )  # fmt: skip
    return VmStatus(vm_id=vm_id, customer_id="acme", snapshots=infos, updated_at=NOW, **fields)


def test_snapshots_are_those_of_the_statuses() -> None:
    """Found by id and in order; gone with the word of them, with the VM, with the status."""
    index = SnapshotIndex()
    vms = [new_id(), new_id()]
    ids = [new_id() for _ in range(3)]
    index.change(vm_key("acme", vms[0]), status(vms[0], ids[2], ids[0]))
    index.change(vm_key("acme", vms[1]), status(vms[1], ids[1], host_id="h2"))
    assert [kept.info.snapshot_id for kept in index.after("acme", None, 10)] == ids
    assert [kept.info.snapshot_id for kept in index.after("acme", ids[0], 1)] == [ids[1]]
    found = index.get("acme", ids[1])
    assert found is not None
    assert (found.vm_id, found.host_id) == (vms[1], "h2")
    assert index.get("globex", ids[1]) is None
    assert index.count("acme") == 3
    index.change(vm_key("acme", vms[0]), status(vms[0], ids[0]))
    assert index.get("acme", ids[2]) is None
    index.change(vm_key("acme", vms[1]), status(vms[1], ids[1], state=VmState.DELETED))
    assert index.count("acme") == 1
    index.change(vm_key("acme", vms[0]), None)
    assert index.after("acme", None, 10) == []
    assert index.count("acme") == 0


def test_a_create_comes_before_the_boot_that_was_asked_for_with_it() -> None:
    """Their ids are of one moment, and say nothing of their order."""
    for _ in range(16):
        vm_id = new_id()
        create = operation(operation_id=create_id(vm_id, 0), vm_id=vm_id, verb="create")
        boot = operation(operation_id=boot_id(vm_id), vm_id=vm_id)
        history = History()
        for one in (boot, create):
            history.take(one)
        assert history.before("acme", None) == [boot, create]
        assert history.before("acme", place_of(boot)) == [create]
