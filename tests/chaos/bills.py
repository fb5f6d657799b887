"""What a VM was billed, against what its guest has said that it did."""

from __future__ import annotations

import re
from typing import NamedTuple

from schemas.frames import SampleFlag
from schemas.units import KIB
from schemas.vms import METERS, Counters
from tests.support.samples import Sample

_DID = re.compile(r"^DID (\d+) (\d+) (\d+)$", re.MULTILINE)
_FRAME_BYTES = 1000


class Did(NamedTuple):
    """Bytes that a guest has written to its disk, read from it and sent."""

    written: int
    read: int
    sent: int


def what_it_did(console: str) -> Did | None:
    """What a guest that has ended says of itself; None if it was not asked or not in time.

    There is one console for all incarnations: what counts is what the last one has said.
    """
    said = _DID.search(console.rpartition("READY")[2])
    if said is None:
        return None
    written, read, sent = map(int, said.groups())
    return Did(written * KIB, read * KIB, sent * _FRAME_BYTES)


def misbilled(did: Did, final: Counters) -> str:
    """How a bill differs from what was done; nothing if it does not."""
    billed = Did(final.disk_write_bytes, final.disk_read_bytes, final.net_tx_bytes)
    return "" if billed == did else f"billed {billed}, did {did}"


def flaw(samples: list[Sample], final: Counters) -> str:
    """What is wrong with an incarnation's samples; nothing if they lead to its final counters.

    A frame that was in the memory of an agent that died is lost, and a final sample whose arrival
    the dead one has not heard of is sent again: neither changes a bill.
    """
    ticks = [sample.tick_ms for sample in samples]
    if len(set(ticks)) != len(ticks):
        return "a tick came twice"
    for meter in METERS:
        series = [getattr(sample.counters, meter) for sample in samples]
        if series != sorted(series):
            return f"{meter} went back"
    finals = {sample.counters for sample in samples if sample.flags & SampleFlag.FINAL}
    if finals != {final} or samples[-1].counters != final:
        return f"its final samples are {finals}, its event says {final}"
    return ""
