"""Examples of what operators ask for and get; see `examples`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from gateway.bodies import MERGE_PATCH
from gateway.routes.examples import show
from schemas.admin_customers import (
    CreateCustomerRequest,
    CustomerDetails,
    CustomerList,
    CustomerPatch,
    CustomerView,
    QuotaPatch,
    RateRequest,
    RatesPatch,
)
from schemas.admin_hosts import (
    DrainRequest,
    FoundRequest,
    Heartbeat,
    HostList,
    HostState,
    HostView,
    HostVm,
    HostVmList,
    LossRequest,
)
from schemas.hosts import CustomerStatus, HostLoss, HostOrders, Resources
from schemas.limits import ApiRates, Rate
from schemas.quotas import QuotaAmounts
from schemas.vms import VmState

_AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
_CUSTOMER = CustomerView(
    customer_id="acme",
    status=CustomerStatus.ACTIVE,
    pool="default",
    price_plan="standard",
    quota=QuotaAmounts(vms=20, vcpus=64, memory_mib=131_072, disk_mib=1_048_576, snapshots=100),
    rates=ApiRates(mutations=Rate(per_s=5.0, burst=20)),
    created_at=_AT,
    generation=2,
)
_DETAILS = CustomerDetails(
    **msgspec.structs.asdict(_CUSTOMER),
    used=QuotaAmounts(vms=3, vcpus=6, memory_mib=1536, disk_mib=3072, snapshots=1),
)

customer = show(_DETAILS)
customer_list = show(CustomerList(customers=(_CUSTOMER,)))
new_customer = show(
    _DETAILS,
    CreateCustomerRequest(
        customer_id="acme",
        price_plan="standard",
        quota=QuotaPatch(vms=20),
        rates=RatesPatch(mutations=RateRequest(per_s=5.0, burst=20)),
    ),
)
customer_patch = show(
    _DETAILS,
    CustomerPatch(status="suspended", quota=QuotaPatch(vms=20, snapshots=None)),
    MERGE_PATCH,
    "application/json",
)

_ROOM = Resources(vcpus=32, memory_mib=65_536, disk_mib=524_288, slots=64)
_TAKEN = Resources(vcpus=6, memory_mib=1536, disk_mib=3072, slots=3)
_HOST = HostView(
    host_id="rack-3-host-7",
    state=HostState.UP,
    age_s=0.4,
    vms=3,
    placing=Resources(),
    order=None,
    loss=None,
    heartbeat=Heartbeat(
        at=_AT,
        run_id=UUID("019c1372-8b40-7c51-9a56-6d1b2f0e4c12"),
        boot_id="0d6d2a0c-5a0e-4f3c-9b0c-6f6b1c2d3e4f",
        started_at=_AT - timedelta(days=3),
        version="0.1.0",
        pool="default",
        region="local",
        labels={"rack": "3"},
        arch="x86_64",
        driver="firecracker",
        driver_version="1.12.0",
        driver_reason="the best one that works here",
        simulated=False,
        no_network="",
        images=("linux", "tiny"),
        draining=False,
        drain_reason="",
        capacity=_ROOM,
        free=Resources(vcpus=26, memory_mib=64_000, disk_mib=521_216, slots=61),
        reserved=_TAKEN,
        vms=3,
    ),
)
_ORDER = HostOrders(
    host_id=_HOST.host_id, draining=True, reason="new memory", requested_by="ann", ordered_at=_AT
)
_LOSS = HostLoss(host_id=_HOST.host_id, reason="burnt", requested_by="ann", declared_at=_AT)

host = show(_HOST)
host_list = show(HostList(hosts=(_HOST,)))
host_vms = show(
    HostVmList(
        vms=(
            HostVm(
                vm_id=UUID("019c1372-8b40-7c51-9a56-6d1b2f0e4c11"),
                customer_id="acme",
                name="web-1",
                state=VmState.RUNNING,
                vcpus=2,
                memory_mib=512,
                disk_mib=1024,
                created_at=_AT,
            ),
        )
    )
)
drain = show(msgspec.structs.replace(_HOST, order=_ORDER), DrainRequest(reason="new memory"))
undrain = show(
    msgspec.structs.replace(_HOST, order=msgspec.structs.replace(_ORDER, draining=False)),
    DrainRequest(),
)
found = show(_HOST, FoundRequest(reason="it was the switch"))
lost = show(
    msgspec.structs.replace(
        _HOST, state=HostState.NOT_HEARD, age_s=None, heartbeat=None, loss=_LOSS
    ),
    LossRequest(reason="burnt"),
)
