"""What one, two and three collectors get through together. Prints JSON, writes it with --json.

A backlog of raw frames waits in a real nats-server; collectors are started, and once they share
the partitions the frames that come out are counted. The CPU of each process tells what it costs
where the machine has no core for each of them.

    python -m tests.load.bench_scaleout --collectors 1,2,3 --vms 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.publisher import Publisher
from runtime.reading import count_messages
from runtime.telemetry import configure_logging
from schemas.frames import Frame, encode_frame
from schemas.ids import new_id
from schemas.subjects import METRICS_ENRICHED, VM_SPECS, metrics_raw, vm_key
from schemas.vms import VmRecord, decode_vm_record
from tests.support.collector import collector_process, roll_of
from tests.support.frames import busy_frames, record
from tests.support.nats import bus_with_streams

REPORT = Path(".decisec/bench/scaleout.json")
_SENDERS = 64
_DONE = 0.95
"""Share of the backlog until which is counted: at the end some partitions are through."""


async def fill(bus: Bus, hosts: int, vms: int, frames: int) -> None:
    """Put so many frames into the raw stream, and the VMs' records into their bucket."""
    bucket: Bucket[VmRecord] = Bucket(bus, VM_SPECS, decode_vm_record)
    publisher = Publisher(bus)
    start_ms = time.time_ns() // 10**8 * 100 - frames * 100
    waiting: list[Frame] = []
    for number in range(hosts):
        vm_ids = [new_id() for _ in range(vms)]
        for vm_id in vm_ids:
            one = record(vm_id, host=f"host-{number}")
            await bucket.put(vm_key(one.customer_id, vm_id), one)
        waiting += busy_frames(vm_ids, frames // hosts, start_ms=start_ms, host=f"host-{number}")
    # As they would come: tick by tick, all hosts.
    order = iter(sorted(waiting, key=lambda frame: frame.seq))

    async def send() -> None:
        for frame in order:
            await publisher.publish(
                metrics_raw(frame.host), encode_frame(frame), msg_id=frame.msg_id
            )

    async with asyncio.TaskGroup() as group:
        for number in range(_SENDERS):
            group.create_task(send(), name=f"fill-{number}")


async def measure(collectors: int, hosts: int, vms: int, frames: int) -> dict[str, Any]:
    """One run with so many collectors."""
    async with AsyncExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="decisec-bench-")))
        server, bus = await exits.enter_async_context(bus_with_streams(folder / "nats"))
        await fill(bus, hosts, vms, frames)
        roll = await roll_of(bus)
        processes = [
            await exits.enter_async_context(
                collector_process(folder, server.url, name=f"collector-{number}")
            )
            for number in range(collectors)
        ]
        await roll.spread_over(collectors, timeout_s=60)
        pids = [process.pid for process in processes]
        first, began_s = await count_messages(bus, METRICS_ENRICHED), time.monotonic()
        cpu_s, server_s = [_cpu_s(pid) for pid in pids], _cpu_s(server.pid)
        passed = 0
        async with asyncio.timeout(300):
            while first + passed < _DONE * frames:
                await asyncio.sleep(0.1)
                passed = await count_messages(bus, METRICS_ENRICHED) - first
        seconds = time.monotonic() - began_s
        used_s = sum(_cpu_s(pid) - before for pid, before in zip(pids, cpu_s, strict=True))
        server_s = _cpu_s(server.pid) - server_s
        for process in processes:
            await process.stop()
    return {
        "collectors": collectors,
        "frames": passed,
        "seconds": round(seconds, 2),
        "frames_per_s": round(passed / seconds),
        "samples_per_s": round(passed * vms / seconds),
        "frames_per_cpu_s_of_collectors": round(passed / used_s),
        "hosts_at_10_hz_per_core": round(passed / used_s / 10),
        "frames_per_cpu_s_of_nats_server": round(passed / server_s),
        "cpus_used": round((used_s + server_s) / seconds, 2),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collectors", default="1,2,3", help="numbers of them (default: 1,2,3)")
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--vms", type=int, default=20, help="on each host (default: 20)")
    parser.add_argument("--frames", type=int, default=40_000, help="in all (default: 40000)")
    parser.add_argument("--json", action="store_true", help=f"write {REPORT} too")
    arguments = parser.parse_args()
    configure_logging("bench", "error")
    runs = [
        asyncio.run(measure(int(number), arguments.hosts, arguments.vms, arguments.frames))
        for number in arguments.collectors.split(",")
    ]
    text = json.dumps({"vms_per_frame": arguments.vms, "runs": runs}, indent=2) + "\n"
    if arguments.json:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
