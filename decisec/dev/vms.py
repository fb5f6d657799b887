"""Shuts down all VMs of a stack before it stops, so that each one's last sample is stored."""

from __future__ import annotations

import asyncio

import httpx

from decisec.dev.supervisor import Report
from decisec.dev.tokens import development_token
from decisec.sdk import ApiError, AsyncClient
from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.subjects import VM_STATUS
from schemas.vms import METERED_STATES, VmStatus, decode_vm_status

_WITHIN_S = 10.0
_GRACE_S = 1.0


async def stop_vms(api_url: str, key: bytes, bus: Bus, report: Report) -> None:
    """Shut down what runs, through the API like any customer, all at once.

    A stack that is not whole any more is not waited for: reaping comes next anyway.
    """
    try:
        async with asyncio.timeout(_WITHIN_S):
            running = await _running(bus)
            if not running:
                return
            report(f"shutting down {len(running)} VMs")
            async with asyncio.TaskGroup() as group:
                for status in running:
                    group.create_task(
                        _stop(api_url, key, status, report), name=f"stop-{status.vm_id}"
                    )
    except TimeoutError as error:
        report(f"the VMs were not shut down in order: {str(error) or 'no answer in time'}")


async def _running(bus: Bus) -> list[VmStatus]:
    bucket: Bucket[VmStatus] = Bucket(bus, VM_STATUS, decode_vm_status)
    return [s for s in (await bucket.all()).values() if s.state in METERED_STATES]


async def _stop(api_url: str, key: bytes, status: VmStatus, report: Report) -> None:
    token = development_token(key, status.customer_id)
    try:
        async with AsyncClient(base_url=api_url, token=token) as client:
            await client.shutdown_vm(status.vm_id, grace_s=_GRACE_S, wait_s=_WITHIN_S)
    except (ApiError, httpx.HTTPError) as error:
        report(f"VM {status.vm_id} was not shut down in order: {error}")
