"""How many lives a storm has, how fast they begin, and what happens in one."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tests.load.flood.bounds import SHARE, Bounds, check_numbers

HTTP, BUS, BOTH = "http", "bus", "both"
DOORS = (HTTP, BUS, BOTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class StormPlan:
    """A storm: each life is create, boot, run, shut down (or not), delete.

    Attributes:
        lives: How many VMs live in all.
        rate: Lives that begin in a second, at full speed.
        ramp_s: Time over which the rate grows from nothing.
        burst: So many begin at once; the rate stays what it is.
        at_once: VMs that live at the same time, at most. A life that has to wait for its turn
            counts its latency from the moment at which it was due all the same.
        up_s: How long a VM runs, from the boot on.
        killed: Share of VMs that are deleted while they run.
        through: The gateway's HTTP API, its door on the bus, or both in turn.
        tries: How often a command is sent that is refused for now (429, 503).
        within_s: How long a command may take, from the answer to its end.
        image: What VMs boot.
        memory_mib: Memory of each.
        network: Each has a network interface.
        seed: Of all that is random.
    """

    lives: int = 50
    rate: float = 5.0
    ramp_s: float = 0.0
    burst: int = 1
    at_once: int = 20
    up_s: float = 1.0
    killed: float = 0.2
    through: str = HTTP
    tries: int = 5
    within_s: float = 90.0
    image: str = "tiny"
    memory_mib: int = 64
    network: bool = False
    seed: int = 1

    def check(self) -> None:
        """Raise ValueError with what to change if it cannot be carried out."""
        check_numbers(
            self,
            {
                "lives": Bounds(1, 100_000),
                "rate": Bounds(0, 1000, above=True),
                "ramp_s": Bounds(0, 3600),
                "burst": Bounds(1, self.lives),
                "at_once": Bounds(1, 2000),
                "up_s": Bounds(0, 3600),
                "killed": SHARE,
                "tries": Bounds(1, 20),
                "within_s": Bounds(1, 600),
                "memory_mib": Bounds(16, 1_048_576),
            },
        )
        if self.through not in DOORS:
            raise ValueError(f"--through: one of {', '.join(DOORS)}; not {self.through!r}")

    def due_s(self, number: int) -> float:
        """When a life begins, in s from the first one on."""
        number -= number % self.burst
        if not self.ramp_s:
            return number / self.rate
        # While the rate grows evenly, the number of lives grows with the square of the time.
        in_ramp = self.rate * self.ramp_s / 2
        if number < in_ramp:
            return math.sqrt(2 * number * self.ramp_s / self.rate)
        return self.ramp_s + (number - in_ramp) / self.rate

    def kills(self) -> list[bool]:
        """For each life, whether its VM is deleted while it runs."""
        chance = random.Random(self.seed)  # noqa: S311 - nothing secret
        return [chance.random() < self.killed for _ in range(self.lives)]
