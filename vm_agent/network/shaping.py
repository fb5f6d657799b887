"""What a VM may receive per second where the host sees to it: a token bucket on its tap.

The bucket (tc-tbf(8)) is full at first and holds what one second allows. What comes faster waits in
a queue, and what finds the queue full is dropped and counted. Frames are counted with their
Ethernet headers, as the tap's own counters do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vm_agent.network.netlink import (
    RTM_GETQDISC,
    RTM_NEWQDISC,
    Attributes,
    Netlink,
    attribute,
    attributes,
    opened,
    text,
)

MOST_BYTES_PER_S = 10_000_000_000
"""More than a tap moves; the kernel's arithmetic ends at 18 GB."""

_ETHERNET_BYTES = 14
_QUEUE_SHARE = 10
"""A queue holds what passes in a tenth of a second: TCP needs some, and more is delay."""
_QUEUE_LEAST_BYTES, _QUEUE_MOST_BYTES = 128 << 10, 2 << 20
"""Two of the largest packets that a host hands on in one piece; and no more of its memory."""

# linux/pkt_sched.h, rtnetlink.h. A tick is 64 ns (net/pkt_sched.h).
_TICK_NS = 64
_SECOND_NS = 1_000_000_000
_TICKS_MOST = (1 << 32) - 1
_QDISC = struct.Struct("=BxxxiIII")
_HANDLE = 0xDEC << 20
"""What says that a queueing discipline is ours."""
_ROOT = 0xFFFF_FFFF
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2, _TCA_STATS_QUEUE = 1, 2, 7, 3
_TBF_PARMS, _TBF_RATE64 = 1, 4
_RATE = struct.Struct("=BBHhHI")
_PARMS = struct.Struct("=12s12xIII")
_OVER_ETHERNET = 1
_DROPS = struct.Struct("=8xI")


class Limit(NamedTuple):
    """The most that leaves through an interface.

    Attributes:
        link: The interface.
        bytes_per_s: In the long run.
        bucket_ticks: What may pass at once, as the time in which it fills.
        queue_bytes: What may wait.
    """

    link: str
    bytes_per_s: int
    bucket_ticks: int
    queue_bytes: int


def limit_of(link: str, bytes_per_s: int, mtu: int) -> Limit:
    """The limit of an interface: a second's worth at once, one frame at least."""
    rate = min(bytes_per_s, MOST_BYTES_PER_S)
    frame_ns = -(-(mtu + _ETHERNET_BYTES) * _SECOND_NS // rate)
    ticks = -(-max(_SECOND_NS, frame_ns) // _TICK_NS)
    queue = min(max(rate // _QUEUE_SHARE, _QUEUE_LEAST_BYTES), _QUEUE_MOST_BYTES)
    return Limit(link, rate, min(ticks, _TICKS_MOST), queue)


def message(limit: Limit, index: int) -> tuple[int, bytes]:
    """The message that puts a limit in place of what an interface has; the next kind takes it away.

    The counts of a limit go on when another one takes its place.
    """
    rate = min(limit.bytes_per_s, (1 << 32) - 1)
    spec = _RATE.pack(0, _OVER_ETHERNET, 0, 0, 0, rate)
    options = attribute(_TBF_PARMS, _PARMS.pack(spec, limit.queue_bytes, limit.bucket_ticks, 0))
    if limit.bytes_per_s > rate:
        options += attribute(_TBF_RATE64, struct.pack("=Q", limit.bytes_per_s))
    place = _QDISC.pack(0, index, _HANDLE, _ROOT, 0)
    return RTM_NEWQDISC, (place + attribute(_TCA_KIND, b"tbf\0") + attribute(_TCA_OPTIONS, options))


def read_limits(netlink: Netlink, names: Mapping[int, str]) -> Iterator[Limit]:
    """The limits of all these interfaces.

    Raises:
        OSError: The kernel refuses.
    """
    for index, given in _ours(netlink):
        if index not in names:
            continue
        options = attributes(given[_TCA_OPTIONS], 0)
        spec, queue_bytes, ticks, _ = _PARMS.unpack_from(options[_TBF_PARMS])
        rate = _RATE.unpack(spec)[-1]
        if (wide := options.get(_TBF_RATE64)) is not None:
            rate = int.from_bytes(wide, "little")
        yield Limit(names[index], rate, ticks, queue_bytes)


def _ours(netlink: Netlink) -> Iterator[tuple[int, Attributes]]:
    for message in netlink.dump(RTM_GETQDISC, _QDISC.pack(0, 0, 0, 0, 0)):
        _, index, handle, parent, _ = _QDISC.unpack_from(message.body)
        if (handle, parent) == (_HANDLE, _ROOT):
            given = attributes(message.body, _QDISC.size)
            if text(given[_TCA_KIND]) == "tbf":
                yield index, given


class Overflow:
    """What found the queues of limited taps full. Counts of taps that are gone are told once more.

    `read` and `leave` block for a ms or two, in a thread that is in the fabric.
    """

    def __init__(self) -> None:
        self._watched: dict[str, int] = {}
        self._before: dict[str, int] = {}

    def watch(self, tap: str, index: int) -> None:
        """A tap has a limit from now on."""
        self._watched[tap] = index

    def forget(self, tap: str) -> None:
        """A tap is gone, and its count with it if nobody said before that it goes."""
        self._watched.pop(tap, None)

    def read(self) -> dict[str, int]:
        """Packets dropped so far, by tap.

        Raises:
            OSError: The kernel refuses.
        """
        watched = dict(self._watched)  # others come while this is at work
        counts = _counts() if watched else {}
        found = self._before | {
            tap: self._before.get(tap, 0) + counts.get(index, 0) for tap, index in watched.items()
        }
        self._before = {tap: n for tap, n in self._before.items() if tap in watched}
        return found

    def leave(self, taps: Iterable[str]) -> None:
        """Remember the counts of taps that go now.

        Raises:
            OSError: The kernel refuses.
        """
        going = {tap: self._watched.pop(tap) for tap in taps if tap in self._watched}
        counts = _counts() if going else {}
        for tap, index in going.items():
            self._before[tap] = self._before.get(tap, 0) + counts.get(index, 0)


def _counts() -> dict[int, int]:
    with opened() as netlink:
        found = {}
        for index, given in _ours(netlink):
            queue = attributes(given[_TCA_STATS2], 0)[_TCA_STATS_QUEUE]
            found[index] = _DROPS.unpack_from(queue)[0]
        return found
