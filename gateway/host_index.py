"""Which VMs are on which host, as their records say."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator


class HostIndex:
    """Keys of records by host, sorted: by customer, and a customer's in the order of making."""

    def __init__(self) -> None:
        self._keys: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[str]:
        """The hosts that have VMs."""
        return iter(self._keys)

    def count(self, host_id: str) -> int:
        """How many there are."""
        return len(self._keys.get(host_id, ()))

    def after(self, host_id: str, last: str, count: int) -> list[str]:
        """The next keys behind `last`; from the first one if it is empty."""
        keys = self._keys.get(host_id, [])
        begin = bisect_right(keys, last)
        return keys[begin : begin + count]

    def move(self, key: str, before: str | None, after: str | None) -> None:
        """Take a VM that is on another host now; None for nowhere."""
        if before == after:
            return
        if before is not None:
            keys = self._keys.get(before, [])
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                del keys[at]
            if not keys:
                self._keys.pop(before, None)
        if after is not None:
            insort(self._keys.setdefault(after, []), key)
