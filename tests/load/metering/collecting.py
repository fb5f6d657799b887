"""How many samples one collector checks in a second: by itself, and through a nats-server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.ids import new_id
from schemas.subjects import METRICS_ENRICHED
from schemas.units import TICK_MS
from tests.load.bench_collector import SIZES, columnar, prepare, rate, sample_by_sample
from tests.load.machine import Watch
from tests.load.metering import stream
from tests.load.metering.clock import ticks_until_now_ms
from tests.support.frames import busy_frames, record
from tests.support.stack import metering_stack

_VMS = 1000
_AT_MOST = 4000
"""Frames of a backlog: 320 MB in each of two streams."""
_EXPECTED_PER_S = 1_000_000


def by_itself(seconds: float) -> dict[str, Any]:
    """Decode, check, enrich, encode, without the network, by VMs per frame."""
    found: dict[str, Any] = {}
    for vms in SIZES:
        prepared = prepare(vms)
        samples = sum(frame.rows for frame in prepared.frames)
        ours = rate(columnar(prepared), samples, seconds)
        one_by_one = rate(sample_by_sample(prepared), samples, seconds)
        found[str(vms)] = {
            "samples_per_s": ours,
            "one_by_one_samples_per_s": one_by_one,
            "ratio": round(ours / one_by_one, 1),
        }
    return found


async def through_nats(folder: Path, seconds: float) -> dict[str, Any]:
    """A backlog of frames of 1000 VMs through one collector process.

    From the first enriched frame to the last by the stream's clock; what the process takes to
    start is left out.
    """
    count = min(_AT_MOST, max(100, round(seconds * _EXPECTED_PER_S / _VMS)))
    vm_ids = [new_id() for _ in range(_VMS)]
    async with metering_stack(folder, start=("nats-server",)) as stack, stack.bus() as bus:
        await stream.put_records(
            bus, [record(v, customer=f"c{i % 7}") for i, v in enumerate(vm_ids)]
        )
        begin_ms = ticks_until_now_ms(count)
        frames, samples = await stream.put_frames(
            bus, busy_frames(vm_ids, count, start_ms=begin_ms)
        )
        await stack.start("collector")
        async with Watch(stack.pids("nats-server", "collector")) as watch:
            await stream.holds(bus, METRICS_ENRICHED, frames, timeout_s=60 + seconds * 20)
        took_s = await stream.taken_s(bus, METRICS_ENRICHED)
    return {
        "samples": samples,
        "vms_per_frame": _VMS,
        "samples_per_s": stream.rate(samples - _VMS, took_s),
        "frames_per_s": stream.rate(frames - 1, took_s),
        "seconds": round(took_s, 2),
        "live_hosts": stream.rate(frames - 1, took_s) * TICK_MS // 1000,
        "cpu_s": watch.load().cpu_s,
    }
