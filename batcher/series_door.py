"""Answers `metrics.series.<customer>`: what VMs did in the last time, step by step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from batcher.archive import Archive
from batcher.completeness import completed
from batcher.replies import replied
from batcher.windowed import Cell, cells, windows_of
from batcher.windows import MINUTE_MS, RefusedQueryError, Retention, Window, instant_of
from runtime.bus import Message
from schemas import subjects
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.series import (
    MAX_POINTS,
    METRICS,
    STEPS_MS,
    SeriesQuery,
    SeriesReply,
    SeriesReport,
    VmSeries,
    decode_series_query,
)
from schemas.units import TICK_MS
from schemas.vms import METERS

SUBJECT = "metrics.series.*"
_MAX_REPLY_BYTES = 1_000_000
_MOST_TICKS = 2_000_000
"""Single ticks that are read for one answer."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class SeriesDoor:
    """A bus handler: one query after the other, each bounded in time and memory."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def answer(self, message: Message) -> bytes:
        """The encoded `SeriesReply` to a query; errors travel inside it."""
        reply = await replied(
            self._reply(message), message.subject, lambda error: SeriesReply(error=error)
        )
        body = encode(reply)
        if len(body) > _MAX_REPLY_BYTES:
            words = "the answer passes 1 MB; ask for fewer VMs, metrics or points"
            error = ErrorInfo(code=ErrorCode.BAD_REQUEST, message=words)
            body = encode(SeriesReply(error=error))
        return body

    async def _reply(self, message: Message) -> SeriesReply:
        archive = self._archive
        customer_id = subjects.customer_of(message.subject)
        query = decode_series_query(message.data)
        now = archive.now
        edges, window = chosen(query, archive.retention, now)
        step_ms = edges[1] - edges[0]

        async def read() -> tuple[VmSeries, ...]:
            found = await cells(
                archive.store,
                customer_id,
                query.vm_ids,
                edges,
                window.rolled(archive.rolled_until_ms()),
                limit_s=archive.limit_s,
            )
            return tuple(
                VmSeries(
                    vm_id=vm_id,
                    values={
                        metric: tuple(
                            _point(metric, found.get(vm_id, {}).get(number), start, window, step_ms)
                            for number, start in enumerate(edges[:-1])
                        )
                        for metric in query.metrics or METRICS
                    },
                )
                for vm_id in dict.fromkeys(query.vm_ids)
            )

        start, end = instant_of(edges[0]), instant_of(edges[-1])
        series, until = await completed(archive.watermark, customer_id, query.vm_ids, start, read)
        return SeriesReply(
            report=SeriesReport(
                customer_id=customer_id,
                start=start,
                end=end,
                step_ms=step_ms,
                points=len(edges) - 1,
                series=series,
                complete_until=until.time,
                complete=until.time is not None and end <= until.time,
                lost_hosts=until.lost_hosts,
            )
        )


def chosen(
    query: SeriesQuery, retention: Retention, now: datetime
) -> tuple[tuple[int, ...], Window]:
    """The finest steps that are few enough and still known, and all of them together.

    Raises:
        RefusedQueryError: None is.
    """
    if query.end <= query.start:
        raise RefusedQueryError("end must be later than start")
    if query.step_ms is not None and query.step_ms not in STEPS_MS:
        raise RefusedQueryError(f"step_ms must be one of {', '.join(map(str, STEPS_MS))}")
    begin = (query.start - _EPOCH) // _MS
    stop = -((_EPOCH - query.end) // _MS)
    most = query.points if query.step_ms is None else MAX_POINTS
    refusal = RefusedQueryError("the window is too long: no step makes few enough points of it")
    for step in STEPS_MS if query.step_ms is None else (query.step_ms,):
        first, last = begin // step * step, -(-stop // step) * step
        if (last - first) // step > most:
            continue
        if step < MINUTE_MS and (last - first) // TICK_MS * len(query.vm_ids) > _MOST_TICKS:
            refusal = RefusedQueryError("too many samples for one answer: ask for longer steps")
            continue
        edges = tuple(range(first, last + step, step))
        try:
            return edges, windows_of(edges, retention, now)
        except RefusedQueryError as error:
            refusal = error
    raise refusal


def _point(metric: str, cell: Cell | None, start: int, window: Window, step_ms: int) -> int | None:
    if metric == "samples":
        if step_ms >= MINUTE_MS and start < window.counted_from:
            return None
        return 0 if cell is None else cell.samples
    if cell is None:
        return None
    if metric == "mem_bytes":
        return cell.mem_bytes if step_ms < MINUTE_MS else None
    return cell.used[METERS.index(metric)]
