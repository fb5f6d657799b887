"""Answers `usage.windows.<customer>`: usage in many windows, by VM, by label or all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID

from batcher.archive import Archive
from batcher.completeness import completed
from batcher.replies import replied
from batcher.windowed import Cell, Cells, cells, merged, windows_of
from batcher.windows import RefusedQueryError, instant_of
from runtime.bus import Message
from runtime.errors import TransientError
from schemas import subjects
from schemas.codec import encode
from schemas.frames import SampleFlag
from schemas.units import MAX_COUNTER
from schemas.usage_windows import (
    GroupBy,
    NumberedFigures,
    UsageWindowsQuery,
    WindowsFound,
    WindowsReply,
    decode_usage_windows_query,
)
from schemas.vms import METERS

SUBJECT = "usage.windows.*"
_MOST_CELLS = 50_000
"""VMs times windows read at once, as far as that is known before."""
_WITHOUT = "-"
_WITH = "="
"""Before the value of a label in a group's key: none sorts first."""

Group = tuple[str, Cell, int]
"""A group's key, its figures, and how many VMs they are of."""


class WindowsDoor:
    """A bus handler: one query after the other, each bounded in time and memory."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def answer(self, message: Message) -> bytes:
        """The encoded `WindowsReply` to a query; errors travel inside it."""
        reply = await replied(
            self._reply(message), message.subject, lambda error: WindowsReply(error=error)
        )
        return encode(reply)

    async def _reply(self, message: Message) -> WindowsReply:
        archive = self._archive
        customer_id = subjects.customer_of(message.subject)
        query = decode_usage_windows_query(message.data)
        if (query.group is GroupBy.LABEL) != (query.label is not None):
            raise RefusedQueryError("name a label to group by, and only then")
        now = archive.now
        window = windows_of(query.edges_ms, archive.retention, now)

        async def read() -> tuple[list[NumberedFigures], int, str]:
            if query.label is not None and not await archive.watermark.records_are_current(
                customer_id
            ):
                # Without its record a VM would be counted among those without the label.
                raise TransientError("the VMs' records are not known at the moment")
            count = self._at_once(customer_id, query)
            edges = query.edges_ms[: count + 1]
            whole = windows_of(edges, archive.retention, now).rolled(archive.rolled_until_ms())
            found = await cells(
                archive.store,
                customer_id,
                query.vm_ids,
                edges,
                whole,
                limit_s=archive.limit_s,
            )
            return _rows(found, count, query, self._key_of(customer_id, query))

        (rows, windows, after), until = await completed(
            archive.watermark, customer_id, query.vm_ids, instant_of(query.edges_ms[0]), read
        )
        counted = window.counted_from
        return WindowsReply(
            found=WindowsFound(
                rows=tuple(rows),
                windows=windows,
                after=after,
                samples_since=instant_of(counted) if counted > window.start else None,
                complete_until=until.time,
                lost_hosts=until.lost_hosts,
            )
        )

    def _at_once(self, customer_id: str, query: UsageWindowsQuery) -> int:
        """How many of the windows are read: those that the answer has room for, about."""
        vms = len(query.vm_ids) or max(1, self._archive.watermark.placements.count(customer_id))
        rows = vms if query.group is GroupBy.VM else 1
        count = min(-(-query.limit // rows) + 1, max(1, _MOST_CELLS // vms))
        return min(count, len(query.edges_ms) - 1)

    def _key_of(self, customer_id: str, query: UsageWindowsQuery) -> Callable[[UUID], str]:
        if query.group is GroupBy.NONE:
            return lambda _: ""
        if query.group is GroupBy.VM or query.label is None:
            return str
        label = query.label
        placements = self._archive.watermark.placements

        def key(vm_id: UUID) -> str:
            value = placements.labels(customer_id, vm_id).get(label)
            return _WITHOUT if value is None else _WITH + value

        return key


def _rows(
    found: Cells, count: int, query: UsageWindowsQuery, key_of: Callable[[UUID], str]
) -> tuple[list[NumberedFigures], int, str]:
    """Rows up to the limit, how many windows they answer whole, and the last group behind those."""
    by_window: list[dict[str, tuple[Cell | None, int]]] = [{} for _ in range(count)]
    for vm_id, by_slot in found.items():
        key = key_of(vm_id)
        for number, cell in by_slot.items():
            before, vms = by_window[number].get(key, (None, 0))
            by_window[number][key] = merged(before, cell), vms + 1
    rows: list[NumberedFigures] = []
    for number, groups in enumerate(by_window):
        for key, cell, vms in _ordered(groups, query):
            if number == 0 and query.after and key <= query.after:
                continue
            if len(rows) == query.limit:
                last = rows[-1]
                return rows, number, _key(last, query) if last.window == number else ""
            rows.append(_figures(number, key, cell, vms, query))
    return rows, count, ""


def _ordered(
    groups: dict[str, tuple[Cell | None, int]], query: UsageWindowsQuery
) -> Iterator[Group]:
    if query.group is GroupBy.NONE and not groups:
        # A window without any use is a row of zeros: whoever makes a table wants each day.
        yield "", Cell(0, 0, 0, 0, (0,) * len(METERS)), 0
    for key in sorted(groups):
        cell, vms = groups[key]
        if cell is not None:
            yield key, cell, vms


def _figures(
    number: int, key: str, cell: Cell, vms: int, query: UsageWindowsQuery
) -> NumberedFigures:
    if max(cell.used) > MAX_COUNTER:
        raise RefusedQueryError("a sum passes 2^63-1; ask for fewer VMs or a shorter window")
    return NumberedFigures(
        window=number,
        vm_id=UUID(key) if query.group is GroupBy.VM else None,
        label=key[1:] if query.group is GroupBy.LABEL and key != _WITHOUT else None,
        vms=vms,
        incarnations=cell.incarnations,
        samples=cell.samples,
        simulated=bool(cell.flags & SampleFlag.SIMULATED),
        **dict(zip(METERS, cell.used, strict=True)),
    )


def _key(row: NumberedFigures, query: UsageWindowsQuery) -> str:
    if query.group is GroupBy.VM:
        return str(row.vm_id)
    if query.group is GroupBy.LABEL:
        return _WITHOUT if row.label is None else _WITH + row.label
    return ""
