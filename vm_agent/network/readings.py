"""Bytes of every tap in the fabric: one question per tick, exact to the last byte.

Within `at_once` all taps are read together and every reading comes out of that; outside, each
reading asks the kernel anew, as the last one of a VM must. When somebody takes a tap away, the
kernel's word of it brings its last counters along, and those stand.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vm_agent.network.netlink import (
    RTM_DELLINK,
    RTM_GETSTATS,
    RTMGRP_LINK,
    Netlink,
    attributes,
)

_QUESTION = struct.Struct("=BBHII")
_LINK_64 = 1
_MASK = 1 << (_LINK_64 - 1)
_BYTES = struct.Struct("=16xQQ")
"""Of `rtnl_link_stats64`: packets received and sent, then these two."""

_LINK = struct.Struct("=BBHiII")
_IFLA_STATS64 = 23


class Readings:
    """Counters by interface index. Made in a thread that is in the fabric; used by the sampler."""

    def __init__(self) -> None:
        self._ask = Netlink()
        self._hear = Netlink(RTMGRP_LINK)
        self._table: dict[int, tuple[int, int]] | None = None
        self._watched: set[int] = set()
        self._gone: dict[int, tuple[int, int]] = {}

    def watch(self, index: int) -> None:
        """Somebody will ask for a tap, also when it is gone."""
        self._gone.pop(index, None)
        self._watched.add(index)

    def forget(self, index: int) -> None:
        """Nobody will ask for a tap any more."""
        self._watched.discard(index)
        self._gone.pop(index, None)

    def read(self, index: int) -> tuple[int, int] | None:
        """Bytes that the guest received and sent; None if there never was such a tap."""
        if self._table is not None and (read := self._table.get(index)) is not None:
            return read
        try:
            message = self._ask.ask(RTM_GETSTATS, _QUESTION.pack(0, 0, 0, index, _MASK))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self.listen()
            return self._gone.get(index)
        return _guests_view(message.body)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Read all taps now, for everybody who asks within the block.

        Where that fails each is read by itself.
        """
        with suppress(OSError):
            self.listen()
            self._table = {
                int.from_bytes(message.body[4:8], "little"): _guests_view(message.body)
                for message in self._ask.dump(RTM_GETSTATS, _QUESTION.pack(0, 0, 0, 0, _MASK))
            }
        try:
            yield
        finally:
            self._table = None

    def listen(self) -> None:
        """Take note of the last counters of taps that have gone."""
        for message in self._hear.heard():
            if message.kind == RTM_DELLINK:
                index = _LINK.unpack_from(message.body)[3]
                found = attributes(message.body, _LINK.size).get(_IFLA_STATS64)
                if found is not None and index in self._watched:
                    received, sent = _BYTES.unpack_from(found)
                    self._gone[index] = (sent, received)

    def close(self) -> None:
        """Close the sockets."""
        self._ask.close()
        self._hear.close()


def _guests_view(body: memoryview) -> tuple[int, int]:
    # The host receives what the guest sends.
    received, sent = _BYTES.unpack_from(attributes(body, _QUESTION.size)[_LINK_64])
    return sent, received
