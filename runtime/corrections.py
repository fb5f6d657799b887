"""What corrections say of a VM's rows: looked up by incarnation and by tick. No I/O.

Collector and batcher both go by it, so that a row is everybody's the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import structlog

from schemas.corrections import OwnerCorrection, PlanCorrection, VmCorrections
from schemas.errors import InvalidIdError
from schemas.ids import CustomerId, parse_uuid

_log = structlog.get_logger("decisec.corrections")

T = TypeVar("T")
FOREVER_MS = 2**63 - 1


class Words(NamedTuple):
    """What stands beside the counters; None is left as it is."""

    pool: str | None = None
    region: str | None = None
    price_plan: str | None = None


_AS_IT_IS = Words()


class Span(NamedTuple, Generic[T]):
    """From `begin` to before `end` this holds."""

    begin: int
    end: int
    value: T


class Attribution:
    """The corrections of one VM, put together.

    Attributes:
        vm_id: 16 bytes.
        customers: Everybody whom they concern.
        mark: Changes with what they say.
        owners: Who owns which incarnations, without overlaps and in order.
        words: The same for ticks, Unix ms.
    """

    def __init__(self, value: VmCorrections) -> None:
        owners = [c for c in value.corrections if isinstance(c, OwnerCorrection)]
        plans = [c for c in value.corrections if isinstance(c, PlanCorrection)]
        self.vm_id = value.vm_id.bytes
        self.customers: tuple[CustomerId, ...] = value.customers
        self.mark = str(value.corrections[-1].correction_id) if value.corrections else ""
        self.owners: tuple[Span[str], ...] = tuple(
            Span(span.begin, span.end, span.value[-1].customer_id)
            for span in _overlay(
                [Span(c.first_incarnation, c.last_incarnation + 1, c) for c in owners]
            )
        )
        self.words: tuple[Span[Words], ...] = tuple(
            Span(span.begin, span.end, _words(span.value))
            for span in _overlay([Span(c.from_ms, c.until_ms, c) for c in plans])
        )
        self._owner_ends = [span.end for span in self.owners]
        self._word_ends = [span.end for span in self.words]

    def owner(self, incarnation: int) -> str | None:
        """Whose an incarnation is; None if nothing was corrected."""
        found = _at(self.owners, self._owner_ends, incarnation)
        return found.value if found else None

    def words_at(self, tick_ms: int) -> Span[Words]:
        """What holds at a tick, and from when to when that does not change."""
        place = bisect_right(self._word_ends, tick_ms)
        before = self._word_ends[place - 1] if place else -FOREVER_MS
        if place == len(self.words):
            return Span(before, FOREVER_MS, _AS_IT_IS)
        span = self.words[place]
        return span if span.begin <= tick_ms else Span(before, span.begin, _AS_IT_IS)


class CorrectionIndex:
    """VM id (16 bytes) to what was corrected of it, fed by a mirror of the bucket.

    A snapshot is taken for nothing; the first change after it copies what it holds. So to read a
    bucket of which nobody takes a snapshot meanwhile copies nothing.

    Attributes:
        version: Grows with each change of what is said of any VM.
        copied: VMs that were copied so far, since a snapshot held them.
    """

    def __init__(self) -> None:
        self.version = 0
        self.copied = 0
        self._by_vm: dict[bytes, Attribution] = {}
        self._held = False
        self._versions: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Of how many VMs something was corrected."""
        return len(self._by_vm)

    def __iter__(self) -> Iterator[Attribution]:
        """What was corrected, VM by VM."""
        return iter(self._by_vm.values())

    def get(self, vm_id: bytes) -> Attribution | None:
        """What was corrected of a VM."""
        return self._by_vm.get(vm_id)

    def snapshot(self) -> Mapping[bytes, Attribution]:
        """Everything as it stands now. Never changes, so threads may share it."""
        self._held = True
        return self._by_vm

    def change(self, key: str, value: VmCorrections | None) -> None:
        """Take over a change of the bucket; None for a key that is gone."""
        try:
            vm_id = parse_uuid(key).bytes
        except InvalidIdError as error:
            _log.error("correction.refused", key=key[:120], error=str(error))
            return
        if value is not None and value.vm_id.bytes != vm_id:
            _log.error("correction.refused", key=key, error="key and value name different VMs")
            return
        old, new = self._by_vm.get(vm_id), Attribution(value) if value is not None else None
        if (old and old.mark) == (new and new.mark):
            return
        if self._held:
            self.copied += len(self._by_vm)
            self._by_vm, self._held = dict(self._by_vm), False
        if new is not None:
            self._by_vm[vm_id] = new
        else:
            del self._by_vm[vm_id]
        self.version += 1
        self._versions[vm_id] = self.version

    def changed_since(self, version: int) -> frozenset[bytes]:
        """VMs of which something else was said at this version."""
        return frozenset(vm_id for vm_id, at in self._versions.items() if at > version)


def _overlay(spans: Iterable[Span[T]]) -> list[Span[Sequence[T]]]:
    """Pieces without overlaps, each with the values that lie there, the latest last."""
    given = list(spans)
    cuts = sorted({edge for span in given for edge in (span.begin, span.end)})
    pieces = []
    for begin, end in pairwise(cuts):
        there = [span.value for span in given if span.begin <= begin and end <= span.end]
        if there:
            pieces.append(Span[Sequence[T]](begin, end, there))
    return pieces


def _words(corrections: Sequence[PlanCorrection]) -> Words:
    """Word by word the latest that says something."""
    words = _AS_IT_IS
    for one in corrections:
        words = Words(
            one.pool or words.pool, one.region or words.region, one.price_plan or words.price_plan
        )
    return words


def _at(spans: Sequence[Span[T]], ends: Sequence[int], place: int) -> Span[T] | None:
    number = bisect_right(ends, place)
    if number < len(spans) and spans[number].begin <= place:
        return spans[number]
    return None
