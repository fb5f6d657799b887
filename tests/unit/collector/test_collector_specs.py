"""Which changes of a VM's record the collector's work depends on."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from collector.specs import SpecIndex
from runtime.clock import utc_now
from schemas.ids import new_id
from schemas.subjects import vm_key
from schemas.vms import VmRecord, VmSpec

RECORD = VmRecord(
    vm_id=new_id(),
    customer_id="acme",
    host_id="h1",
    spec=VmSpec(image="tiny", labels={"team": "a"}),
    name="web",
    created_at=utc_now(),
)
KEY = vm_key("acme", RECORD.vm_id)


def index() -> SpecIndex:
    specs = SpecIndex(wait_ns=0)
    specs.change(KEY, RECORD)
    return specs


def test_a_new_name_or_label_makes_no_work() -> None:
    """What was computed for a host's VMs stays true; the record is the new one."""
    specs = index()
    before = specs.host_version("h1")
    patched = replace(RECORD, name="db", spec=VmSpec(image="tiny", labels={}), generation=2)
    specs.change(KEY, patched)
    assert specs.host_version("h1") == before
    assert specs.get(RECORD.vm_id.bytes) == patched


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": VmSpec(image="tiny", vcpus=2)},
        {"spec": VmSpec(image="tiny", memory_mib=64)},
        {"price_plan": "gold"},
        {"pool": "fast"},
        {"deleted_at": utc_now()},
        {"host_id": "h2"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_samples_are_enriched_by_counts(changes: dict[str, Any]) -> None:
    """Also together with a label."""
    specs = index()
    before = specs.host_version("h1")
    specs.change(KEY, replace(RECORD, **changes))
    assert specs.host_version("h1") > before
