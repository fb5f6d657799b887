"""Examples in the OpenAPI document: there, and valid messages of their kind."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from decisec.devkit.api_contract import described
from schemas.admin_customers import (
    CreateCustomerRequest,
    CustomerDetails,
    CustomerList,
    CustomerPatch,
)
from schemas.admin_hosts import (
    DrainRequest,
    FoundRequest,
    HostList,
    HostView,
    HostVmList,
    LossRequest,
)
from schemas.api import (
    ImageList,
    OperationList,
    OperationView,
    RestoreRequest,
    SnapshotList,
    SnapshotRequest,
    SnapshotView,
    VmAndOperation,
    VmList,
    VmPatch,
    VmView,
)
from schemas.price_plans import (
    CreatePricePlanRequest,
    PricePlanDetails,
    PricePlanList,
    PriceVersionRequest,
)

MERGE, JSON = "application/merge-patch+json", "application/json"
HOST = "/v1/admin/hosts/{host_id}"
PLANS = "/v1/admin/price-plans"
CUSTOMER = "/v1/admin/customers/{customer_id}"


@pytest.fixture
def paths() -> Any:
    """The paths of the document of an app that nothing is behind."""
    return described()["paths"]


@pytest.mark.parametrize(
    ("method", "path", "status", "answer", "bodies"),
    [
        ("get", "/v1/vms", "200", VmList, {}),
        ("get", "/v1/vms/{vm_id}", "200", VmView, {}),
        ("patch", "/v1/vms/{vm_id}", "200", VmView, {MERGE: VmPatch, JSON: VmPatch}),
        ("post", "/v1/vms/{vm_id}/snapshot", "202", VmAndOperation, {JSON: SnapshotRequest}),
        ("post", "/v1/vms/{vm_id}/restore", "202", VmAndOperation, {JSON: RestoreRequest}),
        ("get", "/v1/snapshots", "200", SnapshotList, {}),
        ("get", "/v1/snapshots/{snapshot_id}", "200", SnapshotView, {}),
        ("delete", "/v1/snapshots/{snapshot_id}", "202", VmAndOperation, {}),
        ("get", "/v1/images", "200", ImageList, {}),
        ("get", "/v1/operations", "200", OperationList, {}),
        ("get", "/v1/operations/{operation_id}", "200", OperationView, {}),
        ("get", "/v1/admin/customers", "200", CustomerList, {}),
        ("post", "/v1/admin/customers", "201", CustomerDetails, {JSON: CreateCustomerRequest}),
        ("get", CUSTOMER, "200", CustomerDetails, {}),
        ("patch", CUSTOMER, "200", CustomerDetails, {MERGE: CustomerPatch, JSON: CustomerPatch}),
        ("post", f"{CUSTOMER}/close", "200", CustomerDetails, {}),
        ("get", PLANS, "200", PricePlanList, {}),
        ("post", PLANS, "201", PricePlanDetails, {JSON: CreatePricePlanRequest}),
        ("get", f"{PLANS}/{{plan_id}}", "200", PricePlanDetails, {}),
        (
            "post",
            f"{PLANS}/{{plan_id}}/versions",
            "201",
            PricePlanDetails,
            {JSON: PriceVersionRequest},
        ),
        ("get", "/v1/admin/hosts", "200", HostList, {}),
        ("get", HOST, "200", HostView, {}),
        ("get", f"{HOST}/vms", "200", HostVmList, {}),
        ("post", f"{HOST}/drain", "200", HostView, {JSON: DrainRequest}),
        ("post", f"{HOST}/undrain", "200", HostView, {JSON: DrainRequest}),
        ("post", f"{HOST}/lost", "200", HostView, {JSON: LossRequest}),
        ("post", f"{HOST}/found", "200", HostView, {JSON: FoundRequest}),
    ],
)
async def test_routes_show_what_they_take_and_give(
    paths: Any, method: str, path: str, status: str, answer: type, bodies: dict[str, type]
) -> None:
    """Each example is one that the API itself would understand."""
    route = paths[path][method]
    assert route["summary"]
    assert route["description"]
    shown = route["responses"][status]["content"][JSON]
    msgspec.convert(shown["example"], answer)
    assert "schema" in shown
    content = route.get("requestBody", {}).get("content", {})
    assert set(content) == set(bodies)
    for media, kind in bodies.items():
        msgspec.convert(content[media]["example"], kind)
    for parameter in route.get("parameters", []):
        # What is the same everywhere is described once, and named by reference.
        assert "$ref" in parameter or parameter["in"] == "path" or parameter["description"]
