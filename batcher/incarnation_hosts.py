"""Which host each incarnation ran on, written down before its first samples are.

Usage of a host is that of the incarnations that ran there. A view over `samples` could gather them
and would cost each insert; here the few that are new are found in memory. What is forgotten, by a
restart or for want of room, is written once more: the table collapses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batcher.columns import codes_of, firsts, ids_of, months_of, numbers
from batcher.store import Encoded, Store

TABLE = "incarnation_hosts"
_MOST_KNOWN = 262_144
_KEYS = {
    "host": pa.string(),
    "vm_id": pa.binary(16),
    "incarnation": pa.uint32(),
    "collected_in": pa.date32(),
}

_ROW = np.dtype([("vm", "<u8", 2), ("incarnation", "<u4"), ("month", "<i4")])

Key = tuple[str, bytes, int, int]
"""Host, VM, incarnation, and the month of collection: days since 1970 of its first one."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Samples ready for the store.

    Attributes:
        fresh: The incarnations among them that it may not know.
        blocks: Of each host with such ones, all that are among them.
    """

    samples: pa.Table | Encoded
    fresh: frozenset[Key]
    blocks: Mapping[str, bytes]

    @property
    def num_rows(self) -> int:
        """How many samples there are."""
        return self.samples.num_rows


class IncarnationHosts:
    """A sink for samples that sees to `incarnation_hosts` as well."""

    def __init__(self, store: Store, *, most_known: int = _MOST_KNOWN) -> None:
        self._store = store
        self._most_known = most_known
        self._known: set[Key] = set()
        # The VMs of a host are mostly the same from batch to batch: one look instead of many.
        self._blocks: dict[str, bytes] = {}

    def encode(self, rows: pa.Table) -> Noted:
        """Do ahead, in any thread, what of an insert needs no engine."""
        known, written = self._known, self._blocks
        blocks = {
            host: block for host, block in blocks_of(rows).items() if written.get(host) != block
        }
        fresh = frozenset(key for key in keys_of(blocks) if key not in known)
        return Noted(self._store.encode(rows), fresh, blocks)

    async def insert(self, table: str, rows: Noted, *, token: str) -> None:
        """Insert what is new of hosts, then the samples. Raises as `Store.insert`."""
        if rows.fresh:
            await self._store.insert(TABLE, _table(rows.fresh), token=f"{token}:hosts")
            if len(self._known) + len(rows.fresh) > self._most_known:
                self._known, self._blocks = set(), {}
            self._known |= rows.fresh
        self._blocks.update(rows.blocks)
        await self._store.insert(table, rows.samples, token=token)


def blocks_of(rows: pa.Table) -> dict[str, bytes]:
    """The incarnations in a table of samples by host, as `_ROW`s; some may stand there twice.

    The samples of an incarnation are neighbours in it, so only the first one of each is looked at.
    """
    if not rows.num_rows:
        return {}
    hosts: Any = rows.column("host").combine_chunks()
    names: list[str] = hosts.dictionary.to_pylist()
    codes, incarnations = codes_of(rows, "host"), numbers(rows, "incarnation")
    ids, months = ids_of(rows, "vm_id"), months_of(numbers(rows, "collected_at"))
    begins = firsts(ids, codes, incarnations, months)
    begins = begins[np.argsort(codes[begins], kind="stable")]
    found = np.empty(len(begins), _ROW)
    found["vm"] = ids[begins]
    found["incarnation"] = incarnations[begins]
    found["month"] = months[begins]
    ends = np.cumsum(np.bincount(codes[begins], minlength=len(names))).tolist()
    return {
        name: found[begin:end].tobytes()
        for name, begin, end in zip(names, [0, *ends], ends, strict=False)
        if end > begin
    }


def keys_of(blocks: Mapping[str, bytes]) -> Iterator[Key]:
    """What stands in them, one by one."""
    for host, block in blocks.items():
        rows = np.frombuffer(block, _ROW)
        for place, (incarnation, month) in enumerate(
            zip(rows["incarnation"].tolist(), rows["month"].tolist(), strict=True)
        ):
            begin = place * _ROW.itemsize
            yield host, block[begin : begin + 16], incarnation, month


def _table(keys: frozenset[Key]) -> pa.Table:
    columns = zip(*sorted(keys), strict=True)
    return pa.table(
        {
            name: pa.array(list(values), kind)
            for (name, kind), values in zip(_KEYS.items(), columns, strict=True)
        }
    )
