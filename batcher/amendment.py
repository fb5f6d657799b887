"""Frames as corrections say: each row under its right owner, with the right words beside it.

A collector that knew a correction has done so already; frames that were enriched before, or are
replayed from then, have not been through that. Nothing is done, and no time is spent, for frames
none of whose VMs was ever corrected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.corrections import Attribution
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, EnrichedFrame

_MAX_SETS = 1024
_Codes = npt.NDArray[np.uint16]


class View:
    """The corrections as they stood at one moment. Threads may share it.

    Args:
        version: Of the index.
        by_vm: VM id to what was corrected of it; nobody changes it.
    """

    __slots__ = ("__weakref__", "_by_vm", "_sets", "version")

    def __init__(self, version: int, by_vm: Mapping[bytes, Attribution]) -> None:
        self.version = version
        self._by_vm = by_vm
        self._sets: dict[bytes, tuple[int, ...]] = {}

    def amend(self, frames: Sequence[EnrichedFrame]) -> tuple[Sequence[EnrichedFrame], str]:
        """The frames as they are to be stored, and a word for what was looked up.

        The word is empty if there was nothing. It belongs into the identity of a batch: the same
        frames by another correction are another insert.
        """
        if not self._by_vm:
            return frames, ""
        amended: list[EnrichedFrame] = []
        marks: set[str] = set()
        for frame in frames:
            rows = self._rows(frame.vm_ids)
            if not rows:
                amended.append(frame)
                continue
            ids = [frame.vm_ids[16 * row : 16 * row + 16] for row in rows]
            found = [self._by_vm[vm_id] for vm_id in ids]
            marks.update(one.mark for one in found)
            amended += _amend(frame, rows, found)
        if not marks:
            return frames, ""
        return amended, hashlib.sha256("\n".join(sorted(marks)).encode()).hexdigest()[:16]

    def _rows(self, vm_ids: bytes) -> tuple[int, ...]:
        """Rows of VMs that were corrected. A host's frames hold the same VMs for long."""
        rows = self._sets.get(vm_ids)
        if rows is None:
            by_vm = self._by_vm
            rows = tuple(
                row for row in range(len(vm_ids) // 16) if vm_ids[16 * row : 16 * row + 16] in by_vm
            )
            if len(self._sets) >= _MAX_SETS:
                self._sets.clear()
            self._sets[vm_ids] = rows
        return rows


def _amend(
    frame: EnrichedFrame, rows: Sequence[int], found: Sequence[Attribution]
) -> list[EnrichedFrame]:
    incarnations = np.frombuffer(frame.incarnations, "<u4")
    customers = _Dictionary(frame.customers, frame.customer_index)
    pools = _Dictionary(frame.pools, frame.pool_index)
    plans = _Dictionary(frame.price_plans, frame.price_plan_index)
    elsewhere: dict[str, list[int]] = {}
    for row, one in zip(rows, found, strict=True):
        words = one.words_at(frame.tick_ms).value
        customers.set(row, one.owner(int(incarnations[row])))
        pools.set(row, words.pool)
        plans.set(row, words.price_plan)
        if words.region is not None and words.region != frame.region:
            elsewhere.setdefault(words.region, []).append(row)
    amended = msgspec.structs.replace(
        frame,
        customers=tuple(customers.words),
        customer_index=customers.index.tobytes(),
        pools=tuple(pools.words),
        pool_index=pools.index.tobytes(),
        price_plans=tuple(plans.words),
        price_plan_index=plans.index.tobytes(),
    )
    return _parted(amended, elsewhere) if elsewhere else [amended]


class _Dictionary:
    """One of a frame's dictionaries with its index, to be written in."""

    def __init__(self, words: Sequence[str], index: bytes) -> None:
        self.words = list(words)
        self.index: _Codes = np.frombuffer(index, "<u2").copy()

    def set(self, row: int, word: str | None) -> None:
        """Let a row have this word; None leaves the one that it has."""
        if word is None:
            return
        if word not in self.words:
            self.words.append(word)
        self.index[row] = self.words.index(word)


def _parted(frame: EnrichedFrame, elsewhere: Mapping[str, list[int]]) -> list[EnrichedFrame]:
    """A frame has one region: rows of another one make a frame of their own."""
    here = np.ones(frame.rows, bool)
    for rows in elsewhere.values():
        here[rows] = False
    parts = [_select(frame, frame.region, np.flatnonzero(here))] if here.any() else []
    return parts + [
        _select(frame, region, np.array(rows, np.intp)) for region, rows in elsewhere.items()
    ]


def _select(frame: EnrichedFrame, region: str, rows: npt.NDArray[np.intp]) -> EnrichedFrame:
    columns = {
        column.name: np.frombuffer(getattr(frame, column.name), column.dtype)[rows].tobytes()
        for column in COLUMNS + ENRICHMENT_COLUMNS
    }
    return msgspec.structs.replace(frame, region=region, **columns)
