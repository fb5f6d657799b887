"""What a pretended guest uses: a pure function of who it is and how long it has run."""

from __future__ import annotations

import zlib
from itertools import accumulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 16
"""The load has this many levels, of one second each, and then repeats."""

Usage = tuple[int, int, int, int, int]
"""Since the guest started: CPU in ns, bytes read, written, received and sent."""

_SLOT_MS = 1000
_MAX_BUSY_PERMILLE = 800
_MAX_DISK_BYTES_PER_MS = 4096
_MAX_NET_BYTES_PER_MS = 1024


class Load:
    """The load of one machine.

    Args:
        identity: The VM's id: other VMs behave differently, the same one always alike.
        vcpus: CPU time grows with it and never passes `vcpus` seconds per second.
        disk: Whether there is a disk to read and write.
        nic: Whether there is a network interface.
        disk_most: The most that reading and writing move together, in bytes per ms; None is as
            much as they like. At a limit, each keeps its share.
        rx_most: The same of what is received.
        tx_most: The same of what is sent.
    """

    def __init__(
        self,
        identity: str,
        *,
        vcpus: int,
        disk: bool,
        nic: bool,
        disk_most: int | None = None,
        rx_most: int | None = None,
        tx_most: int | None = None,
    ) -> None:
        numbers = _numbers(identity)
        busy = [
            vcpus * 1000 * (50 + next(numbers) % (_MAX_BUSY_PERMILLE - 50)) for _ in range(SLOTS)
        ]
        read, write = ([next(numbers) % _MAX_DISK_BYTES_PER_MS for _ in range(SLOTS)] for _ in "rw")
        received, sent = (
            [next(numbers) % _MAX_NET_BYTES_PER_MS for _ in range(SLOTS)] for _ in "rt"
        )
        if disk_most is not None:
            pairs = [_shared(*pair, disk_most) for pair in zip(read, write, strict=True)]
            read, write = (list(each) for each in zip(*pairs, strict=True))
        received, sent = _capped(received, rx_most), _capped(sent, tx_most)
        none = [0] * SLOTS
        self._rates = [
            busy,
            read if disk else none,
            write if disk else none,
            received if nic else none,
            sent if nic else none,
        ]
        self._sums = [[0, *accumulate(rate * _SLOT_MS for rate in rates)] for rates in self._rates]

    def at(self, uptime_ms: int) -> Usage:
        """Everything used in the first `uptime_ms` milliseconds; never decreasing in it."""
        slots, rest_ms = divmod(uptime_ms, _SLOT_MS)
        rounds, slot = divmod(slots, SLOTS)
        cpu, read, write, received, sent = (
            rounds * sums[SLOTS] + sums[slot] + rates[slot] * rest_ms
            for rates, sums in zip(self._rates, self._sums, strict=True)
        )
        return cpu, read, write, received, sent


def _shared(one: int, other: int, most: int) -> tuple[int, int]:
    total = one + other
    return (one, other) if total <= most else (one * most // total, other * most // total)


def _capped(rates: list[int], most: int | None) -> list[int]:
    return rates if most is None else [min(rate, most) for rate in rates]


def _numbers(identity: str) -> Iterator[int]:
    """Well mixed numbers that follow from a text (Knuth's MMIX generator, upper bits)."""
    state = zlib.crc32(identity.encode())
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 33
