"""The collector's instruments; their names are declared here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from collector.messages import Outcome
from runtime.telemetry import meter, thinned
from schemas.units import NS_PER_S

_MAX_MEASURED = 4
"""Lags of one batch that go into the histogram; each costs as much as decoding a frame."""


class Instruments:
    """What the collector counts."""

    def __init__(self) -> None:
        m = meter()
        self._frames = m.create_counter(
            "decisec_collector_frames", description="Frames passed on or refused as a whole"
        )
        self._samples = m.create_counter(
            "decisec_collector_samples", description="Samples passed on"
        )
        self._rejected = m.create_counter(
            "decisec_collector_rejected", description="Samples refused, by reason"
        )
        self._waited = m.create_counter(
            "decisec_collector_frames_waited", description="Frames that waited for a VM's record"
        )
        self._postponed = m.create_counter(
            "decisec_collector_frames_postponed",
            description="Frames left for another delivery because the bus took no answer",
        )
        self._batch = m.create_histogram(
            "decisec_collector_batch", unit="s", description="From a batch's arrival to its acks"
        )
        self._lag = m.create_histogram(
            "decisec_collector_lag",
            unit="s",
            description="From sampling to collecting, some of each batch",
        )
        self._missing = m.create_gauge(
            "decisec_collector_seq_missing", description="Skipped frames that have not come since"
        )
        self._hosts = m.create_gauge("decisec_collector_hosts", description="Hosts heard of")
        self._partitions = m.create_gauge(
            "decisec_collector_partitions", description="Partitions whose frames come here"
        )
        self._members = m.create_gauge(
            "decisec_collector_members", description="Collectors that share the work, this included"
        )
        self._taken_over = m.create_counter(
            "decisec_collector_takeovers",
            description="Partitions whose frames began to come here, or came again after another's",
        )

        self._lost = m.create_gauge(
            "decisec_collector_hosts_lost", description="Hosts that are declared lost"
        )
        self._left = m.create_gauge(
            "decisec_collector_hosts_left_to_operator",
            description="Hosts silent for too long that were found by hand and not heard since",
        )
        self._verdicts = m.create_counter(
            "decisec_collector_host_verdicts",
            description="Hosts that this collector declared lost, or found",
        )

    def passed(self, outcomes: Sequence[Outcome]) -> None:
        """Frames were decided about, and all that follows from them is stored."""
        self._frames.add(len(outcomes))
        self._samples.add(sum(outcome.samples for outcome in outcomes))
        for outcome in outcomes:
            for reason, rows in outcome.rejected.items():
                self._rejected.add(rows, {"reason": reason})
        lags_ns = [outcome.lag_ns for outcome in outcomes if outcome.lag_ns is not None]
        for lag_ns in thinned(lags_ns, _MAX_MEASURED):
            self._lag.record(lag_ns / NS_PER_S)

    def waited(self) -> None:
        """A frame was sent back because a VM's record may be on its way."""
        self._waited.add(1)

    def postponed(self) -> None:
        """A frame stays unanswered and will be delivered again."""
        self._postponed.add(1)

    def batch(self, seconds: float) -> None:
        """A batch is done."""
        self._batch.record(seconds)

    def taken_over(self) -> None:
        """The frames of a partition come here from now on."""
        self._taken_over.add(1)

    def state(self, *, missing: int, hosts: int, partitions: int, members: int) -> None:
        """What is missing, and of how many hosts; the share of the work, and among how many."""
        self._missing.set(missing)
        self._hosts.set(hosts)
        self._partitions.set(partitions)
        self._members.set(members)

    def losses(self, *, standing: int, left: int) -> None:
        """How many hosts are lost, and how many an operator is to decide about."""
        self._lost.set(standing)
        self._left.set(left)

    def host_lost(self) -> None:
        """A host was declared lost here."""
        self._verdicts.add(1, {"verdict": "lost"})

    def host_found(self) -> None:
        """A host that was declared lost by a collector was found here."""
        self._verdicts.add(1, {"verdict": "found"})
