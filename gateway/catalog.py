"""A customer's VMs in the orders in which they are listed.

Ids stand here as text: it sorts as the ids do, is compared in no time, and is half of a VM's key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from uuid import UUID

_LAST = "g"
"""Behind every id."""

Key = tuple[str, str]
"""Name and id. In the order of making the name is left empty: ids are made in time order."""


@dataclass(slots=True)
class _Shelf:
    """What one customer has; both lists are sorted."""

    ids: list[str] = field(default_factory=list)
    names: list[Key] = field(default_factory=list)


class Catalog:
    """Which VMs there are, by customer. Adding and removing cost a search and a move in memory."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}

    def ids(self, customer_id: str) -> list[str]:
        """All of a customer's, in the order of making. Read only."""
        shelf = self._shelves.get(customer_id)
        return shelf.ids if shelf else []

    def add(self, customer_id: str, name: str, vm_id: UUID) -> None:
        """List a VM that is not listed."""
        shelf = self._shelves.setdefault(customer_id, _Shelf())
        insort(shelf.ids, str(vm_id))
        insort(shelf.names, (name, str(vm_id)))

    def rename(self, customer_id: str, before: str, after: str, vm_id: UUID) -> None:
        """List a VM under another name."""
        shelf = self._shelves[customer_id]
        _discard(shelf.names, (before, str(vm_id)))
        insort(shelf.names, (after, str(vm_id)))

    def remove(self, customer_id: str, name: str, vm_id: UUID) -> None:
        """List it no more; nothing happens if it is not listed."""
        shelf = self._shelves.get(customer_id)
        if shelf is None:
            return
        _discard(shelf.ids, str(vm_id))
        _discard(shelf.names, (name, str(vm_id)))
        if not shelf.ids:
            del self._shelves[customer_id]

    def after(
        self,
        customer_id: str,
        last: Key | None,
        count: int,
        *,
        by_name: bool,
        descending: bool,
        name: str | None = None,
    ) -> list[Key]:
        """The next VMs in an order.

        Args:
            customer_id: Whose.
            last: The last one that was seen; None to begin.
            count: At most so many.
            by_name: By name, those of one name by making; else by making alone.
            descending: The other way round.
            name: Only VMs of this name.
        """
        shelf = self._shelves.get(customer_id)
        if shelf is None:
            return []
        if by_name or name is not None:
            return self._names_after(shelf.names, last, count, descending, name)
        ids = shelf.ids
        if descending:
            end = len(ids) if last is None else bisect_left(ids, last[1])
            return [("", vm_id) for vm_id in reversed(ids[max(0, end - count) : end])]
        begin = 0 if last is None else bisect_right(ids, last[1])
        return [("", vm_id) for vm_id in ids[begin : begin + count]]

    def _names_after(
        self, keys: list[Key], last: Key | None, count: int, descending: bool, name: str | None
    ) -> list[Key]:
        low, high = 0, len(keys)
        if name is not None:
            low = bisect_left(keys, (name, ""))
            high = bisect_right(keys, (name, _LAST))
        if descending:
            if last is not None:
                high = min(high, bisect_left(keys, last))
            return keys[max(low, high - count) : high][::-1]
        if last is not None:
            low = max(low, bisect_right(keys, last))
        return keys[low : min(high, low + count)]


def _discard(keys: list, key: object) -> None:  # type: ignore[type-arg]
    at = bisect_left(keys, key)
    if at < len(keys) and keys[at] == key:
        del keys[at]
