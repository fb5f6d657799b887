"""Frames in, one Arrow table out: whole columns at a time, never sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.errors import PoisonError
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, EnrichedFrame
from schemas.units import NS_PER_MS, TICK_MS

_DTYPES = {column.name: column.dtype for column in COLUMNS + ENRICHMENT_COLUMNS}
_SIGNED = (
    "mem_bytes",
    "uptime_ms",
    "cpu_ns",
    "mem_kib_ms",
    "disk_read_bytes",
    "disk_write_bytes",
    "net_rx_bytes",
    "net_tx_bytes",
)
_TYPES: dict[str, pa.DataType] = {
    "|u1": pa.uint8(),
    "<u2": pa.uint16(),
    "<u4": pa.uint32(),
    "<i8": pa.int64(),
}
_AHEAD_NS = 3_600 * 1_000 * NS_PER_MS
"""How far ahead of this machine's clock a collector's may be."""


def token(frames: Iterable[EnrichedFrame]) -> str:
    """A batch's identity by content: the same frames, in whatever order, give the same token.

    The time of collection and the VMs take part, because the same raw frame collected again, or
    replayed in parts, may have other good rows than the first time.
    """
    digest = hashlib.sha256()
    for line in sorted(
        f"{f.msg_id}/{f.collected_at_ns}/{f.rows}/{crc32(f.vm_ids)}\n" for f in frames
    ):
        digest.update(line.encode())
    return digest.hexdigest()


def table(frames: Sequence[EnrichedFrame], *, now_ns: int, keep_ns: int) -> pa.Table:
    """The rows of the frames, in the order in which the store keeps them.

    Args:
        frames: With columns of the right lengths, as `decode_enriched_frame` leaves them.
        now_ns: This machine's wall clock, Unix ns.
        keep_ns: How long the store keeps rows; older ones would expire on arrival.

    Raises:
        PoisonError: A frame holds what the store cannot: a counter beyond 2^63-1, an index beside
            its dictionary, a tick between two deciseconds, an impossible time of collection.
    """
    rows = np.array([frame.rows for frame in frames], dtype="<i8")
    collected = _scalars(frames, lambda f: f.collected_at_ns)
    tick = _scalars(frames, lambda f: f.tick_ms)
    _refuse("tick_between", "tick_ms is not a multiple of 100", tick % TICK_MS != 0)
    _refuse(
        "collected_when",
        "collected_at_ns lies in the future or before all that is kept",
        (collected > now_ns + _AHEAD_NS) | (collected < now_ns - keep_ns),
    )
    customers, customer_names = _names(frames, "customers", "customer_index")
    pools, pool_names = _names(frames, "pools", "pool_index")
    plans, plan_names = _names(frames, "price_plans", "price_plan_index")
    hosts, host_names = _codes([frame.host for frame in frames])
    regions, region_names = _codes([frame.region for frame in frames])
    ids = _bytes(frames, "vm_ids")
    ticks = np.repeat(tick, rows)
    order = _order(customers, np.frombuffer(ids, ">u8").reshape(-1, 2), ticks)

    def numbers(name: str) -> pa.Array[Any]:
        values = np.frombuffer(_bytes(frames, name), _DTYPES[name])
        if name in _SIGNED:
            values = values.view("<i8")
            _refuse("counter_overflow", f"{name} exceeds 2^63-1", values < 0)
        return _array(values[order], _TYPES[values.dtype.str])

    def repeated(values: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array[Any]:
        return _array(np.repeat(values, rows)[order], kind)

    def words(codes: npt.NDArray[np.int32], names: Sequence[str]) -> pa.Array[Any]:
        return pa.DictionaryArray.from_arrays(_array(codes[order], pa.int32()), _strings(names))

    runs = np.repeat(np.array([f.run_id.bytes for f in frames], dtype="V16"), rows)[order]
    columns: dict[str, pa.Array[Any]] = {
        "customer_id": words(customers, customer_names),
        "vm_id": _array(np.frombuffer(ids, "V16")[order], pa.binary(16)),
        "incarnation": numbers("incarnations"),
        "tick_ms": _array(ticks[order], pa.int64()),
        "run_id": _array(runs, pa.binary(16)),
        "seq": repeated(_scalars(frames, lambda f: f.seq), pa.int64()),
        "host": words(np.repeat(hosts, rows), host_names),
        "sampled_at_ns": repeated(_scalars(frames, lambda f: f.sampled_at_ns), pa.int64()),
        "collected_at": repeated(collected, pa.timestamp("ns", "UTC")),
        "state": numbers("states"),
        "flags": numbers("flags"),
        **{name: numbers(name) for name in _SIGNED},
        "pool": words(pools, pool_names),
        "region": words(np.repeat(regions, rows), region_names),
        "price_plan": words(plans, plan_names),
        "vcpus": numbers("vcpus"),
        "memory_mib": numbers("memory_mib"),
    }
    return pa.table(columns)


def _order(
    customers: npt.NDArray[np.int32], ids: npt.NDArray[np.uint64], ticks: npt.NDArray[np.int64]
) -> npt.NDArray[np.intp]:
    # ClickHouse compares UUIDs by their second half first. Rows in its order skip its own sort,
    # which doubles the speed of an insert; another order would be slower, not wrong.
    return np.lexsort((ticks, ids[:, 0], ids[:, 1], customers))


def _refuse(reason: str, detail: str, bad: npt.NDArray[np.bool_]) -> None:
    if bad.any():
        raise PoisonError(reason, detail)


def _bytes(frames: Sequence[EnrichedFrame], name: str) -> bytes:
    return b"".join([getattr(frame, name) for frame in frames])


def _scalars(
    frames: Sequence[EnrichedFrame], get: Callable[[EnrichedFrame], int]
) -> npt.NDArray[np.int64]:
    return np.array([get(frame) for frame in frames], dtype="<i8")


def _array(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array[Any]:
    # `pa.array` would do, but imports pandas, which costs the first flush more than a second.
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values.tobytes())])


def _strings(values: Sequence[str]) -> pa.Array[Any]:
    words = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, words)], dtype="<i4")
    return pa.StringArray.from_buffers(
        len(words), pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(words))
    )


def _codes(values: Sequence[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    names = sorted(set(values))
    code = {name: number for number, name in enumerate(names)}
    return np.array([code[value] for value in values], dtype="<i4"), names


def _names(
    frames: Sequence[EnrichedFrame], dictionary: str, index: str
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Codes of all rows in one sorted dictionary, from each frame's own."""
    names = sorted(set(chain.from_iterable(getattr(frame, dictionary) for frame in frames)))
    code = {name: number for number, name in enumerate(names)}
    parts = []
    for frame in frames:
        own = np.array([code[name] for name in getattr(frame, dictionary)], dtype="<i4")
        at = np.frombuffer(getattr(frame, index), _DTYPES[index])
        if at.size and int(at.max()) >= own.size:
            raise PoisonError("index_outside", f"{index} points beside {dictionary}")
        parts.append(own[at])
    return (np.concatenate(parts) if parts else np.empty(0, "<i4")), names
