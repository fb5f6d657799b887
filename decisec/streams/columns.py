"""Samples as a Parquet file: a frame's columns as they are, without a row being made of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decisec.live.samples import column, vm_ids
from decisec.streams.decoding import STATE_NAMES, instant, when_ms
from decisec.streams.targets import Item
from runtime.errors import FatalError
from schemas.frames import EnrichedFrame, Frame, SampleFlag, replay_of
from schemas.units import NS_PER_MS
from schemas.vms import METERS

_NAMES_KEPT = 256


class Parquet:
    """A file with a row per sample, and the columns of `decoding.sample_rows`."""

    written_bytes = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._names: dict[bytes, Any] = {}

    async def take(self, items: Sequence[Item]) -> None:
        """A row group of them."""
        if frames := [item for item in items if item.frame is not None and item.frame.rows]:
            # In this thread: one that is left alone by Ctrl-C would write on while all is closed.
            self._write(frames)

    def close(self) -> None:
        """All is written; what has been written so far is a whole file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, items: Sequence[Item]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables([pa.table(self._columns(item)) for item in items])
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def _columns(self, item: Item) -> dict[str, Any]:
        import pyarrow as pa

        frame, record = item.frame, item.record
        if frame is None:
            raise ValueError("only samples have columns")

        def same(value: Any, kind: Any) -> Any:
            return pa.repeat(pa.scalar(value, kind), frame.rows)

        def numbers(name: str, kind: Any) -> Any:
            # Frames hold little-endian numbers, as Arrow does.
            return pa.Array.from_buffers(
                kind, frame.rows, [None, pa.py_buffer(getattr(frame, name))]
            )

        word, whole = pa.string(), pa.int64()
        columns = {
            "sequence": same(record.sequence, whole),
            "stored_at": same(instant(record.at), word),
            "replay": same(replay_of(record.headers) or None, word),
            "host": same(frame.host, word),
            "run_id": same(str(frame.run_id), word),
            "seq": same(frame.seq, whole),
            "tick_ms": same(frame.tick_ms, whole),
            "tick": same(when_ms(frame.tick_ms), word),
            "sampled_at_ns": same(frame.sampled_at_ns, whole),
            "vm_id": self._vm_ids(frame),
            "incarnation": numbers("incarnations", pa.uint32()),
            "state": pa.array([STATE_NAMES.get(state, "") for state in frame.states], word),
            **{
                flag.name.lower(): pa.array([bool(flags & flag) for flags in frame.flags])
                for flag in SampleFlag
                if flag.name
            },
            **{name: numbers(name, pa.uint64()) for name in ("mem_bytes", *METERS)},
        }
        if isinstance(frame, EnrichedFrame):
            columns |= {
                "customer_id": _words(frame, frame.customers, "customer_index"),
                "pool": _words(frame, frame.pools, "pool_index"),
                "price_plan": _words(frame, frame.price_plans, "price_plan_index"),
                "region": same(frame.region, word),
                "vcpus": numbers("vcpus", pa.uint16()),
                "memory_mib": numbers("memory_mib", pa.uint32()),
                "collected_at_ns": same(frame.collected_at_ns, whole),
                "collected_at": same(when_ms(frame.collected_at_ns // NS_PER_MS), word),
            }
        return columns

    def _vm_ids(self, frame: Frame | EnrichedFrame) -> Any:
        """The ids in words; a host's VMs are mostly the same from frame to frame."""
        import pyarrow as pa

        names = self._names.get(frame.vm_ids)
        if names is None:
            if len(self._names) >= _NAMES_KEPT:
                self._names.clear()
            names = self._names[frame.vm_ids] = pa.array(map(str, vm_ids(frame)), pa.string())
        return names


def _words(frame: EnrichedFrame, names: Sequence[str], index: str) -> Any:
    import pyarrow as pa

    return pa.array([names[i] if i < len(names) else "" for i in column(frame, index)], pa.string())


@contextmanager
def parquet(path: Path) -> Iterator[Parquet]:
    """A new file; it stands under its name only once the block has ended well.

    Raises:
        FatalError: It is there already or cannot be written, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - whether it is there, before anything is read
    except ImportError as error:
        raise FatalError("parquet needs pyarrow: install decisec[batcher]") from error
    if path.exists():
        raise FatalError(f"{path}: File exists")
    part = path.with_name(f"{path.name}.part")
    target = Parquet(part)
    try:
        try:
            yield target
        finally:
            target.close()
        if part.exists():
            os.replace(part, path)  # noqa: PTH105 - atomic, and said so
    except OSError as error:
        raise FatalError(f"{path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
