"""What holds of the pipeline for all bytes, and for all that an honest host may live through."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.frames import COLUMNS, Frame, RejectReason, encode_frame
from schemas.ids import new_id
from schemas.units import MAX_COUNTER, NS_PER_MS, TICK_MS
from schemas.vms import METERS, VmRecord
from tests.support.feed import Feed, enriched_of, ids_of, rejected_of, uptime
from tests.support.frames import BASE_MS, Row, frame, record

RUN = new_id()
VM, OTHER = new_id(), new_id()


@given(st.binary(max_size=400))
def test_no_bytes_raise(data: bytes) -> None:
    """Whatever comes is passed on or refused with a reason."""
    outcome = Feed()(data)
    assert outcome.enriched is not None or outcome.rejected


_VALID = encode_frame(frame([Row(VM, uptime(100)), Row(OTHER)], run_id=RUN))


@given(st.lists(st.tuples(st.integers(0, len(_VALID) - 1), st.integers(0, 255)), max_size=6))
def test_no_damaged_frame_raises(damage: Sequence[tuple[int, int]]) -> None:
    """Bytes changed in a real frame: passed on, waited for, or refused."""
    data = bytearray(_VALID)
    for place, value in damage:
        data[place] = value
    outcome = Feed(record(VM), record(OTHER))(bytes(data))
    assert outcome.enriched is not None or outcome.wait or outcome.rejected


steps = st.fixed_dictionaries(
    {
        "ticks": st.integers(1, 30),
        "busy": st.integers(0, 100),
        "net": st.integers(0, 2**40),
        "late_ms": st.integers(0, 80),
        "restart": st.booleans(),
        "new_run": st.booleans(),
        "present": st.sets(st.integers(0, 3), min_size=1),
    }
)
lives = st.lists(steps, min_size=1, max_size=25)
VMS = [new_id() for _ in range(4)]
VCPUS = (1, 2, 4, 8)


def live(story: Sequence[dict[str, object]]) -> list[Frame]:
    """An honest host's frames: VMs come, go, reboot, idle and burn all vCPUs and one thread."""
    runs, seq, tick_ms = [new_id()], 0, BASE_MS
    incarnation, started, cpu, net = [1] * 4, [BASE_MS] * 4, [0] * 4, [0] * 4
    read_ns = BASE_MS * NS_PER_MS
    frames = []
    for step in story:
        if step["new_run"]:
            runs.append(new_id())
            seq = 0
        tick_ms += int(str(step["ticks"])) * TICK_MS
        before_ns, read_ns = read_ns, (tick_ms + int(str(step["late_ms"]))) * NS_PER_MS
        rows = []
        present = step["present"]
        assert isinstance(present, set)
        for vm in range(4):
            if step["restart"] and vm in present:
                incarnation[vm], started[vm], cpu[vm], net[vm] = incarnation[vm] + 1, tick_ms, 0, 0
            else:
                busy = (VCPUS[vm] + 1) * (read_ns - before_ns) * int(str(step["busy"])) // 100
                cpu[vm] += busy
                net[vm] += int(str(step["net"]))
            if vm in present:
                counters = uptime(tick_ms - started[vm], cpu_ns=cpu[vm], net_tx_bytes=net[vm])
                rows.append(Row(VMS[vm], counters, incarnation=incarnation[vm]))
        frames.append(
            frame(
                rows,
                run_id=runs[-1],
                seq=seq,
                tick_ms=tick_ms,
                read_late_ms=int(str(step["late_ms"])),
            )
        )
        seq += 1
    return frames


def known() -> list[VmRecord]:
    return [record(vm, vcpus=VCPUS[i]) for i, vm in enumerate(VMS)]


@settings(deadline=None)
@given(lives, st.data())
def test_no_honest_sample_is_refused(story: list[dict[str, object]], data: st.DataObject) -> None:
    """Lost, doubled, reordered and replayed as the network likes: every row that comes passes."""
    sent = live(story)
    order = data.draw(st.lists(st.integers(0, len(sent) - 1), max_size=2 * len(sent)))
    feed = Feed(*known())
    for place in order:
        outcome = feed(sent[place], at_ms=100_000, redelivered=data.draw(st.booleans()))
        assert outcome.rejected == {}
        assert outcome.samples == sent[place].rows


@settings(deadline=None)
@given(lives, st.data())
def test_corrupted_rows_are_refused_exactly(
    story: list[dict[str, object]], data: st.DataObject
) -> None:
    """Each frame splits into its good rows, untouched, and its bad ones under their reason."""
    feed = Feed(*known())
    for sent in live(story):
        bad = data.draw(st.sets(st.integers(0, sent.rows - 1)))
        meter = data.draw(st.sampled_from(METERS))
        column = np.frombuffer(getattr(sent, meter), "<u8").copy()
        column[list(bad)] += np.uint64(MAX_COUNTER + 1)
        spoiled = msgspec.structs.replace(sent, **{meter: column.tobytes()})
        outcome = feed(spoiled, at_ms=100_000)
        expected = [vm for row, vm in enumerate(ids_of(sent)) if row in bad]
        assert rejected_of(outcome) == (
            {RejectReason.COUNTER_OVERFLOW: expected} if expected else {}
        )
        good = [row for row in range(sent.rows) if row not in bad]
        enriched = enriched_of(outcome)
        for c in COLUMNS:
            raw = np.frombuffer(getattr(sent, c.name), c.dtype)[good].tobytes()
            assert getattr(enriched, c.name) == raw
