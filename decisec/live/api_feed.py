"""Follows the metrics of one's own VMs by the API, where there is no bus to look on at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from decisec.live.feed import now_ms
from decisec.live.rates import Live
from decisec.live.samples import Sample
from schemas.frames import SampleFlag
from schemas.vms import METERS, VmState

if TYPE_CHECKING:
    from decisec.sdk import AsyncClient
    from schemas.live import LiveSample

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATES = {state.value: state for state in VmState}


@asynccontextmanager
async def following_api(client: AsyncClient, customer: str) -> AsyncIterator[Live]:
    """Live rates, kept up to date for the length of the block; how late rows are is not known.

    Raises:
        ApiError: The API ends the stream for good.
        httpx.TransportError: It has been away for too long.
    """
    live = Live()

    async def read() -> None:
        async for sample in client.live_metrics():
            tick_ms = (sample.at - _EPOCH) // timedelta(milliseconds=1)
            live.take_sample(tick_ms, as_sample(sample, customer), now_ms())

    try:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(), name="live metrics")
            yield live
            reading.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


def as_sample(sample: LiveSample, customer: str) -> Sample:
    """The same as it comes in frames."""
    flags = SampleFlag(0)
    if sample.final:
        flags |= SampleFlag.FINAL
    if sample.simulated:
        flags |= SampleFlag.SIMULATED
    return Sample(
        vm_id=sample.vm_id,
        customer=customer,
        incarnation=sample.incarnation,
        state=_STATES.get(sample.state),
        flags=flags,
        mem_bytes=sample.mem_bytes,
        counters=tuple(getattr(sample, meter) for meter in METERS),
    )
