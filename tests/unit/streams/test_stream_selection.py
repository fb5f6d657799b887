"""Frames with the rows that are meant only."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from decisec.streams.decoding import sample_rows
from decisec.streams.selection import Selection, narrowed
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, check_shape
from schemas.ids import new_id
from schemas.subjects import METRICS_ENRICHED, METRICS_RAW, VM_EVENTS, filters_of_host
from schemas.vms import METERS
from tests.support.feed import ids_of
from tests.support.frames import Row, frame
from tests.support.store import Reading, enriched

VMS = [new_id() for _ in range(6)]
CUSTOMERS = ["acme", "globex"]
OWNERS = {vm_id.bytes: CUSTOMERS[i % 2] for i, vm_id in enumerate(VMS)}

choices = st.builds(
    Selection,
    customers=st.lists(st.sampled_from([*CUSTOMERS, "nobody"]), max_size=2).map(tuple),
    vm_ids=st.lists(st.sampled_from([*VMS, new_id()]), max_size=3).map(tuple),
)


def meant(vm_id: UUID, selection: Selection) -> bool:
    return (not selection.vm_ids or vm_id in selection.vm_ids) and (
        not selection.customers or OWNERS[vm_id.bytes] in selection.customers
    )


@given(st.lists(st.sampled_from(VMS), unique=True), choices)
def test_of_a_raw_frame_the_rows_that_are_meant_stay_as_they_were(
    vms: list[UUID], selection: Selection
) -> None:
    """By VM, and by customer through what is known of VMs; counters stay with their VM."""
    counters = {vm_id: {meter: VMS.index(vm_id) + 1 for meter in METERS} for vm_id in vms}
    raw = frame([Row(vm_id, counters[vm_id]) for vm_id in vms], run_id=new_id())
    part = narrowed(raw, selection, OWNERS)
    expected = [vm_id for vm_id in vms if meant(vm_id, selection)]
    if part is None:
        assert not expected
        return
    assert ids_of(part) == expected
    check_shape(part, COLUMNS)
    for row in sample_rows(part):
        assert {m: row[m] for m in METERS} == counters[UUID(row["vm_id"])]
    assert part.msg_id == raw.msg_id
    if len(expected) == len(vms):
        assert part is raw


@given(st.lists(st.sampled_from(VMS), min_size=1, unique=True), choices)
def test_an_enriched_frame_says_itself_whose_its_rows_are(
    vms: list[UUID], selection: Selection
) -> None:
    """Nothing but the frame is asked, and its dictionaries still fit."""
    whole = enriched([Reading(v, 1000, customer=OWNERS[v.bytes]) for v in vms])
    part = narrowed(whole, selection, {})
    expected = [vm_id for vm_id in vms if meant(vm_id, selection)]
    if part is None:
        assert not expected
        return
    check_shape(part, COLUMNS + ENRICHMENT_COLUMNS)
    rows = list(sample_rows(part))
    assert [UUID(row["vm_id"]) for row in rows] == expected
    assert [row["customer_id"] for row in rows] == [OWNERS[v.bytes] for v in expected]


def test_a_frame_without_vms_is_meant_only_if_all_are() -> None:
    """It says something of its host, and nothing of a customer."""
    empty = frame([], run_id=new_id())
    assert narrowed(empty, Selection(hosts=("h1",)), {}) is empty
    assert narrowed(empty, Selection(customers=("acme",)), {}) is None


def test_the_server_is_asked_for_hosts_where_subjects_name_them() -> None:
    """Elsewhere every message is looked at."""
    selection = Selection(hosts=("h1", "h2"))
    wanted = (*filters_of_host(METRICS_RAW, "h1"), *filters_of_host(METRICS_RAW, "h2"))
    assert selection.filters(METRICS_RAW) == wanted
    assert selection.filters(VM_EVENTS) == ()
    assert Selection().filters(METRICS_RAW) == ()
    assert Selection().filters(METRICS_ENRICHED) == ("metrics.enriched.>",)
    assert selection.has(host="h2", customer="any")
    assert not selection.has(host="h3")
    assert not Selection(vm_ids=(VMS[0],)).has(host="h1")
