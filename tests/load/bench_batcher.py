"""How fast the batcher stores, how late, and how small. Prints JSON.

All with chDB, and all but the first with a real nats-server:

- `bare`: prepared Arrow tables into the store by `insert_arrow`, nothing else.
- `backlog`: the same frames waiting in the stream, through a batcher process. With `bare` by
  turns, for frames of each size; the ratio is what the batcher leaves of the store's own speed.
- `live`: a few VMs at 10 Hz for a while: lag, parts, CPU.

    python -m tests.load.bench_batcher --vms 20,100,1000 --rows 2000000 --rounds 3 --seconds 120
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from batcher.batch import table, token
from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.bus import Bus, Message
from runtime.publisher import Publisher
from runtime.telemetry import configure_logging
from schemas import subjects
from schemas.frames import EnrichedFrame, FramesStored, encode_frame
from schemas.ids import new_id
from tests.support.batcher import BatcherProcess, all_stored, batcher_process
from tests.support.nats import bus_with_streams
from tests.support.store import DAY_NS, embedded_store

_BATCH_ROWS = 200_000
_VMS = 2000
"""In all; as many hosts as that takes."""
_MOST_FRAMES = 50_000


@dataclass(frozen=True)
class BatcherFigures:
    """How fast the batcher was beside the bare store; medians of the rounds.

    Attributes:
        rows: Of each run.
        bare_rows_per_s: Prepared tables by `insert_arrow`.
        rows_per_s: Frames from a nats-server through a batcher process.
        ratio: Between the two.
        flushes: Inserts of the last round.
        cpu_us_per_row: What the batcher's process took, its store and merges included.
        bytes_per_sample: On disk after all merges.
        load_average: Of the machine when it began: above 1, others had a share of all this.
    """

    vms_per_frame: int
    rows: int
    bare_rows_per_s: int
    rows_per_s: int
    ratio: float
    flushes: int
    cpu_us_per_row: float
    bytes_per_sample: float
    load_average: float


async def measure_batcher(
    *, vms_per_frame: int, rows: int = 2_000_000, rounds: int = 1
) -> BatcherFigures:
    """Run the bare store and the batcher by turns over the same frames.

    Args:
        vms_per_frame: VMs of each host.
        rows: Of each run; fewer if that took more than 50,000 frames.
        rounds: So often.
    """
    count = min(rows // vms_per_frame, _MOST_FRAMES)
    bares, backlogs = [], []
    load_average = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="bench-batcher-") as folder:
        for number in range(rounds):
            root = Path(folder) / str(number)
            root.mkdir()
            bares.append(await bare(root, vms_per_frame, count))
            backlogs.append(await backlog(root, vms_per_frame, count))
    rows = count * vms_per_frame
    return BatcherFigures(
        vms_per_frame=vms_per_frame,
        rows=rows,
        bare_rows_per_s=round(median(run["insert_rows_per_s"] for run in bares)),
        rows_per_s=round(median(run["rows_per_s"] for run in backlogs)),
        ratio=round(
            median(
                through["rows_per_s"] / alone["insert_rows_per_s"]
                for through, alone in zip(backlogs, bares, strict=True)
            ),
            3,
        ),
        flushes=backlogs[-1]["flushes"],
        cpu_us_per_row=round(
            median(run["cpu_s"] for run in backlogs) / (count * vms_per_frame) * 1e6, 3
        ),
        bytes_per_sample=bares[-1]["stored"]["samples"]["bytes_per_row"],
        load_average=load_average,
    )


def load(vms: int, count: int) -> Iterator[EnrichedFrame]:
    """So many frames of enough hosts for 2000 VMs, tick by tick."""
    hosts = max(1, _VMS // vms)
    streams = [frames(vms, count // hosts + 1, seed=n + 1, host=f"h{n}") for n in range(hosts)]
    for number in range(count):
        yield next(streams[number % hosts])


def frames(vms: int, count: int, *, seed: int = 1, host: str = "h1") -> Iterator[EnrichedFrame]:
    """One host's frames: exact uptime and memory, noisy CPU and network, disks now and then."""
    random = np.random.default_rng(seed)
    ids = b"".join(new_id().bytes for _ in range(vms))
    run_id = new_id()
    start_ms = time.time_ns() // 10**8 * 100 - count * 100
    counters = {
        name: np.zeros(vms, "<u8")
        for name in (
            "uptime_ms", "cpu_ns", "mem_kib_ms", "disk_read_bytes", "disk_write_bytes",
            "net_rx_bytes", "net_tx_bytes",
        )
    }  # fmt: skip
    for seq in range(count):
        busy = random.random(vms) < 0.1
        counters["uptime_ms"] += np.uint64(100)
        counters["cpu_ns"] += random.integers(1_000_000, 100_000_000, vms).astype("<u8")
        counters["mem_kib_ms"] += np.uint64(131_072 * 100)
        for disk in ("disk_read_bytes", "disk_write_bytes"):
            counters[disk] += np.where(busy, random.integers(0, 64, vms) * 4096, 0).astype("<u8")
        for net in ("net_rx_bytes", "net_tx_bytes"):
            counters[net] += random.integers(0, 20, vms).astype("<u8") * np.uint64(1514)
        yield EnrichedFrame(
            host=host, run_id=run_id, seq=seq, tick_ms=start_ms + seq * 100,
            sampled_at_ns=(start_ms + seq * 100) * 10**6 + int(random.integers(0, 10**6)),
            collected_at_ns=time.time_ns(), region="local",
            customers=("acme", "globex"), pools=("default",), price_plans=("default",),
            vm_ids=ids, incarnations=np.ones(vms, "<u4").tobytes(),
            states=np.full(vms, 4, "<u1").tobytes(), flags=np.zeros(vms, "<u1").tobytes(),
            mem_bytes=np.full(vms, 64 * 2**20, "<u8").tobytes(),
            customer_index=(np.arange(vms) % 2).astype("<u2").tobytes(),
            pool_index=np.zeros(vms, "<u2").tobytes(),
            price_plan_index=np.zeros(vms, "<u2").tobytes(),
            vcpus=np.ones(vms, "<u2").tobytes(), memory_mib=np.full(vms, 128, "<u4").tobytes(),
            **{name: column.tobytes() for name, column in counters.items()},  # type: ignore[arg-type]
        )  # fmt: skip


async def size_of(store: Store) -> dict[str, Any]:
    """Rows and bytes on disk per table, after all merges."""
    out: dict[str, Any] = {}
    for name in ("samples", "usage_minute"):
        await store.command(f"OPTIMIZE TABLE {name} FINAL")
        rows = await store.query(
            "SELECT sum(rows), sum(bytes_on_disk) FROM system.parts "
            "WHERE active AND database = currentDatabase() AND table = {t:String}",
            {"t": name},
        )
        out[name] = {"rows": rows[0][0], "bytes_on_disk": rows[0][1]}
        out[name]["bytes_per_row"] = round(rows[0][1] / max(1, rows[0][0]), 2)
    return out


def batched(vms: int, count: int) -> Iterator[list[EnrichedFrame]]:
    """The load in batches as the batcher takes them."""
    step = max(1, _BATCH_ROWS // vms)
    batch: list[EnrichedFrame] = []
    for frame in load(vms, count):
        batch.append(frame)
        if len(batch) == step:
            yield batch
            batch = []
    if batch:
        yield batch


async def bare(folder: Path, vms: int, count: int) -> dict[str, Any]:
    """Prepared tables straight into the store."""
    began = time.perf_counter()
    batches = [
        (table(b, now_ns=time.time_ns(), keep_ns=DAY_NS), token(b)) for b in batched(vms, count)
    ]
    built = time.perf_counter() - began
    first, first_token = batches[0]
    async with embedded_store(folder / "bare") as store:
        await store.insert("samples", first, token=first_token)
        began = time.perf_counter()
        for rows, batch_id in batches[1:]:
            await store.insert("samples", rows, token=batch_id)
        seconds = time.perf_counter() - began
        sizes = await size_of(store)
    return {
        "rows": vms * count,
        "insert_rows_per_s": round((vms * count - first.num_rows) / seconds),
        "build_rows_per_s": round(vms * count / built),
        "stored": sizes,
    }


@dataclass
class Ear:
    """Hears what the batcher says it has stored."""

    messages: list[FramesStored] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_stored(self, message: Message) -> None:
        self.messages.append(msgspec.json.decode(message.data, type=FramesStored))
        self.heard.set()


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[tuple[str, Bus, Ear]]:
    """A nats-server with streams, and an ear on it."""
    async with bus_with_streams(folder / "nats") as (server, bus):
        ear = Ear()
        await bus.subscribe(subjects.METRICS_STORED, ear.on_stored)
        yield server.url, bus, ear


async def publish_all(bus: Bus, some: Iterable[EnrichedFrame]) -> None:
    """As fast as the stream takes them."""
    publisher = Publisher(bus, max_in_flight=64)
    pending: set[asyncio.Task[Any]] = set()
    async with asyncio.TaskGroup() as group:
        for frame in some:
            while len(pending) >= 64:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            sending = publisher.publish(
                subjects.metrics_enriched(frame.host), encode_frame(frame), msg_id=frame.msg_id
            )
            pending.add(group.create_task(sending, name=f"publish-{frame.seq}"))


async def backlog(folder: Path, vms: int, count: int) -> dict[str, Any]:
    """Frames that wait in the stream, through a batcher process."""
    async with stack(folder) as (url, bus, ear):
        await publish_all(bus, load(vms, count))
        async with batcher_process(folder, url) as batcher:
            await first_heard(ear)
            began_ns, first = ear.messages[0].stored_at_ns, ear.messages[0].rows
            await all_stored(bus, timeout_s=600)
            stored = sum(message.rows for message in ear.messages) - first
            seconds = (ear.messages[-1].stored_at_ns - began_ns) / 1e9
            cpu_s = cpu_seconds(batcher)
            await batcher.stop()
    return {
        "rows": vms * count,
        "flushes": len(ear.messages),
        # From the first flush to the last, so that the start of the process does not count.
        "rows_per_s": round(stored / seconds) if seconds else None,
        "cpu_s": cpu_s,
    }


async def live(folder: Path, vms: int, seconds: int) -> dict[str, Any]:
    """A few VMs at 10 Hz, in real time."""
    async with stack(folder) as (url, bus, ear), batcher_process(folder, url) as batcher:
        publisher = Publisher(bus)
        [first, *rest] = list(frames(vms, seconds * 10 + 1))
        await publisher.publish("metrics.enriched.h1", encode_frame(first), msg_id=first.msg_id)
        await first_heard(ear)
        ear.messages.clear()
        cpu_before = cpu_seconds(batcher)
        due = time.monotonic()
        for frame in rest:
            now_ns = time.time_ns()
            fresh = msgspec.structs.replace(frame, sampled_at_ns=now_ns, collected_at_ns=now_ns)
            await publisher.publish("metrics.enriched.h1", encode_frame(fresh), msg_id=fresh.msg_id)
            due += 0.1
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await all_stored(bus)
        cpu_s = cpu_seconds(batcher) - cpu_before
        await batcher.stop()
    store = Store(BatcherSettings(store_path=str(batcher.store_path)))
    try:
        parts = await store.query(
            "SELECT table, count() FROM system.parts "
            "WHERE active AND database = currentDatabase() GROUP BY table"
        )
    finally:
        await store.close()
    lags = np.array([lag for message in ear.messages for lag in message.lags_ms])
    return {
        "vms": vms,
        "seconds": seconds,
        "flushes": len(ear.messages),
        "lag_ms": {
            "p50": float(np.percentile(lags, 50)),
            "p99": float(np.percentile(lags, 99)),
            "max": int(lags.max()),
        },
        "active_parts": {str(name): int(number) for name, number in parts},
        "cpu_ratio": round(cpu_s / seconds, 3),
    }


async def first_heard(ear: Ear) -> None:
    """Return once something was stored."""
    async with asyncio.timeout(60):
        await ear.heard.wait()


def cpu_seconds(batcher: BatcherProcess) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{batcher.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs."""
    out: dict[str, Any] = {"backlog": []}
    for vms in map(int, arguments.vms.split(",")):
        figures = await measure_batcher(
            vms_per_frame=vms, rows=arguments.rows, rounds=arguments.rounds
        )
        out["backlog"].append(asdict(figures))
    if arguments.seconds:
        with tempfile.TemporaryDirectory(prefix="bench-batcher-") as folder:
            out["live"] = await live(Path(folder), arguments.live_vms, arguments.seconds)
    return out


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", default="20,100,1000", help="VMs per frame, one run for each")
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of each run")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each kind, by turns")
    parser.add_argument("--live-vms", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=120, help="of the live run; 0: none")
    configure_logging("bench", "warning")
    sys.stdout.write(json.dumps(asyncio.run(run(parser.parse_args())), indent=2) + "\n")


if __name__ == "__main__":
    main()
