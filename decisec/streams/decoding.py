"""Messages of streams as plain rows that people and programs read: times in ISO 8601, ids as text.

What cannot be decoded is told as such; no bytes of a stranger end up in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar

import msgspec

from decisec.live.samples import column, vm_ids
from decisec.streams.reading import Record
from schemas.commands import Command, CreateVm, decode_command
from schemas.errors import InvalidIdError, MalformedMessageError
from schemas.events import decode_host_event, decode_vm_event
from schemas.frames import (
    EnrichedFrame,
    Frame,
    SampleFlag,
    decode_enriched_frame,
    decode_frame,
    replay_of,
)
from schemas.subjects import (
    HOST_EVENTS,
    METRICS_ENRICHED,
    METRICS_RAW,
    VM_COMMANDS,
    VM_EVENTS,
    host_of_metrics,
)
from schemas.units import NS_PER_S
from schemas.vms import METERS, STATE_NUMBERS

Row: TypeAlias = dict[str, Any]

_F = TypeVar("_F", bound=Frame | EnrichedFrame)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STATE_NAMES = {number: state.value for state, number in STATE_NUMBERS.items()}


def raw_frame(record: Record) -> Frame:
    """The frame in a message of `METRICS_RAW`.

    Raises:
        MalformedMessageError: There is none, or it is of another host than its subject says.
    """
    return _of_its_host(record, decode_frame(record.data))


def enriched_frame(record: Record) -> EnrichedFrame:
    """The frame in a message of `METRICS_ENRICHED`; raises as `raw_frame`."""
    return _of_its_host(record, decode_enriched_frame(record.data))


def _of_its_host(record: Record, frame: _F) -> _F:
    try:
        host = host_of_metrics(record.subject)
    except InvalidIdError as error:
        raise MalformedMessageError("bad_subject", str(error)) from error
    if frame.host != host:
        raise MalformedMessageError("wrong_host", f"a frame of {frame.host} on {host}'s subject")
    return frame


def when_ms(ms: int) -> str:
    """Unix ms as ISO 8601, to the ms; the number itself where there is no such time."""
    try:
        return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")
    except OverflowError:
        return str(ms)


def instant(at: datetime) -> str:
    """A time as ISO 8601 in UTC, to the ms."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def sample_rows(frame: Frame | EnrichedFrame) -> Iterator[Row]:
    """A frame's samples, one row each."""
    shared: Row = {
        "host": frame.host,
        "run_id": str(frame.run_id),
        "seq": frame.seq,
        "tick_ms": frame.tick_ms,
        "tick": when_ms(frame.tick_ms),
        "sampled_at_ns": frame.sampled_at_ns,
    }
    numbers = {
        name: column(frame, name)
        for name in ("incarnations", "states", "flags", "mem_bytes", *METERS)
    }
    owners = _owners(frame) if isinstance(frame, EnrichedFrame) else None
    for place, vm_id in enumerate(vm_ids(frame)):
        flags = SampleFlag(numbers["flags"][place])
        yield {
            **shared,
            "vm_id": str(vm_id),
            "incarnation": numbers["incarnations"][place],
            "state": STATE_NAMES.get(numbers["states"][place], ""),
            "baseline": SampleFlag.BASELINE in flags,
            "final": SampleFlag.FINAL in flags,
            "simulated": SampleFlag.SIMULATED in flags,
            "mem_bytes": numbers["mem_bytes"][place],
            **{meter: numbers[meter][place] for meter in METERS},
            **(owners[place] if owners else {}),
        }


def _owners(frame: EnrichedFrame) -> list[Row]:
    def words(names: tuple[str, ...], index: str) -> list[str]:
        return [names[i] if i < len(names) else "" for i in column(frame, index)]

    columns = zip(
        words(frame.customers, "customer_index"),
        words(frame.pools, "pool_index"),
        words(frame.price_plans, "price_plan_index"),
        column(frame, "vcpus"),
        column(frame, "memory_mib"),
        strict=True,
    )
    return [
        {
            "customer_id": customer,
            "pool": pool,
            "price_plan": plan,
            "region": frame.region,
            "vcpus": vcpus,
            "memory_mib": memory_mib,
            "collected_at_ns": frame.collected_at_ns,
            "collected_at": when_ms(frame.collected_at_ns * 1000 // NS_PER_S),
        }
        for customer, pool, plan, vcpus, memory_mib in columns
    ]


def message_row(stream: str, record: Record) -> Row:
    """An event or a command as one row, without the values of a VM's metadata.

    Raises:
        MalformedMessageError: It is none.
    """
    content: msgspec.Struct
    if stream == VM_EVENTS:
        content = decode_vm_event(record.data)
    elif stream == HOST_EVENTS:
        content = decode_host_event(record.data)
    elif stream == VM_COMMANDS:
        content = _without_secrets(decode_command(record.data))
    else:
        raise ValueError(f"{stream} holds neither events nor commands")
    row: Row = msgspec.to_builtins(content)
    return row


def _without_secrets(command: Command) -> Command:
    if isinstance(command, CreateVm):
        return msgspec.structs.replace(command, spec=command.spec.without_secrets())
    return command


def place(record: Record) -> Row:
    """Where a message stands: what rows of it have in common."""
    row: Row = {"sequence": record.sequence, "stored_at": instant(record.at)}
    if replay := replay_of(record.headers):
        row["replay"] = replay
    return row


def frame_of(stream: str, record: Record) -> Frame | EnrichedFrame | None:
    """The frame in a message of one of the streams that hold them; None for other streams."""
    if stream == METRICS_RAW:
        return raw_frame(record)
    if stream == METRICS_ENRICHED:
        return enriched_frame(record)
    return None
