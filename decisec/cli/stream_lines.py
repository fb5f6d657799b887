"""Samples, frames, events, commands and rejects as lines for people.

Whatever a stranger could have put into a message is shown without what controls a terminal.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from decisec.cli.plain_text import PlainText
from decisec.live.quantities import cpu_seconds, seconds, size

if TYPE_CHECKING:
    from decisec.streams.rejects import Reject
    from schemas.frames import EnrichedFrame

_SHOWN = 3
_KNOWN = frozenset({"type", "at", "issued_at", "host_id", "customer_id", "vm_id", "event_id",
                    "sequence", "stored_at", "replay"})  # fmt: skip


def sample_line(row: dict[str, Any]) -> str:
    """One sample."""
    words = [
        clock(row["tick"]),
        row["host"],
        *([row["customer_id"]] if "customer_id" in row else []),
        f"{row['vm_id']}#{row['incarnation']}",
        row["state"] or "?",
        f"up {seconds(row['uptime_ms'])}",
        f"cpu {cpu_seconds(row['cpu_ns'])}",
        f"mem {size(row['mem_bytes'])}",
        f"disk {size(row['disk_read_bytes'])} r, {size(row['disk_write_bytes'])} w",
        f"net {size(row['net_rx_bytes'])} in, {size(row['net_tx_bytes'])} out",
        *[word for word in ("baseline", "final", "simulated", "replay") if row.get(word)],
    ]
    return " ".join(words)


def frame_line(frame: EnrichedFrame, replay: str) -> str:
    """One frame: whose, and how long it was on its way to the collector."""
    index = frame.customer_index
    owners = Counter(
        int.from_bytes(index[place : place + 2], "little") for place in range(0, len(index), 2)
    )
    names = [
        f"{frame.customers[place] if place < len(frame.customers) else '?'} {rows}"
        for place, rows in owners.most_common()
    ]
    more = f", {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    whose = f" ({', '.join(names[:_SHOWN])}{more})" if names else ""
    late_ms = (frame.collected_at_ns - frame.sampled_at_ns) // 1_000_000
    how = f"replay {replay}" if replay else f"{late_ms} ms to the collector"
    at = _utc(frame.tick_ms / 1000)
    vms = "1 VM" if frame.rows == 1 else f"{frame.rows} VMs"
    return f"{at} {frame.host} seq {frame.seq}: {vms}{whose}, {how}"


def message_line(row: dict[str, Any]) -> str:
    """An event or a command: when, what, whose, and the rest of it."""
    rest = [
        f"{name}={_value(value)}"
        for name, value in row.items()
        if name not in _KNOWN and value not in (None, "", {}, [])
    ]
    words = [
        clock(row.get("at") or row.get("issued_at") or ""),
        row["type"],
        *[row[name] for name in ("host_id", "customer_id", "vm_id") if row.get(name)],
        *rest,
    ]
    return plain(" ".join(words))


def reject_line(reject: Reject) -> str:
    """One reject."""
    rows = "no frame" if reject.rows is None else f"{reject.rows} rows"
    return plain(
        f"{clock(reject.at.isoformat())} {reject.host} {reject.reason}: {rows}; {reject.detail}"
    )


def line(row: dict[str, Any]) -> str:
    """A row of a replay, whichever it is."""
    if "reason" in row and "origin_stream" in row:
        rows = "no frame" if row["rows"] is None else f"{row['rows']} rows"
        where = f"{row['sequence']} {clock(row['stored_at'])}"
        return plain(f"{where} {row['host']} {row['reason']}: {rows}; {row['detail']}")
    return sample_line(row) if "tick_ms" in row else message_line(row)


def clock(text: str) -> str:
    """An ISO time as day and time of day in UTC, to the ms."""
    try:
        return _utc(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return text or "-"


def plain(text: str) -> str:
    """Text of unknown origin as one harmless line."""
    return " ".join(PlainText().feed(text.encode(errors="replace")).split())


def _utc(seconds_: float) -> str:
    at = datetime.fromtimestamp(seconds_, UTC)
    return at.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in value.items() if v) + "}"
    return str(value)
