"""Frames in, one Arrow table out: whole columns at a time, never sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batcher.columns import array
from batcher.layout import Placed, place
from runtime.errors import PoisonError
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, EnrichedFrame
from schemas.units import NS_PER_MS, TICK_MS

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

_DTYPES = {column.name: column.dtype for column in COLUMNS + ENRICHMENT_COLUMNS}
_columns: Callable[[EnrichedFrame], tuple[bytes, ...]] = attrgetter(*_DTYPES)

Longs = npt.NDArray[np.int64]


def token(frames: Iterable[EnrichedFrame]) -> str:
    """A batch's identity by content: the same frames, in whatever order, give the same token.

    The time of collection and the VMs take part, because the same raw frame collected again, or
    replayed in parts, may have other good rows than the first time.
    """
    lines = [
        f"{f.host}:{f.run_id.int}:{f.seq}/{f.collected_at_ns}/{f.rows}/{crc32(f.vm_ids)}"
        for f in frames
    ]
    lines.sort()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
    collected = _longs([f.collected_at_ns for f in frames])
    tick = _longs([f.tick_ms for f in frames])
    _refuse("tick_between", "tick_ms is not a multiple of 100", tick % TICK_MS != 0)
    _refuse(
        "collected_when",
        "collected_at_ns lies in the future or before all that is kept",
        (collected > now_ns + _AHEAD_NS) | (collected < now_ns - keep_ns),
    )
    joined = dict(
        zip(_DTYPES, map(b"".join, zip(*map(_columns, frames), strict=True)), strict=True)
    )
    values = {name: np.frombuffer(joined[name], dtype) for name, dtype in _DTYPES.items()}
    rows = _longs([f.rows for f in frames])
    customers, customer_names = _names(frames, "customers", values["customer_index"], rows)
    pools, pool_names = _names(frames, "pools", values["pool_index"], rows)
    plans, plan_names = _names(frames, "price_plans", values["price_plan_index"], rows)
    ids = np.frombuffer(joined["vm_ids"], "<u8").reshape(-1, 2)
    placed = place(frames, tick, customers, ids)

    def numbers(name: str) -> pa.Array[Any]:
        column = values[name]
        if name in _SIGNED:
            column = column.view("<i8")
            _refuse("counter_overflow", f"{name} exceeds 2^63-1", column < 0)
        return array(np.take(column, placed.order), _TYPES[column.dtype.str])

    def repeated(of_frames: npt.NDArray[Any], kind: pa.DataType) -> pa.Array[Any]:
        return array(np.take(of_frames, placed.frame, axis=0), kind)

    return pa.table(
        {
            "customer_id": _words(np.take(customers, placed.order), customer_names),
            "vm_id": array(np.take(ids, placed.order, axis=0), pa.binary(16)),
            "incarnation": numbers("incarnations"),
            "tick_ms": repeated(tick, pa.int64()),
            "run_id": repeated(_ids([f.run_id.bytes for f in frames]), pa.binary(16)),
            "seq": repeated(_longs([f.seq for f in frames]), pa.int64()),
            "host": _spread([f.host for f in frames], placed),
            "sampled_at_ns": repeated(_longs([f.sampled_at_ns for f in frames]), pa.int64()),
            "collected_at": repeated(collected, pa.timestamp("ns", "UTC")),
            "state": numbers("states"),
            "flags": numbers("flags"),
            **{name: numbers(name) for name in _SIGNED},
            "pool": _words(np.take(pools, placed.order), pool_names),
            "region": _spread([f.region for f in frames], placed),
            "price_plan": _words(np.take(plans, placed.order), plan_names),
            "vcpus": numbers("vcpus"),
            "memory_mib": numbers("memory_mib"),
        }
    )


def _refuse(reason: str, detail: str, bad: npt.NDArray[np.bool_]) -> None:
    if bad.any():
        raise PoisonError(reason, detail)


def _longs(values: Sequence[int]) -> Longs:
    return np.array(values, dtype="<i8")


def _ids(values: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(values), "<u8").reshape(-1, 2)


def _words(codes: npt.NDArray[np.int32], names: Sequence[str]) -> pa.Array[Any]:
    return pa.DictionaryArray.from_arrays(array(codes, pa.int32()), _strings(names))


def _strings(values: Sequence[str]) -> pa.Array[Any]:
    words = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, words)], dtype="<i4")
    return pa.StringArray.from_buffers(
        len(words), pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(words))
    )


def _spread(values: Sequence[str], placed: Placed) -> pa.Array[Any]:
    """One word per frame, for each of its rows."""
    names = sorted(set(values))
    code = {name: number for number, name in enumerate(names)}
    codes = np.array([code[value] for value in values], dtype="<i4")
    return _words(np.take(codes, placed.frame), names)


def _names(
    frames: Sequence[EnrichedFrame], dictionary: str, at: npt.NDArray[np.uint16], rows: Longs
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Codes of all rows in one sorted dictionary, from each frame's own.

    Frames mostly share their dictionaries: each different one is looked at once, and its codes
    lie in `codes` from its place in `begins` on.
    """
    own = [getattr(frame, dictionary) for frame in frames]
    begins: dict[tuple[str, ...], int] = {}
    size = 0
    for words in set(own):
        begins[words] = size
        size += len(words)
    names = sorted({name for words in begins for name in words})
    code = {name: number for number, name in enumerate(names)}
    codes = np.array([code[name] for words in begins for name in words], dtype="<i4")
    if len(begins) > 1:
        begin = np.repeat(_longs([begins[words] for words in own]), rows)
        end = np.repeat(_longs([begins[words] + len(words) for words in own]), rows)
        place_of = begin + at
    else:
        place_of, end = at.astype("<i8"), np.array([size])
    if (place_of >= end).any():
        raise PoisonError("index_outside", f"an index points beside {dictionary}")
    return codes[place_of], names
