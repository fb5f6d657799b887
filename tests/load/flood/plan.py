"""What is to be flooded, how fast, and what is done wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.units import TICK_MS
from tests.load.flood.bounds import SHARE, Bounds, check_numbers

CUSTOMERS = 7
MAX_VMS = 1_000_000
_DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A flood.

    Attributes:
        hosts: How many hosts send.
        vms: VMs on each of them.
        seconds: For how long, at full speed.
        hz: Ticks a second of each host. Ticks stay 100 ms apart: at 20 a host sends two seconds
            in one, as one that catches up.
        ramp_s: The hosts begin one after the other over this time.
        burst: Every tenth second all hosts hold their frames back, and send them at once.
        duplicates: Share of frames that are sent twice, under two message ids.
        reorder: Share of frames that come after some of their successors.
        late: Share of frames that come up to ten seconds late.
        malformed: Share of frames besides which rubbish is sent.
        skew_s: How far one host's clock is behind.
        step_s: How far the last host's wall clock is stepped: right, ahead, behind, and again,
            ten seconds each. Its ticks go on evenly, as an agent's do.
        seed: Of all that is random.
    """

    hosts: int = 10
    vms: int = 100
    seconds: float = 30.0
    hz: float = 10.0
    ramp_s: float = 0.0
    burst: bool = False
    duplicates: float = 0.0
    reorder: float = 0.0
    late: float = 0.0
    malformed: float = 0.0
    skew_s: int = 0
    step_s: int = 0
    seed: int = 1

    def check(self) -> None:
        """Raise ValueError with what to change if it cannot be carried out."""
        check_numbers(
            self,
            {
                "hosts": Bounds(1, MAX_VMS),
                "vms": Bounds(1, MAX_VMS),
                "seconds": Bounds(0, _DAY_S, above=True),
                "hz": Bounds(0, 1000, above=True),
                "ramp_s": Bounds(0, _DAY_S),
                **dict.fromkeys(("duplicates", "reorder", "late", "malformed"), SHARE),
                "skew_s": Bounds(0, _DAY_S),
                "step_s": Bounds(0, _DAY_S),
                "seed": Bounds(0, 2**32),
            },
        )
        if self.hosts * self.vms > MAX_VMS:
            raise ValueError(
                f"--hosts, --vms: at most {MAX_VMS:,} VMs in all, not {self.hosts * self.vms:,}"
            )
        if self.late + self.reorder > 1:
            raise ValueError(
                "--late, --reorder: a frame is one or the other, so at most 1 together, not "
                f"{self.late + self.reorder:g}"
            )

    @property
    def ticks(self) -> int:
        """Ticks of each host; the first and the last one are the baseline and the final sample."""
        return max(2, round(self.seconds * self.hz))

    @property
    def samples(self) -> int:
        """All samples, each counted once."""
        return self.hosts * self.vms * self.ticks

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.hosts * self.vms * self.hz

    @property
    def span_ms(self) -> int:
        """From a host's first tick to its last."""
        return (self.ticks - 1) * TICK_MS
