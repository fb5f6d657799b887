"""Whether the numbers of a plan can be carried out, in words that say what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Bounds(NamedTuple):
    """The least and the most of an option; `above` leaves the least itself out."""

    least: float
    most: float
    above: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise ValueError if the value lies elsewhere, or is no number."""
        low = value <= self.least if self.above else value < self.least
        if math.isfinite(value) and not low and value <= self.most:
            return
        least = f"more than {self.least:g}" if self.above else f"at least {self.least:g}"
        raise ValueError(f"{option(name)}: {least} and at most {self.most:,.10g}, not {value:g}")


SHARE = Bounds(0, 1)


def option(name: str) -> str:
    """How a field is called on the command line."""
    return f"--{name.replace('_', '-')}"


def check_numbers(plan: Any, bounds: Mapping[str, Bounds]) -> None:
    """Hold each number of a plan against its bounds.

    Raises:
        ValueError: One lies outside; the message names the option and both bounds.
    """
    for name, allowed in bounds.items():
        allowed.check(name, getattr(plan, name))
