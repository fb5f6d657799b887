"""Patches and snapshots that a gateway left half done: the same request again does the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import pytest_asyncio

from gateway.commands import operation_of
from gateway.derived_ids import derived
from gateway.idempotency import http_digest
from gateway.patching import patched
from runtime.buckets import Bucket
from runtime.clock import utc_now
from schemas.api import VmPatch
from schemas.codec import encode
from schemas.commands import DiscardSnapshot, RestoreVm, SnapshotVm
from schemas.idempotency import KeyRecord, decode_key_record, idempotency_entry
from schemas.ids import new_id
from schemas.subjects import IDEMPOTENCY_KEYS, VM_SPECS, vm_command, vm_key
from schemas.vms import decode_vm_record
from tests.support.gateway import WAIT, Stack, made, shared_stack, until
from tests.support.tokens import bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def claimed(
    shared: Stack, customer: str, method: str, path: str, body: bytes = b"", if_match: str = ""
) -> tuple[UUID, dict[str, str]]:
    """A claim as a dead gateway leaves it: its seed, and the headers of the same request."""
    key = new_id().hex
    record = KeyRecord(
        request=http_digest(
            customer, method, path.encode(), query=b"", if_match=if_match, body=body
        ),
        seed=new_id(),
        until=utc_now() - timedelta(seconds=1),
    )
    await Bucket(shared.bus, IDEMPOTENCY_KEYS, decode_key_record).create(
        idempotency_entry(customer, key), record
    )
    return record.seed, {"Idempotency-Key": key, **WAIT}


async def taken(api: httpx.AsyncClient, vm_id: str) -> str:
    """The id of a snapshot that has just been taken."""
    answer = await api.post(f"/v1/vms/{vm_id}/snapshot", headers=WAIT)
    return str(answer.json()["operation"]["snapshot_id"])


@pytest.mark.parametrize("written", [False, True])
async def test_a_patch_that_was_stored_is_no_conflict(shared: Stack, written: bool) -> None:
    """Its own effect does not count as somebody else's change; another one does."""
    customer = f"patched-{written}".lower()
    async with shared.client(headers=bearer(customer)) as api:
        vm_id = await made(api)
        path, body = f"/v1/vms/{vm_id}", b'{"labels":{"a":"1"}}'
        more = {"If-Match": '"1"', "Content-Type": "application/merge-patch+json"}
        _, headers = await claimed(shared, customer, "PATCH", path, body, '"1"')
        if written:
            records = Bucket(shared.bus, VM_SPECS, decode_vm_record)
            entry = await records.get(vm_key(customer, UUID(vm_id)))
            assert entry is not None
            record = patched(entry.value, msgspec.json.decode(body, type=VmPatch))
            await records.update(vm_key(customer, UUID(vm_id)), record, entry.revision)
        answer = await api.patch(path, content=body, headers={**headers, **more})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["generation"], answer.headers["ETag"]) == (2, '"2"')
        again = await api.patch(path, content=body, headers={**headers, **more})
        assert again.content == answer.content
        assert again.headers["Idempotency-Replayed"] == "true"
        # What somebody else has made of it is not this request's.
        _, headers = await claimed(shared, customer, "PATCH", path, body, '"1"')
        await api.patch(path, json={"labels": {"a": "2"}})
        other = await api.patch(path, content=body, headers={**headers, **more})
        assert (other.status_code, other.json()["code"]) == (412, "precondition_failed")


@pytest.mark.parametrize("point", ["claimed", "opened", "published", "done"])
@pytest.mark.parametrize("verb", ["snapshot", "restore", "discard"])
async def test_a_snapshots_verb_is_finished_wherever_its_gateway_died(
    shared: Stack, verb: str, point: str
) -> None:
    """Done once, with the ids of the first try; a snapshot that is gone by it is no 404."""
    customer = f"{verb}-{point}"
    async with shared.client(headers=bearer(customer)) as api:
        vm_id = await made(api, boot=True)
        of: dict[str, Any] = {}
        body = b""
        if verb != "snapshot":
            of["snapshot_id"] = await taken(api, vm_id)
        if verb == "restore":
            await api.post(f"/v1/vms/{vm_id}/shutdown", headers=WAIT)
            body = b'{"snapshot_id":"%s"}' % of["snapshot_id"].encode()
        method, path, kind = {
            "snapshot": ("POST", f"/v1/vms/{vm_id}/snapshot", SnapshotVm),
            "restore": ("POST", f"/v1/vms/{vm_id}/restore", RestoreVm),
            "discard": ("DELETE", f"/v1/snapshots/{of.get('snapshot_id')}", DiscardSnapshot),
        }[verb]
        seed, headers = await claimed(shared, customer, method, path, body)
        now = utc_now()
        command: Any = kind(
            command_id=derived(seed, b"command"),
            customer_id=customer,
            vm_id=UUID(vm_id),
            host_id="h1",
            issued_at=now,
            deadline=now + timedelta(seconds=30),
            snapshot_id=UUID(of.get("snapshot_id", str(derived(seed, b"snapshot")))),
        )
        if point != "claimed":
            operations = shared.agent.operations
            await operations.create(str(command.command_id), operation_of(command))
        if point in ("published", "done"):
            await shared.bus.js.publish(
                vm_command(command), encode(command), headers={"Nats-Msg-Id": str(new_id())}
            )
        if point == "done":
            await until(lambda: command in shared.agent.seen)
        if body:
            headers["Content-Type"] = "application/json"
        answer = await api.request(method, path, content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        operation = answer.json()["operation"]
        assert operation["operation_id"] == str(command.command_id)
        assert operation["snapshot_id"] == str(command.snapshot_id)
        done = [c for c in shared.agent.seen if c.command_id == command.command_id]
        assert len(done) == 1
        left = (await api.get("/v1/snapshots")).json()["snapshots"]
        assert len(left) == (0 if verb == "discard" else 1)
