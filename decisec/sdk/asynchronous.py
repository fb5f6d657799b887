"""The asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
from msgspec import UNSET, UnsetType
from tenacity import AsyncRetrying

from decisec.sdk import calls
from decisec.sdk.async_admin import AsyncAdmin
from decisec.sdk.async_figures import AsyncFigures
from decisec.sdk.calls import Call, T, VmFilter, WhoAmI, decode
from decisec.sdk.console import POLL_S, Following
from decisec.sdk.errors import ApiError, OperationFailedError
from decisec.sdk.network import AsyncNetwork
from decisec.sdk.transport import (
    ATTEMPTS,
    FIRST_PAUSE_S,
    TIMEOUT_S,
    Target,
    build,
    next_pause_s,
    policy,
)
from schemas.api import (
    CreateVmRequest,
    OperationView,
    SnapshotView,
    VmAndOperation,
    VmPatch,
    VmView,
)
from schemas.audit import AuditEntry
from schemas.consoles import MAX_CHUNK_BYTES, ConsoleChunk
from schemas.hosts import OperationStatus
from schemas.quotas import QuotaView
from schemas.usage import UsageReport
from schemas.vms import SnapshotKind, VmState


class AsyncClient(AsyncFigures, AsyncNetwork):
    """Talks to the API from asyncio. `Client` has the same methods.

    Every method raises ApiError (a subclass tells which) when the API refuses, and
    `httpx.TransportError` when it cannot be reached. Requests are sent again a few times first,
    within half a minute: after a lost connection, and after 429 and 503 when `Retry-After` says.
    Mutations carry an idempotency key, so that one whose answer was lost is not done twice.
    `wait_s` lets a mutation answer only once it is done, 60 s at most; with 0 it answers at
    once, and the operation tells of the end.

    Args:
        base_url: Address of the API; `DECISEC_API_URL` or http://127.0.0.1:8080 by default.
        token: Bearer token; `DECISEC_TOKEN` by default.
        ca: PEM file of the authority that the API's certificate comes from; `DECISEC_API_CA`, or
            those that the system trusts, by default.
        timeout_s: For connecting, and for each answer on top of `wait_s`.
        attempts: How often a request is sent at most; 1 for never again.
        come_again: Wait and send again after 429 and 503; else these are raised at once.
        transport: Replaces the network, for tests.

    Attributes:
        admin: Customers, hosts and price plans, for operators.

    Examples:
        >>> async def running() -> list[str]:
        ...     async with AsyncClient() as decisec:  # DECISEC_API_URL, DECISEC_TOKEN
        ...         return [vm.name async for vm in decisec.list_vms(state=VmState.RUNNING)]
        >>> asyncio.run(running())
        ['web']
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        ca: str | None = None,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
        come_again: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        target = Target(base_url, token, ca)
        self._attempts = attempts
        self._come_again = come_again
        self._http = httpx.AsyncClient(
            base_url=target.base_url,
            headers=target.headers,
            timeout=timeout_s,
            verify=target.trust,
            transport=transport,
        )
        self.admin = AsyncAdmin(self._send)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def create_vm(
        self, request: CreateVmRequest, *, wait_s: float = 0.0, idempotency_key: str = ""
    ) -> VmAndOperation:
        """Make a VM; boot it as well if `request.boot`.

        With an `idempotency_key` of your own, the same call makes no second VM for a day, not
        even from another process.
        """
        return await self._send(calls.create_vm(request, wait_s, idempotency_key))

    async def list_vms(
        self,
        *,
        state: VmState | None = None,
        labels: Mapping[str, str | None] | None = None,
        image: str = "",
        name: str = "",
        host: str = "",
        sort: str = "",
        page_size: int = 100,
    ) -> AsyncIterator[VmView]:
        """VMs that fit all that is given, fetched page by page.

        Args:
            state: Only VMs in this state.
            labels: Only VMs with all of these; None for a label of any value.
            image: Only VMs of this image.
            name: Only VMs of this name.
            host: Only VMs on this host; for operators.
            sort: `created_at` (the default) or `name`, with `-` before it the other way round.
            page_size: VMs that are fetched at once.
        """
        wanted = VmFilter(
            state=state, labels=labels or {}, image=image, name=name, host=host, sort=sort
        )
        cursor = ""
        while True:
            page = await self._send(calls.list_vms(wanted, page_size, cursor))
            for vm in page.vms:
                yield vm
            cursor = page.next_cursor
            if not cursor:
                return

    async def get_vm(self, vm_id: UUID | str) -> VmView:
        """One VM."""
        return await self._send(calls.get_vm(vm_id))

    async def vm_console(
        self,
        vm_id: UUID | str,
        *,
        offset: int | None = None,
        tail_bytes: int | None = None,
        limit_bytes: int = MAX_CHUNK_BYTES,
    ) -> ConsoleChunk:
        """What a VM printed, from an offset on, or its end: `tail_bytes`; else from the oldest.

        At most `limit_bytes` of it: go on from `next_offset` unless `end`.
        """
        return await self._send(calls.vm_console(vm_id, offset, tail_bytes, limit_bytes))

    async def follow_console(
        self, vm_id: UUID | str, *, offset: int = 0, poll_s: float = POLL_S
    ) -> AsyncGenerator[ConsoleChunk, None]:
        """What a VM printed from an offset on, and what it goes on to print, over its restarts.

        Ends once the VM is deleted. While its host does not answer this waits, half a minute at
        most; then, or if there was no such VM from the beginning, the error is raised.
        """
        following = Following(offset, poll_s)
        while not following.over:
            try:
                call = calls.vm_console(vm_id, following.offset, None, MAX_CHUNK_BYTES)
                # It has a patience of its own.
                chunk = await self._send(call, attempts=1)
            except (ApiError, httpx.TransportError) as error:
                following.failed(error, time.monotonic())
            else:
                if following.took(chunk):
                    yield chunk
            await asyncio.sleep(following.pause_s)

    async def boot_vm(self, vm_id: UUID | str, *, wait_s: float = 0.0) -> VmAndOperation:
        """Start a VM: a new incarnation."""
        return await self._send(calls.verb(vm_id, "boot", wait_s))

    async def shutdown_vm(
        self, vm_id: UUID | str, *, grace_s: float = 10.0, wait_s: float = 0.0
    ) -> VmAndOperation:
        """Ask the guest to stop; its VMM is ended after `grace_s` if it did not."""
        return await self._send(calls.stop_verb(vm_id, "shutdown", grace_s, wait_s))

    async def pause_vm(self, vm_id: UUID | str, *, wait_s: float = 0.0) -> VmAndOperation:
        """Stop the vCPUs."""
        return await self._send(calls.verb(vm_id, "pause", wait_s))

    async def resume_vm(self, vm_id: UUID | str, *, wait_s: float = 0.0) -> VmAndOperation:
        """Let the vCPUs go on."""
        return await self._send(calls.verb(vm_id, "resume", wait_s))

    async def reboot_vm(
        self, vm_id: UUID | str, *, grace_s: float = 10.0, wait_s: float = 0.0
    ) -> VmAndOperation:
        """Shut down and boot again: a new incarnation."""
        return await self._send(calls.stop_verb(vm_id, "reboot", grace_s, wait_s))

    async def delete_vm(self, vm_id: UUID | str, *, wait_s: float = 0.0) -> VmAndOperation:
        """End a VM if it runs, and free all it holds."""
        return await self._send(calls.delete_vm(vm_id, wait_s))

    async def patch_vm(
        self,
        vm_id: UUID | str,
        *,
        name: str | UnsetType | None = UNSET,
        labels: Mapping[str, str | None] | UnsetType | None = UNSET,
        generation: int | None = None,
    ) -> VmView:
        """Change a VM's name or labels; what is not given stays as it is.

        Args:
            vm_id: Which VM.
            name: The new one; None for none.
            labels: Those to set, and with None those to remove; None for no label at all.
            generation: Only if the VM still stands at this one; PreconditionFailedError if not.
        """
        given = labels if labels is UNSET or labels is None else dict(labels)
        patch = VmPatch(name=name, labels=given)
        return await self._send(calls.patch_vm(vm_id, patch, generation))

    async def snapshot_vm(
        self,
        vm_id: UUID | str,
        *,
        kind: SnapshotKind = SnapshotKind.FULL,
        wait_s: float = 0.0,
    ) -> VmAndOperation:
        """Keep memory and disk of a VM; `operation.snapshot_id` names what is kept."""
        return await self._send(calls.snapshot_vm(vm_id, kind, wait_s))

    async def restore_vm(
        self, vm_id: UUID | str, snapshot_id: UUID | str, *, wait_s: float = 0.0
    ) -> VmAndOperation:
        """Start a VM that is stopped, or was never started, from a snapshot."""
        return await self._send(calls.restore_vm(vm_id, snapshot_id, wait_s))

    async def list_snapshots(
        self, *, vm_id: UUID | str | None = None, page_size: int = 100
    ) -> AsyncIterator[SnapshotView]:
        """Snapshots in the order in which they were asked for, of all VMs or of one."""
        cursor = ""
        while True:
            page = await self._send(calls.list_snapshots(vm_id, page_size, cursor))
            for one in page.snapshots:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return

    async def get_snapshot(self, snapshot_id: UUID | str) -> SnapshotView:
        """One snapshot."""
        return await self._send(calls.get_snapshot(snapshot_id))

    async def delete_snapshot(
        self, snapshot_id: UUID | str, *, wait_s: float = 0.0
    ) -> VmAndOperation:
        """Throw a snapshot away; VMs that were started from it go on."""
        return await self._send(calls.delete_snapshot(snapshot_id, wait_s))

    async def list_images(self) -> list[str]:
        """Names of the images that VMs can be made from."""
        found = await self._send(calls.list_images())
        return [image.name for image in found.images]

    async def list_operations(
        self,
        *,
        vm_id: UUID | str | None = None,
        status: OperationStatus | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[OperationView]:
        """What was asked for of late, newest first."""
        cursor = ""
        while True:
            page = await self._send(calls.list_operations(vm_id, status, page_size, cursor))
            for one in page.operations:
                yield one
            cursor = page.next_cursor
            if not cursor:
                return

    async def get_operation(self, operation_id: UUID | str) -> OperationView:
        """One operation."""
        return await self._send(calls.get_operation(operation_id))

    async def wait_operation(
        self, operation_id: UUID | str, *, timeout_s: float = 120.0
    ) -> OperationView:
        """Look at an operation until it has succeeded.

        Raises:
            OperationFailedError: It has failed.
            TimeoutError: It has done neither within `timeout_s`.
        """
        give_up_s = time.monotonic() + timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            operation = await self.get_operation(operation_id)
            if operation.status is OperationStatus.SUCCEEDED:
                return operation
            if operation.status is OperationStatus.FAILED:
                raise OperationFailedError(operation)
            if time.monotonic() + pause_s > give_up_s:
                raise TimeoutError(f"operation {operation_id} is still {operation.status.value}")
            await asyncio.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def usage(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        vm_ids: Iterable[UUID | str] = (),
    ) -> UsageReport:
        """Usage in `[start, end)`, times with a zone; today in UTC by default."""
        return await self._send(calls.usage(start, end, vm_ids))

    async def audit(
        self, *, start: datetime | None = None, end: datetime | None = None, page_size: int = 100
    ) -> AsyncIterator[AuditEntry]:
        """What was done and refused in `[start, end)`, newest first, fetched page by page.

        Times with a zone; 31 days at most, the last day by default.
        """
        # The same window for all pages, also as time goes on.
        end = end or datetime.now(UTC) + timedelta(seconds=1)
        cursor = ""
        while True:
            page = await self._send(calls.audit(start, end, page_size, cursor))
            for entry in page.entries:
                yield entry
            cursor = page.next_cursor
            if not cursor:
                return

    async def quotas(self) -> QuotaView:
        """What all VMs may take together, and what they take."""
        return await self._send(calls.quotas())

    async def whoami(self) -> WhoAmI:
        """What the API reads from the token."""
        return await self._send(calls.whoami())

    async def _send(self, call: Call[T], attempts: int = 0) -> T:
        async def attempt() -> httpx.Response:
            return await self._http.send(build(self._http, call))

        repeating = AsyncRetrying(
            **policy(call, attempts or self._attempts, come_again=self._come_again)
        )
        return decode(call, await repeating(attempt))
