"""How many bytes a sample takes on disk, column by column, with one codec or another.

A load as hosts have it: VMs that idle, that work steadily and that are busy; CPU counted in µs,
packets that come in bursts, disk counters that only a VMM knows and that move once a second.
Each candidate codec is given to all integer columns of a copy of `samples`; the copies get the
same inserts and one final merge. `schema` is the table as it is.

    python -m tests.load.bench_codecs --hosts 10 --vms 100 --ticks 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batcher.batch import table
from batcher.store import Store
from runtime.telemetry import configure_logging
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from schemas.units import NS_PER_MS, TICK_MS
from tests.support.store import DAY_NS, embedded_store

CANDIDATES = (
    "LZ4",
    "ZSTD(1)",
    "ZSTD(3)",
    "Delta, LZ4",
    "Delta, ZSTD(1)",
    "Delta, ZSTD(3)",
    "DoubleDelta, ZSTD(1)",
    "T64, ZSTD(1)",
    "GCD, ZSTD(1)",
    "GCD, Delta, ZSTD(1)",
    "Delta, GCD, ZSTD(1)",
)
SCHEMA = "schema"
_INTEGERS = ("UInt16", "UInt32", "Int64", "DateTime64")
_REFRESH_TICKS = 10
_PAGE_BYTES = 4096
_FRAME_BYTES = 1514


@dataclass(frozen=True)
class Sizes:
    """What a copy of the table took.

    Attributes:
        codec: Of its integer columns.
        bytes_per_sample: All columns.
        columns: Bytes per sample of each.
        insert_us_per_row: CPU of the inserts, merges not included.
        merge_us_per_row: CPU of one final merge.
    """

    codec: str
    bytes_per_sample: float
    columns: dict[str, float]
    insert_us_per_row: float
    merge_us_per_row: float


class Host:
    """Frames of one host, tick by tick."""

    def __init__(self, number: int, vms: int, start_ms: int) -> None:
        self._random = np.random.default_rng(number)
        self._name = f"host-{number:03}"
        self._run_id = new_id()
        self._vms = vms
        self._start_ms = start_ms
        self._ids = b"".join(new_id().bytes for _ in range(vms))
        kinds = self._random.random(vms)
        self._idle, self._busy = kinds < 0.6, kinds > 0.9
        self._memory_mib = self._random.choice([128, 256, 512, 1024, 4096], vms)
        self._used_pages = self._memory_mib * 128 + self._random.integers(0, 4096, vms)
        self._owner = self._random.integers(0, 10, vms)
        names = ("uptime_ms", "cpu_ns", "mem_kib_ms", "net_rx_bytes", "net_tx_bytes")
        self._counters = {name: np.zeros(vms, "<i8") for name in names}
        self._disks = {n: np.zeros(vms, "<i8") for n in ("disk_read_bytes", "disk_write_bytes")}
        self._shown = {name: column.copy() for name, column in self._disks.items()}

    def frame(self, seq: int) -> EnrichedFrame:
        """The next one."""
        self._work(seq)
        tick_ms = self._start_ms + seq * TICK_MS
        noise_ns = int(abs(self._random.normal(700_000, 300_000)))
        sampled_at_ns = tick_ms * NS_PER_MS + noise_ns
        vms = self._vms
        columns: dict[str, npt.NDArray[Any]] = {**self._counters, **self._shown}
        return EnrichedFrame(
            host=self._name, run_id=self._run_id, seq=seq, tick_ms=tick_ms,
            sampled_at_ns=sampled_at_ns,
            collected_at_ns=sampled_at_ns + int(self._random.gamma(2, 3_000_000)),
            region="local", customers=tuple(f"customer-{n}" for n in range(10)),
            pools=("default", "gpu"), price_plans=("default", "gold"),
            vm_ids=self._ids, incarnations=np.ones(vms, "<u4").tobytes(),
            states=np.full(vms, 4, "<u1").tobytes(), flags=np.zeros(vms, "<u1").tobytes(),
            mem_bytes=(self._used_pages * _PAGE_BYTES).astype("<u8").tobytes(),
            customer_index=self._owner.astype("<u2").tobytes(),
            pool_index=(self._owner % 2).astype("<u2").tobytes(),
            price_plan_index=(self._owner % 2).astype("<u2").tobytes(),
            vcpus=np.maximum(1, self._memory_mib // 1024).astype("<u2").tobytes(),
            memory_mib=self._memory_mib.astype("<u4").tobytes(),
            **{name: column.astype("<u8").tobytes() for name, column in columns.items()},  # type: ignore[arg-type]
        )  # fmt: skip

    def _work(self, seq: int) -> None:
        random, vms, counters = self._random, self._vms, self._counters
        idle_us = np.where(random.random(vms) < 0.3, random.gamma(2, 40, vms), 0)
        steady_us = random.normal(30_000, 6_000, vms).clip(0)
        busy_us = random.normal(98_000, 1_500, vms).clip(0, 100_000)
        used_us = np.where(self._busy, busy_us, np.where(self._idle, idle_us, steady_us))
        counters["cpu_ns"] += used_us.astype("<i8") * 1000
        counters["uptime_ms"] += TICK_MS
        moved = random.random(vms) < np.where(self._idle, 0.005, 0.1)
        self._used_pages += np.where(moved, random.integers(-64, 65, vms), 0)
        counters["mem_kib_ms"] += self._used_pages * (_PAGE_BYTES // 1024) * TICK_MS
        for name in ("net_rx_bytes", "net_tx_bytes"):
            talks = random.random(vms) < np.where(self._idle, 0.02, 0.7)
            whole = random.integers(0, 200, vms) * _FRAME_BYTES * self._busy
            counters[name] += np.where(talks, whole + random.integers(60, _FRAME_BYTES, vms), 0)
        for name, disk in self._disks.items():
            works = random.random(vms) < np.where(self._idle, 0.01, 0.3)
            disk += np.where(works, random.integers(1, 64, vms) * _PAGE_BYTES, 0)
            if seq % _REFRESH_TICKS == 0:
                self._shown[name] = disk.copy()


def tables(hosts: int, vms: int, ticks: int, batch_rows: int = 200_000) -> Iterator[pa.Table]:
    """The load as the batcher inserts it."""
    start_ms = time.time_ns() // 10**8 * TICK_MS - ticks * TICK_MS
    fleet = [Host(number, vms, start_ms) for number in range(hosts)]
    step = max(1, batch_rows // (hosts * vms))
    for begin in range(0, ticks, step):
        frames = [h.frame(seq) for seq in range(begin, min(begin + step, ticks)) for h in fleet]
        yield table(frames, now_ns=time.time_ns(), keep_ns=DAY_NS)


async def copy_of(store: Store, codec: str) -> str:
    """An empty table like `samples`, with this codec on its integer columns."""
    name = "copy_" + "".join(c if c.isalnum() else "_" for c in codec.lower())
    await store.command(f"CREATE TABLE {name} AS samples")
    # Only parts of this kind know the size of each column.
    await store.command(f"ALTER TABLE {name} MODIFY SETTING min_bytes_for_wide_part = 0")
    if codec != SCHEMA:
        columns = await store.query(
            "SELECT name, type FROM system.columns "
            "WHERE database = currentDatabase() AND table = 'samples' AND default_kind != 'ALIAS'"
        )
        for column, kind in columns:
            if str(kind).startswith(_INTEGERS):
                await store.command(f"ALTER TABLE {name} MODIFY COLUMN {column} CODEC({codec})")
    return name


async def measure(store: Store, codec: str, batches: Sequence[pa.Table]) -> Sizes:
    """Fill a copy, merge it, and look what it takes."""
    name = await copy_of(store, codec)
    rows = sum(batch.num_rows for batch in batches)
    await store.command(f"SYSTEM STOP MERGES {name}")
    began = time.process_time()
    for number, batch in enumerate(batches):
        await store.insert(name, batch, token=f"{codec}-{number}")
    inserted = time.process_time()
    await store.command(f"SYSTEM START MERGES {name}")
    await store.command(f"OPTIMIZE TABLE {name} FINAL")
    merged = time.process_time()
    found = await store.query(
        "SELECT column, sum(column_data_compressed_bytes) FROM system.parts_columns "
        "WHERE active AND database = currentDatabase() AND table = {t:String} "
        "GROUP BY column ORDER BY column",
        {"t": name},
    )
    await store.command(f"DROP TABLE {name} SYNC")
    columns = {str(column): round(int(size) / rows, 3) for column, size in found}
    return Sizes(
        codec=codec,
        bytes_per_sample=round(sum(columns.values()), 2),
        columns=columns,
        insert_us_per_row=round((inserted - began) / rows * 1e6, 3),
        merge_us_per_row=round((merged - inserted) / rows * 1e6, 3),
    )


async def measure_codecs(
    *, hosts: int, vms: int, ticks: int, codecs: Sequence[str] = (SCHEMA, *CANDIDATES)
) -> list[Sizes]:
    """All candidates over the same load, in one store."""
    batches = list(tables(hosts, vms, ticks))
    with tempfile.TemporaryDirectory(prefix="bench-codecs-") as folder:
        async with embedded_store(Path(folder) / "store") as store:
            return [await measure(store, codec, batches) for codec in codecs]


def shown(results: Sequence[Sizes]) -> str:
    """As a table: a line per column, the smallest size of each marked."""
    head = ["column", *(sizes.codec for sizes in results)]
    lines = [head, ["---"] * len(head)]
    for column in sorted(results[0].columns, key=lambda c: -results[0].columns[c]):
        values = [sizes.columns[column] for sizes in results]
        marked = [f"**{v:.3f}**" if v == min(values) else f"{v:.3f}" for v in values]
        lines.append([column, *marked])
    lines += [
        ["all", *(f"{sizes.bytes_per_sample:.2f}" for sizes in results)],
        ["insert, µs/row", *(f"{sizes.insert_us_per_row:.2f}" for sizes in results)],
        ["merge, µs/row", *(f"{sizes.merge_us_per_row:.2f}" for sizes in results)],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--vms", type=int, default=100, help="VMs of each host")
    parser.add_argument("--ticks", type=int, default=1000)
    parser.add_argument("--codec", action="append", help="instead of all candidates; repeatable")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    configure_logging("bench", "warning")
    results = asyncio.run(
        measure_codecs(
            hosts=arguments.hosts, vms=arguments.vms, ticks=arguments.ticks,
            codecs=(SCHEMA, *(arguments.codec or CANDIDATES)),
        )
    )  # fmt: skip
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(sizes) for sizes in results], indent=2) + "\n")
    else:
        sys.stdout.write(shown(results))


if __name__ == "__main__":
    main()
