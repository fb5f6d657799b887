"""Amounts as people read them. For display only: nothing here is ever billed."""

from __future__ import annotations

from schemas.units import KIB, NS_PER_S

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MS_PER_S = 1000


def size(count: float) -> str:
    """Bytes with a binary unit: `1.5 MiB`; whole bytes below 1 KiB."""
    value = float(count)
    for unit in _BINARY:
        if abs(value) < KIB or unit == _BINARY[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= KIB
    raise AssertionError  # the last unit takes every amount


def rate(bytes_per_s: float) -> str:
    """Bytes per second; a dash for none, so that activity catches the eye."""
    return f"{size(bytes_per_s)}/s" if bytes_per_s >= 1 else "-"


def seconds(ms: int) -> str:
    """Milliseconds as seconds, to the millisecond."""
    return f"{ms // _MS_PER_S}.{ms % _MS_PER_S:03} s"


def cpu_seconds(cpu_ns: int) -> str:
    """CPU nanoseconds as seconds, to the millisecond (cut, never rounded up)."""
    return seconds(cpu_ns * _MS_PER_S // NS_PER_S)


def gib_seconds(mem_kib_ms: int) -> str:
    """Memory integrated over time, as GiB seconds."""
    return f"{mem_kib_ms / KIB / KIB / _MS_PER_S:.3f} GiB·s"


def percent(ratio: float) -> str:
    """A ratio as a percentage; of one CPU, so that two busy vCPUs are 200 %."""
    return f"{ratio * 100:.1f} %"
