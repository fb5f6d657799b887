"""Frames: all rows, in columns, numbered without holes."""

from __future__ import annotations

import struct
from array import array

from hypothesis import given
from hypothesis import strategies as st

from schemas.frames import MAX_FRAME_BYTES, MAX_ROWS, decode_frame, encode_frame
from schemas.ids import new_id
from schemas.vms import METERS, STATE_NUMBERS, VmState
from vm_agent.framing import FrameBuilder
from vm_agent.metering import Row
from vm_agent.ticks import Tick

TICK = Tick(tick_ms=1_800_000_000_000, late_ns=7, missed=2, offset_ns=-5)

rows = st.builds(
    Row,
    st.integers(1, 2**32 - 1),
    st.sampled_from(VmState),
    st.integers(0, 7),
    st.integers(0, 2**63),
    st.tuples(*[st.integers(0, 2**63 - 1)] * 7),
)


@given(st.lists(rows, max_size=40), st.integers(1, 15))
def test_every_row_comes_out_as_it_went_in(given_rows: list[Row], max_rows: int) -> None:
    """Over as many frames as it takes, in order."""
    builder = FrameBuilder("h1", new_id(), max_rows)
    ids = [(new_id(), row) for row in given_rows]
    frames = [decode_frame(encode_frame(f)) for f in builder.build(TICK, 123, ids)]
    assert [f.seq for f in frames] == list(range(len(frames)))
    assert len(frames) == max(1, -(-len(ids) // max_rows))
    assert {f.tick_ms for f in frames} == {TICK.tick_ms}
    assert sum(f.missed_ticks for f in frames) == 2
    out = []
    for frame in frames:
        for row in range(frame.rows):
            values = tuple(array("Q", getattr(frame, meter))[row] for meter in METERS)
            out.append(
                (
                    frame.vm_ids[16 * row : 16 * row + 16],
                    struct.unpack_from("<I", frame.incarnations, 4 * row)[0],
                    frame.states[row],
                    frame.flags[row],
                    struct.unpack_from("<Q", frame.mem_bytes, 8 * row)[0],
                    values,
                )
            )
    assert out == [
        (i.bytes, r.incarnation, STATE_NUMBERS[r.state], r.flags, r.mem_bytes, r.values)
        for i, r in ids
    ]


def test_sequence_numbers_go_on_from_tick_to_tick() -> None:
    """A host without VMs is heard, too."""
    builder = FrameBuilder("h1", new_id())
    assert [builder.build(TICK, 1, [])[0].seq for _ in range(3)] == [0, 1, 2]


def test_every_frame_of_a_tick_says_how_old_device_counters_may_be() -> None:
    """Over the wire too; 0 where it was not told."""
    row = Row(1, VmState.RUNNING, 0, 0, (0,) * 7)
    builder = FrameBuilder("h1", new_id(), 2)
    frames = builder.build(TICK, 1, [(new_id(), row)] * 3, 400)
    assert [decode_frame(encode_frame(frame)).refresh_ms for frame in frames] == [400, 400]
    assert builder.build(TICK, 1, [])[0].refresh_ms == 0


def test_a_full_frame_stays_below_the_limit() -> None:
    """The largest one that is built fits."""
    row = Row(2**32 - 1, VmState.RUNNING, 7, 2**63, (2**63,) * 7)
    ids = [(new_id(), row)] * (MAX_ROWS + 1)
    frames = FrameBuilder("h" * 63, new_id()).build(TICK, 2**62, ids)
    assert [f.rows for f in frames] == [MAX_ROWS, 1]
    assert all(len(encode_frame(f)) <= MAX_FRAME_BYTES for f in frames)
