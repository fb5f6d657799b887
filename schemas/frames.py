"""Metric frames: all VMs of a host at one tick, column by column.

A frame is a msgpack array: a few header fields, then one little-endian column of raw bytes per
field, each `rows * width` bytes long. Fields are append-only with defaults, so an old reader
reads a new frame and the reverse; `version` changes only when that stops being true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntFlag, StrEnum
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from schemas.errors import InvalidIdError, MalformedMessageError
from schemas.ids import CustomerId, HostId, PoolId, PricePlanId, RegionId, RunId, token

FRAME_VERSION = 1
MAX_FRAME_BYTES = 512 * 1024
"""Agents split what would be larger; NATS itself takes 1 MiB."""


class Column(NamedTuple):
    """One column of a frame: its name, its NumPy dtype string, bytes per row."""

    name: str
    dtype: str
    width: int


COLUMNS: tuple[Column, ...] = (
    Column("vm_ids", "V16", 16),
    Column("incarnations", "<u4", 4),
    Column("states", "<u1", 1),
    Column("flags", "<u1", 1),
    Column("mem_bytes", "<u8", 8),
    Column("uptime_ms", "<u8", 8),
    Column("cpu_ns", "<u8", 8),
    Column("mem_kib_ms", "<u8", 8),
    Column("disk_read_bytes", "<u8", 8),
    Column("disk_write_bytes", "<u8", 8),
    Column("net_rx_bytes", "<u8", 8),
    Column("net_tx_bytes", "<u8", 8),
)
"""The columns of a frame in wire order. The last seven are `schemas.vms.METERS`."""

ENRICHMENT_COLUMNS: tuple[Column, ...] = (
    Column("customer_index", "<u2", 2),
    Column("pool_index", "<u2", 2),
    Column("price_plan_index", "<u2", 2),
    Column("vcpus", "<u2", 2),
    Column("memory_mib", "<u4", 4),
)

ROW_BYTES = sum(column.width for column in COLUMNS)
MAX_ROWS = (MAX_FRAME_BYTES - 1024) // ROW_BYTES
"""VMs in one frame at most."""


class SampleFlag(IntFlag):
    """Bits of the column `flags`."""

    BASELINE = 1
    """First sample of an incarnation: every counter is zero."""
    FINAL = 2
    """Last sample of an incarnation: its VMM has ended."""
    SIMULATED = 4
    """The numbers come from the simulator."""


class RejectReason(StrEnum):
    """Why a frame, or rows of it, went to `metrics.rejected.<reason>.<host>`."""

    NOT_MSGPACK = "not_msgpack"
    INVALID_FRAME = "invalid_frame"
    UNSUPPORTED_VERSION = "unsupported_version"
    BAD_SHAPE = "bad_shape"
    WRONG_HOST = "wrong_host"
    CLOCK_SKEW = "clock_skew"
    UNKNOWN_VM = "unknown_vm"
    FOREIGN_VM = "foreign_vm"
    DUPLICATE_VM = "duplicate_vm"
    COUNTER_DECREASED = "counter_decreased"
    COUNTER_OVERFLOW = "counter_overflow"
    CPU_IMPLAUSIBLE = "cpu_implausible"
    STORE_REFUSED = "store_refused"


HEADER_REASON = "Decisec-Reason"
HEADER_DETAIL = "Decisec-Detail"
HEADER_ORIGIN_STREAM = "Decisec-Origin-Stream"
HEADER_ORIGIN_SEQUENCE = "Decisec-Origin-Sequence"
HEADER_REPLAY = "Decisec-Replay"
"""On a frame that an operator sent once more: the id of the replay. Such a frame counts like any
other, but says nothing about its host now: neither that it lives, nor how late its frames are."""
HEADER_COMPLETE_MS = "Decisec-Complete-Ms"
"""A claim of the frame's host, in Unix ms: each of its frames with an earlier tick was acknowledged
by `METRICS_RAW` before this one was sent, or is lost and will never come."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Version = Annotated[int, msgspec.Meta(ge=1, le=255)]


class Frame(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an agent publishes on `metrics.raw.<host>` each 100 ms.

    Attributes:
        run_id: New at every agent start.
        seq: Counts the frames of a run from 0, without holes.
        tick_ms: Unix time of the tick in ms, a multiple of 100; slewed, never repeated nor
            turned back within a run.
        sampled_at_ns: The host's wall clock when the readings were done, Unix ns.
        clock_offset_ns: Wall clock minus tick clock at that moment.
        late_ns: How long after the tick's due time the sampler began.
        missed_ticks: Ticks that were skipped just before this one because the sampler was
            more than a period late.
        refresh_ms: How old the counters that only a VMM knows (disk bytes) may be: the distance
            at which VMMs are asked for them, plus the time of an answer. Those of a VMM that does
            not answer are older. 0 from an agent that does not tell.
    """

    version: _Version = FRAME_VERSION
    host: HostId
    run_id: RunId
    seq: _Count
    tick_ms: _Count
    sampled_at_ns: _Count
    clock_offset_ns: int = 0
    late_ns: _Count = 0
    missed_ticks: _Count = 0
    vm_ids: bytes = b""
    incarnations: bytes = b""
    states: bytes = b""
    flags: bytes = b""
    mem_bytes: bytes = b""
    uptime_ms: bytes = b""
    cpu_ns: bytes = b""
    mem_kib_ms: bytes = b""
    disk_read_bytes: bytes = b""
    disk_write_bytes: bytes = b""
    net_rx_bytes: bytes = b""
    net_tx_bytes: bytes = b""
    refresh_ms: _Count = 0

    @property
    def rows(self) -> int:
        """Number of VMs in the frame."""
        return len(self.vm_ids) // 16

    @property
    def msg_id(self) -> str:
        """The `Nats-Msg-Id` under which the frame is published."""
        return f"{self.host}:{self.run_id}:{self.seq}"


class EnrichedFrame(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What a collector publishes on `metrics.enriched.<host>`: the good rows, and whose they are.

    `customers`, `pools` and `price_plans` are the frame's own dictionaries; the index columns
    point into them.

    Attributes:
        collected_at_ns: The collector's wall clock, Unix ns.
        refresh_ms: As in `Frame`.
    """

    version: _Version = FRAME_VERSION
    host: HostId
    run_id: RunId
    seq: _Count
    tick_ms: _Count
    sampled_at_ns: _Count
    collected_at_ns: _Count
    region: RegionId
    customers: tuple[CustomerId, ...]
    pools: tuple[PoolId, ...]
    price_plans: tuple[PricePlanId, ...]
    vm_ids: bytes = b""
    incarnations: bytes = b""
    states: bytes = b""
    flags: bytes = b""
    mem_bytes: bytes = b""
    uptime_ms: bytes = b""
    cpu_ns: bytes = b""
    mem_kib_ms: bytes = b""
    disk_read_bytes: bytes = b""
    disk_write_bytes: bytes = b""
    net_rx_bytes: bytes = b""
    net_tx_bytes: bytes = b""
    customer_index: bytes = b""
    pool_index: bytes = b""
    price_plan_index: bytes = b""
    vcpus: bytes = b""
    memory_mib: bytes = b""
    refresh_ms: _Count = 0

    @property
    def rows(self) -> int:
        """Number of VMs in the frame."""
        return len(self.vm_ids) // 16

    @property
    def msg_id(self) -> str:
        """The `Nats-Msg-Id` under which the frame is published."""
        return f"{self.host}:{self.run_id}:{self.seq}"


class FramesStored(msgspec.Struct, frozen=True, kw_only=True):
    """What a batcher says on `metrics.stored` after a flush: these frames can be queried now.

    Attributes:
        stored_at_ns: When the store had confirmed the insert, Unix ns.
        lags_ms: `stored_at_ns` less `sampled_at_ns` of each frame in the flush that came from its
            host, replays left out; evenly thinned to at most 1000.
        ticks_ms: Newest tick per host in the flush.
    """

    batch_id: str
    rows: _Count
    frames: _Count
    stored_at_ns: _Count
    lags_ms: tuple[int, ...] = ()
    ticks_ms: dict[HostId, _Count] = msgspec.field(default_factory=dict)


def replay_of(headers: Mapping[str, str]) -> str:
    """The replay that a frame came by; empty for one that came from its host."""
    replay_id = headers.get(HEADER_REPLAY, "")
    try:
        return token(replay_id) if replay_id else ""
    except InvalidIdError:
        return ""


_encoder = msgspec.msgpack.Encoder()
_F = TypeVar("_F", Frame, EnrichedFrame)


def encode_frame(frame: Frame | EnrichedFrame) -> bytes:
    """The frame as msgpack."""
    return _encoder.encode(frame)


def check_shape(frame: Frame | EnrichedFrame, columns: Iterable[Column]) -> None:
    """Refuse a frame whose columns disagree about the number of rows.

    Raises:
        MalformedMessageError: With reason `bad_shape`.
    """
    rows, rest = divmod(len(frame.vm_ids), 16)
    if rest:
        raise MalformedMessageError(
            RejectReason.BAD_SHAPE, f"vm_ids has {len(frame.vm_ids)} bytes, not a multiple of 16"
        )
    for column in columns:
        size = len(getattr(frame, column.name))
        if size != rows * column.width:
            raise MalformedMessageError(
                RejectReason.BAD_SHAPE,
                f"{column.name} has {size} bytes, {rows} rows need {rows * column.width}",
            )


def _frame_decoder(kind: type[_F], columns: tuple[Column, ...]) -> Callable[[bytes], _F]:
    inner = msgspec.msgpack.Decoder(kind)

    def decode(data: bytes) -> _F:
        try:
            frame = inner.decode(data)
        except msgspec.ValidationError as error:
            raise MalformedMessageError(RejectReason.INVALID_FRAME, str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedMessageError(RejectReason.NOT_MSGPACK, str(error)) from error
        if frame.version != FRAME_VERSION:
            raise MalformedMessageError(
                RejectReason.UNSUPPORTED_VERSION,
                f"frame version {frame.version}, this reader knows {FRAME_VERSION}",
            )
        check_shape(frame, columns)
        return frame

    return decode


decode_frame = _frame_decoder(Frame, COLUMNS)
decode_enriched_frame = _frame_decoder(EnrichedFrame, COLUMNS + ENRICHMENT_COLUMNS)
