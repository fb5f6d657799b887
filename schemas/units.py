"""Units and rates that more than one room counts with."""

from __future__ import annotations

from typing import Annotated

import msgspec

TICK_MS = 100
"""One decisecond: the distance between two samples of a VM, in milliseconds."""

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
KIB = 1024
MIB = 1024 * 1024

MAX_COUNTER = 2**63 - 1
"""Counters are unsigned on the wire and signed in the store; no honest one passes this."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)]
