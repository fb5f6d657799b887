"""Latencies as HDR histograms: every value counts, none is sampled, percentiles to three digits."""

from __future__ import annotations

from typing import Any

from hdrh.histogram import HdrHistogram

_MOST_US = 7 * 24 * 3600 * 10**6
"""A week. What is longer counts as that long, and is told."""
_DIGITS = 3
_PERCENTILES = (("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9))


class Latencies:
    """One kind of latency.

    What takes longer than it should must not thereby be measured less often, so whoever records
    counts from the moment at which a thing was due by the plan, not from the one at which it was
    begun ("coordinated omission").

    Attributes:
        early: Values below 0, recorded as 0: two clocks do not agree.
        beyond: Values of more than a week, recorded as a week.
    """

    def __init__(self) -> None:
        self.early = 0
        self.beyond = 0
        self._most_us = 0
        self._histogram = HdrHistogram(1, _MOST_US, _DIGITS)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._histogram.get_total_count())

    def record(self, latency_us: int, times: int = 1) -> None:
        """Take one in, or several of the same."""
        if latency_us < 0:
            self.early += times
        if latency_us > _MOST_US:
            self.beyond += times
        kept_us = min(max(0, latency_us), _MOST_US)
        self._most_us = max(self._most_us, kept_us)
        self._histogram.record_value(kept_us, times)

    def record_s(self, latency_s: float) -> None:
        """Take one in, of two readings of a clock."""
        self.record(round(latency_s * 1e6))

    def report(self) -> dict[str, Any]:
        """Percentiles in ms, how many values there were, and the histogram itself.

        Empty if there were none. `hdr` is in the format that all HdrHistogram tools read (V2,
        compressed, base64), in µs: those of several runs can be added up, percentiles cannot.
        """
        if not self.count:
            return {}
        at = self._histogram.get_value_at_percentile
        # The histogram names the greatest value that counts as equal; none was above the maximum.
        found: dict[str, Any] = {
            name: round(min(at(share), self._most_us) / 1000, 3) for name, share in _PERCENTILES
        }
        found |= {"max": round(self._most_us / 1000, 3), "count": self.count}
        for name in ("early", "beyond"):
            if number := getattr(self, name):
                found[name] = number
        encoded = self._histogram.encode()
        found["hdr"] = encoded.decode() if isinstance(encoded, bytes) else str(encoded)
        return found
