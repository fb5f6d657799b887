"""Metric frames: round trips, old and new readers, shapes, garbage."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import MalformedMessageError
from schemas.frames import (
    COLUMNS,
    ENRICHMENT_COLUMNS,
    MAX_FRAME_BYTES,
    MAX_ROWS,
    EnrichedFrame,
    Frame,
    decode_enriched_frame,
    decode_frame,
    encode_frame,
)
from schemas.ids import new_id
from schemas.vms import METERS


def raw_frame(rows: int, **more: Any) -> Frame:
    columns = {c.name: bytes(range(256)) * (rows * c.width // 256 + 1) for c in COLUMNS}
    cut = {c.name: columns[c.name][: rows * c.width] for c in COLUMNS}
    head: dict[str, Any] = {
        "host": "h1",
        "run_id": new_id(),
        "seq": 7,
        "tick_ms": 100,
        "sampled_at_ns": 5,
    }
    return Frame(**(head | cut | more))


def enriched_frame(rows: int) -> EnrichedFrame:
    raw = raw_frame(rows)
    columns: dict[str, Any] = {c.name: getattr(raw, c.name) for c in COLUMNS}
    columns |= {c.name: bytes(rows * c.width) for c in ENRICHMENT_COLUMNS}
    return EnrichedFrame(
        host="h1", run_id=raw.run_id, seq=raw.seq, tick_ms=100, sampled_at_ns=5,
        collected_at_ns=6, region="local", customers=("acme",), pools=("default",),
        price_plans=("default",),
        **columns,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 5, 1000])
def test_a_frame_reads_back(rows: int) -> None:
    """Encoding and decoding is the identity, for both kinds."""
    frame = raw_frame(rows)
    assert decode_frame(encode_frame(frame)) == frame
    assert frame.rows == rows
    enriched = enriched_frame(rows)
    assert decode_enriched_frame(encode_frame(enriched)) == enriched


def test_the_largest_frame_fits_its_limit() -> None:
    """MAX_ROWS rows stay below the size at which agents split."""
    assert len(encode_frame(raw_frame(MAX_ROWS))) <= MAX_FRAME_BYTES


def test_the_last_columns_are_the_meters() -> None:
    """Frames, tables and reports hold the meters in one order."""
    assert tuple(c.name for c in COLUMNS[-len(METERS) :]) == METERS


def test_an_old_reader_reads_a_newer_frame() -> None:
    """Fields appended by a later version are passed over."""
    frame = raw_frame(3)
    fields = msgspec.msgpack.decode(encode_frame(frame))
    assert decode_frame(msgspec.msgpack.encode([*fields, b"later", 7])) == frame


def test_a_new_reader_reads_an_older_frame() -> None:
    """A frame that ends before the columns with defaults is an empty frame, not an error."""
    frame = raw_frame(0)
    fields = msgspec.msgpack.decode(encode_frame(frame))
    assert decode_frame(msgspec.msgpack.encode(fields[:6])).rows == 0


def test_frames_from_before_they_told_how_old_counters_may_be_still_read() -> None:
    """Both kinds; the age is then 0, and all else as it was."""
    raw, enriched = raw_frame(2, refresh_ms=300), enriched_frame(2)
    enriched = msgspec.structs.replace(enriched, refresh_ms=300)
    fields = msgspec.msgpack.decode(encode_frame(raw))
    older = decode_frame(msgspec.msgpack.encode(fields[:-1]))
    assert older == msgspec.structs.replace(raw, refresh_ms=0)
    fields = msgspec.msgpack.decode(encode_frame(enriched))
    old = decode_enriched_frame(msgspec.msgpack.encode(fields[:-1]))
    assert old == msgspec.structs.replace(enriched, refresh_ms=0)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda c: c.name)
def test_a_column_of_the_wrong_length_is_named(column: Any) -> None:
    """A torn column makes the whole frame malformed; the error says which."""
    frame = raw_frame(4)
    torn = msgspec.structs.replace(frame, **{column.name: getattr(frame, column.name)[:-1]})
    with pytest.raises(MalformedMessageError, match=r"bad_shape") as caught:
        decode_frame(encode_frame(torn))
    assert column.name in caught.value.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "unsupported_version"),
        ({"host": "a.b"}, "invalid_frame"),
        ({"seq": -1}, "invalid_frame"),
        ({"tick_ms": 2**63}, "invalid_frame"),
    ],
)
def test_a_header_outside_its_limits_is_refused(change: dict[str, Any], reason: str) -> None:
    """Unknown versions, bad hosts and impossible numbers have a reason each."""
    with pytest.raises(MalformedMessageError) as caught:
        decode_frame(encode_frame(raw_frame(1, **change)))
    assert caught.value.reason == reason


@given(st.binary(max_size=400))
def test_garbage_raises_the_documented_error_only(data: bytes) -> None:
    """No bytes whatever raise anything but MalformedMessageError."""
    for decode in (decode_frame, decode_enriched_frame):
        with pytest.raises(MalformedMessageError):
            decode(data)


@given(st.data())
def test_a_damaged_frame_is_taken_or_refused(data: st.DataObject) -> None:
    """Flipped, cut and inserted bytes: a frame of right shape, or the documented error."""
    whole = bytearray(encode_frame(raw_frame(2)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from("fci")):
            case "f":
                whole[place] ^= data.draw(st.integers(1, 255))
            case "c":
                del whole[place : place + data.draw(st.integers(1, 9))]
            case _:
                whole[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        if not whole:
            break
    try:
        frame = decode_frame(bytes(whole))
    except MalformedMessageError:
        return
    assert all(len(getattr(frame, c.name)) == frame.rows * c.width for c in COLUMNS)


@given(st.recursive(st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
                    lambda s: st.lists(s, max_size=24), max_leaves=30))  # fmt: skip
def test_any_msgpack_value_is_refused_in_the_documented_way(value: Any) -> None:
    """Well-formed msgpack of the wrong type is malformed like any other."""
    with pytest.raises(MalformedMessageError):
        decode_frame(msgspec.msgpack.encode(value))
