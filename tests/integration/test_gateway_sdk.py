"""Both clients of the SDK against a gateway: filters, patches, snapshots, operations, images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient, Client, NotFoundError, PreconditionFailedError
from schemas.api import CreateVmRequest
from schemas.hosts import OperationStatus
from schemas.vms import SnapshotKind, VmState
from tests.support.gateway import Stack, shared_stack
from tests.support.tokens import KEY

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def test_the_async_client(shared: Stack) -> None:
    """The whole round."""
    async with AsyncClient(shared.url, mint(KEY, "sdk-async")) as api:
        request = CreateVmRequest(image="tiny", name="web", labels={"team": "a"}, boot=True)
        vm_id = (await api.create_vm(request, wait_s=10)).vm.vm_id
        changed = await api.patch_vm(vm_id, labels={"team": None, "tier": "1"}, generation=1)
        assert (changed.spec.labels, changed.generation) == ({"tier": "1"}, 2)
        with pytest.raises(PreconditionFailedError):
            await api.patch_vm(vm_id, name="late", generation=1)
        assert (await api.patch_vm(vm_id, name=None, labels=None)).name == ""
        assert [vm.vm_id async for vm in api.list_vms(labels={"tier": None})] == []
        assert [vm.vm_id async for vm in api.list_vms(image="tiny", sort="-name")] == [vm_id]
        taken = await api.snapshot_vm(vm_id, kind=SnapshotKind.DIFF, wait_s=10)
        snapshot_id = taken.operation.snapshot_id
        assert snapshot_id is not None
        assert (await api.get_snapshot(snapshot_id)).kind is SnapshotKind.DIFF
        assert [one.vm_id async for one in api.list_snapshots(vm_id=vm_id)] == [vm_id]
        await api.shutdown_vm(vm_id, grace_s=0, wait_s=10)
        restored = await api.restore_vm(vm_id, snapshot_id, wait_s=10)
        assert restored.vm.state is VmState.RUNNING
        assert (await api.delete_snapshot(snapshot_id, wait_s=10)).operation.verb == "discard"
        with pytest.raises(NotFoundError):
            await api.get_snapshot(snapshot_id)
        verbs = [one.verb async for one in api.list_operations(vm_id=vm_id, page_size=2)]
        assert verbs[:4] == ["discard", "restore", "shutdown", "snapshot"]
        assert await api.list_images() == ["tiny"]


async def test_the_blocking_client(shared: Stack) -> None:
    """The same from a thread."""

    def work() -> None:
        with Client(shared.url, mint(KEY, "sdk-blocking")) as api:
            request = CreateVmRequest(image="tiny", boot=True)
            ids = [api.create_vm(request, wait_s=10).vm.vm_id for _ in range(3)]
            assert [vm.vm_id for vm in api.list_vms(sort="-created_at", page_size=1)] == ids[::-1]
            assert api.patch_vm(ids[0], name="web").name == "web"
            assert [vm.vm_id for vm in api.list_vms(name="web")] == [ids[0]]
            taken = [api.snapshot_vm(ids[0], wait_s=10).operation.snapshot_id for _ in range(3)]
            found = [one.snapshot_id for one in api.list_snapshots(page_size=2)]
            assert found == taken
            restored = api.create_vm(CreateVmRequest(image="tiny"), wait_s=10).vm.vm_id
            assert api.restore_vm(restored, found[1], wait_s=10).vm.incarnation == 1
            assert api.delete_snapshot(found[0], wait_s=10).operation.error is None
            assert api.get_snapshot(found[1]).vm_id == ids[0]
            done = list(api.list_operations(status=OperationStatus.SUCCEEDED))
            assert [one.verb for one in done[:3]] == ["discard", "restore", "create"]
            assert api.list_images() == ["tiny"]

    await asyncio.to_thread(work)
