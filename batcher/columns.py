"""Arrow columns as NumPy sees them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_DTYPES = {
    "uint8": "u1",
    "uint32": "<u4",
    "int64": "<i8",
    "timestamp[ns, tz=UTC]": "<M8[ns]",
}


def firsts(*columns: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """The first row of each run of rows that are alike in all columns; a run's rows are neighbours.

    Args:
        columns: Of the same length, at least 1; those with two dimensions are compared by row.
    """
    changes = np.zeros(len(columns[0]) - 1, bool)
    for column in columns:
        for part in column.T if column.ndim > 1 else [column]:
            changes |= part[1:] != part[:-1]
    return np.concatenate(([0], np.flatnonzero(changes) + 1))


def numbers(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column of numbers or times."""
    # `to_numpy` would do, but imports pandas, which costs the first flush half a second.
    column: Any = rows.column(name).combine_chunks()
    kind = _DTYPES[str(column.type)]
    return np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]


def codes_of(rows: pa.Table, name: str) -> npt.NDArray[np.int32]:
    """Of a column of words that holds each word once: the place of each row's word."""
    column: Any = rows.column(name).combine_chunks()
    codes = np.frombuffer(column.indices.buffers()[1], "<i4")
    return codes[column.offset : column.offset + len(column)]


def ids_of(rows: pa.Table, name: str) -> npt.NDArray[np.uint64]:
    """A column of 16 bytes each, as two halves per row."""
    column: Any = rows.column(name).combine_chunks()
    halves = np.frombuffer(column.buffers()[1], "<u8").reshape(-1, 2)
    return halves[column.offset : column.offset + len(column)]


def array(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array[Any]:
    """Numbers as an Arrow column that shares their memory; they must be contiguous."""
    # `pa.array` would do, but imports pandas, which costs the first flush more than a second.
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values.data)])


def months(times: Any) -> npt.NDArray[np.int64]:
    """The first day of each one's month, in days since 1970."""
    return np.asarray(times).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)


def months_of(times: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """As `months`, and quick where all are in one."""
    ends = months([times.min(), times.max()])
    return np.full(len(times), ends[0]) if ends[0] == ends[1] else months(times)
