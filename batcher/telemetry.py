"""The batcher's instruments; their names are declared here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.telemetry import meter


class Instruments:
    """What the batcher counts."""

    def __init__(self) -> None:
        m = meter()
        self._rows = m.create_counter("decisec_batcher_rows", description="Rows stored")
        self._frames = m.create_counter("decisec_batcher_frames", description="Frames stored")
        self._bytes = m.create_counter(
            "decisec_batcher_frame_bytes", unit="By", description="Bytes of the frames stored"
        )
        self._flush = m.create_histogram(
            "decisec_batcher_flush", unit="s", description="From the batch to the store's yes"
        )
        self._lag = m.create_histogram(
            "decisec_batcher_lag",
            unit="s",
            description="From sampling to queryable, 100 frames of each flush",
        )
        self._retries = m.create_counter(
            "decisec_batcher_retries", description="Failed inserts, by class of error"
        )
        self._refused = m.create_counter(
            "decisec_batcher_frames_refused", description="Frames set aside, by reason"
        )
        self._pending = m.create_gauge(
            "decisec_batcher_pending", description="Frames in the stream and not yet stored"
        )
        self._in_hand = m.create_gauge(
            "decisec_batcher_batches_in_hand",
            description="Batches taken for the store that it has not said yes to; two at most",
        )
        self._usage = m.create_histogram(
            "decisec_batcher_usage_query", unit="s", description="Time to answer a usage query"
        )

        self._events = m.create_counter(
            "decisec_batcher_events", description="Events and audit entries stored, by table"
        )
        self._events_refused = m.create_counter(
            "decisec_batcher_events_refused", description="Events left out, by table and reason"
        )

    def stored(self, *, rows: int, frames: int, size: int, seconds: float) -> None:
        """One insert went through."""
        self._rows.add(rows)
        self._frames.add(frames)
        self._bytes.add(size)
        self._flush.record(seconds)

    def lagged(self, lags_ms: Iterable[int]) -> None:
        """Lags of frames of an insert."""
        for lag_ms in lags_ms:
            self._lag.record(lag_ms / 1000)

    def retried(self, error: BaseException) -> None:
        """An insert failed and will be tried again."""
        self._retries.add(1, {"class": type(error).__name__})

    def refused(self, reason: str) -> None:
        """A frame was set aside."""
        self._refused.add(1, {"reason": reason})

    def pending(self, frames: int) -> None:
        """How many frames wait."""
        self._pending.set(frames)

    def in_hand(self, batches: int) -> None:
        """How many batches are being built or inserted."""
        self._in_hand.set(batches)

    def answered(self, seconds: float, outcome: str) -> None:
        """A usage query was answered."""
        self._usage.record(seconds, {"outcome": outcome})

    def events_stored(self, table: str, rows: int) -> None:
        """Events went into their table."""
        self._events.add(rows, {"table": table})

    def event_refused(self, table: str, reason: str) -> None:
        """An event cannot be stored."""
        self._events_refused.add(1, {"table": table, "reason": reason})
