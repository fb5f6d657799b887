"""Both pipelines side by side: the same work as a backlog, from checked to queryable."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from runtime.bus import Bus
from schemas import subjects
from schemas.ids import new_id
from tests.load.flood.posting import Letter, posting
from tests.load.metering import per_sample, stream
from tests.load.metering.clock import ticks_until_now_ms
from tests.support.frames import busy_frames, record
from tests.support.stack import metering_stack

_VMS = 100
_OURS_PER_S = 200_000
_ONE_BY_ONE_PER_S = 4_000
"""About what two CPUs do in a second, so that both take about as long."""
_PATIENCE = 20


async def baseline(folder: Path, seconds: float) -> dict[str, Any]:
    """Samples a second of both, and their ratio."""
    ours = await _ours(folder / "ours", max(40, round(seconds * _OURS_PER_S / _VMS)), seconds)
    plain = await _one_by_one(
        folder / "plain", max(5, round(seconds * _ONE_BY_ONE_PER_S / _VMS)), seconds
    )
    return {
        "ours": ours,
        "one_by_one": plain,
        "ratio": round(ours["samples_per_s"] / plain["samples_per_s"], 1),
    }


async def _ours(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    vm_ids = [new_id() for _ in range(_VMS)]
    async with (
        metering_stack(folder, start=("nats-server", "batcher")) as stack,
        stack.bus() as bus,
        stream.listening(bus) as ear,
    ):
        await stream.put_records(bus, [record(vm_id) for vm_id in vm_ids])
        frames = busy_frames(vm_ids, count, start_ms=ticks_until_now_ms(count))
        _, samples = await stream.put_frames(bus, frames)
        await stack.start("collector")
        return await _measured(bus, ear, subjects.METRICS_ENRICHED, samples, seconds)


async def _one_by_one(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    vm_ids = [new_id() for _ in range(_VMS)]
    async with (
        metering_stack(folder, start=("nats-server",)) as stack,
        stack.bus() as bus,
        stream.listening(bus) as ear,
    ):
        await per_sample.declare(bus)
        await stream.put_records(bus, [record(vm_id) for vm_id in vm_ids])
        samples = 0
        async with posting(bus, stream.nothing) as post:
            for frame in busy_frames(vm_ids, count, start_ms=ticks_until_now_ms(count)):
                for sample in per_sample.samples_of(frame):
                    name = f"{frame.msg_id}:{sample['vm_id']}"
                    body = json.dumps(sample).encode()
                    await post.send(Letter(f"baseline.raw.{frame.host}", body, name, 0))
                    samples += 1
        url = stack.ports.nats_url
        async with _process("write", url, str(folder / "store")) as writer:
            if writer.stdout is None or not await writer.stdout.readline():
                raise RuntimeError("the baseline's writer did not start")
            async with _process("check", url):
                return await _measured(bus, ear, per_sample.CHECKED, samples, seconds)


async def _measured(
    bus: Bus, ear: stream.Ear, checked: str, samples: int, seconds: float
) -> dict[str, Any]:
    """From the first checked message to the last row stored."""
    await ear.until(
        lambda heard: sum(message.rows for message in heard) >= samples,
        timeout_s=60 + seconds * _PATIENCE,
    )
    begin_s = await stream.first_s(bus, checked)
    took_s = ear.heard[-1].stored_at_ns / 1e9 - begin_s
    return {
        "samples": samples,
        "seconds": round(took_s, 2),
        "samples_per_s": stream.rate(samples, took_s),
    }


@asynccontextmanager
async def _process(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.load.metering.per_sample", *words,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
