"""What the SDK sends for lists, patches and snapshots."""

from __future__ import annotations

import json

import httpx
import msgspec
import pytest

from decisec.sdk import Client, PreconditionFailedError, calls
from decisec.sdk.calls import VmFilter
from schemas.api import OperationList, Problem, VmList, VmPatch
from schemas.hosts import OperationStatus
from schemas.idempotency import IDEMPOTENCY_HEADER
from schemas.ids import new_id
from schemas.vms import SnapshotKind, VmState


def test_a_list_asks_for_what_is_given_and_no_more() -> None:
    """Labels by name or name and value; nothing that is left out."""
    plain = calls.list_vms(VmFilter(), 100, "")
    assert plain.params == (("limit", "100"),)
    full = calls.list_vms(
        VmFilter(
            state=VmState.RUNNING,
            labels={"team": "a", "tier": None, "empty": ""},
            image="tiny",
            name="web",
            host="h1",
            sort="-name",
        ),
        5,
        "next",
    )
    assert full.params == (
        ("limit", "5"),
        ("label", "team:a"),
        ("label", "tier"),
        ("label", "empty:"),
        ("cursor", "next"),
        ("state", "running"),
        ("image", "tiny"),
        ("name", "web"),
        ("host", "h1"),
        ("sort", "-name"),
    )


def test_a_patch_says_what_is_to_change_and_what_to_go() -> None:
    """Left out, null and empty are three things; a generation becomes `If-Match`."""
    vm_id = new_id()
    for patch, body in (
        (VmPatch(), {}),
        (VmPatch(name=None), {"name": None}),
        (VmPatch(name="web", labels={"a": None, "b": ""}),
         {"name": "web", "labels": {"a": None, "b": ""}}),
        (VmPatch(labels=None), {"labels": None}),
    ):  # fmt: skip
        call = calls.patch_vm(vm_id, patch, None)
        assert json.loads(call.body) == body
        assert "If-Match" not in call.headers
        assert call.headers["Content-Type"] == "application/merge-patch+json"
        # It may be sent again, since the API knows it again.
        assert call.headers[IDEMPOTENCY_HEADER]
        assert call.repeatable
    assert calls.patch_vm(vm_id, VmPatch(), 7).headers["If-Match"] == '"7"'


def test_snapshots_and_operations_are_named_by_ids_only() -> None:
    """What is no UUID is sent nowhere."""
    vm_id, snapshot_id = new_id(), new_id()
    taken = calls.snapshot_vm(vm_id, SnapshotKind.DIFF, 3)
    assert (taken.path, taken.body) == (f"/v1/vms/{vm_id}/snapshot", b'{"kind":"diff"}')
    assert taken.headers["Prefer"] == "wait=3"
    restored = calls.restore_vm(vm_id, str(snapshot_id), 0)
    assert json.loads(restored.body) == {"snapshot_id": str(snapshot_id)}
    assert calls.delete_snapshot(snapshot_id, 0).method == "DELETE"
    listed = calls.list_operations(vm_id, OperationStatus.FAILED, 10, "")
    assert listed.params == (("limit", "10"), ("vm_id", str(vm_id)), ("status", "failed"))
    for wrong in (
        lambda: calls.get_snapshot("../vms"),
        lambda: calls.restore_vm(vm_id, "x", 0),
        lambda: calls.list_snapshots("x", 1, ""),
    ):
        with pytest.raises(ValueError, match="badly formed"):
            wrong()


def test_an_empty_page_is_not_the_end() -> None:
    """As long as there is a cursor the list goes on."""
    cursors: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        cursors.append(request.url.params.get("cursor"))
        following = "more" if len(cursors) < 3 else ""
        page = (
            VmList(vms=(), next_cursor=following)
            if request.url.path == "/v1/vms"
            else OperationList(operations=(), next_cursor=following)
        )
        return httpx.Response(200, content=msgspec.json.encode(page))

    with Client("http://api.test", "t", transport=httpx.MockTransport(handler)) as api:
        assert list(api.list_vms()) == []
        assert cursors == [None, "more", "more"]
        cursors.clear()
        assert list(api.list_operations()) == []
        assert cursors == [None, "more", "more"]


def test_a_vm_that_has_changed_is_an_error_of_its_own() -> None:
    """412."""
    problem = Problem(type="t", title="t", status=412, code="precondition_failed")

    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(412, content=msgspec.json.encode(problem))

    with (
        Client("http://api.test", "t", transport=httpx.MockTransport(handler)) as api,
        pytest.raises(PreconditionFailedError),
    ):
        api.patch_vm(new_id(), name="x", generation=1)
