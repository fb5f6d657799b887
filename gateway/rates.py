"""Token buckets that several gateways spend from: pure arithmetic, time passed in.

Every gateway holds the same view of a bucket: its level after all that was told. What it has
admitted and not yet told is its own; of that it may have no more than its share of the level.
So the gateways together never admit more than there is, whatever each of them knows, and a
gateway that hears nothing any more goes on by its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from schemas.limits import Rate

MAX_BUCKETS = 50_000
"""Buckets that are not full. Beyond, newcomers of a kind share one."""
_SWEEP_S = 1.0
_LARGE = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may go on.

    Attributes:
        limit: The bucket's size.
        remaining: Tokens left over all gateways; 0 when refused.
        reset_s: Until the bucket is full again if nothing more is asked.
        retry_after_s: Until a token is there again; 0 when admitted.
    """

    admitted: bool
    limit: int
    remaining: int
    reset_s: int
    retry_after_s: float = 0.0


class SharedBucket:
    """One bucket, as one gateway sees it.

    Attributes:
        level: Tokens left after all that was told; below 0 where more was admitted.
        own: Admitted here, and not yet taken from the level.
        told: The part of `own` that a report has told of.
    """

    __slots__ = ("at_s", "burst", "level", "own", "per_s", "told")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self.per_s = rate.per_s
        self.burst = rate.burst
        self.level = float(rate.burst)
        self.own = 0
        self.told = 0
        self.at_s = now_s

    def refill(self, now_s: float) -> None:
        """Bring the level up to now."""
        grown = self.level + (now_s - self.at_s) * self.per_s
        self.level = min(grown, float(self.burst + self.own))
        self.at_s = now_s

    def take(self, now_s: float, members: int) -> Verdict:
        """Spend a token if this gateway's share has one."""
        self.refill(now_s)
        # With a burst below the number of gateways nobody's share would ever reach a token.
        shares = max(1, min(members, self.burst))
        admitted = self.level / shares - self.own >= 1
        if admitted:
            self.own += 1
        left = self.level - self.own
        reset_s = math.ceil(max(0.0, self.burst - left) / self.per_s)
        if admitted:
            return Verdict(True, self.burst, max(0, math.floor(left)), reset_s)
        missing = shares * (self.own + 1) - self.level
        return Verdict(False, self.burst, 0, reset_s, missing / self.per_s)

    @property
    def full(self) -> bool:
        """Whether it says nothing that a new one would not say; refilled first."""
        return self.own == 0 and self.level >= self.burst


class Buckets:
    """The buckets that are not full.

    Args:
        rate_of: The rate of a bucket that another gateway tells of; None for one unknown here.
    """

    def __init__(self, rate_of: Callable[[str], Rate | None]) -> None:
        self._rate_of = rate_of
        self._buckets: dict[str, SharedBucket] = {}
        self._dirty: dict[str, SharedBucket] = {}
        self._swept_s = -math.inf

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def dirty(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._dirty)

    def take(self, key: str, rate: Rate, now_s: float, members: int) -> Verdict:
        """Spend a token of a bucket."""
        key, bucket = self._bucket(key, rate, now_s)
        if bucket.per_s != rate.per_s or bucket.burst != rate.burst:
            bucket.refill(now_s)
            bucket.per_s, bucket.burst = rate.per_s, rate.burst
        verdict = bucket.take(now_s, members)
        if verdict.admitted:
            self._dirty[key] = bucket
        return verdict

    def collect(self, limit: int) -> dict[str, int]:
        """What was spent here since the last call; from then on it counts as told."""
        spent: dict[str, int] = {}
        while self._dirty and len(spent) < limit:
            key, bucket = self._dirty.popitem()
            if bucket.own > bucket.told:
                spent[key] = bucket.own - bucket.told
                bucket.told = bucket.own
        return spent

    def apply(self, spent: Mapping[str, int], now_s: float, *, mine: bool) -> None:
        """Take what a gateway has told from the levels."""
        for key, count in spent.items():
            bucket = self._buckets.get(key)
            if bucket is None:
                rate = self._rate_of(key)
                if rate is None or rate.per_s <= 0:
                    continue
                _, bucket = self._bucket(key, rate, now_s)
            bucket.refill(now_s)
            if mine:
                count = min(count, bucket.own)
                bucket.own -= count
                bucket.told = max(0, bucket.told - count)
            # Whatever is told, a bucket recovers in the time that two of it take.
            bucket.level = max(bucket.level - count, -float(bucket.burst))

    def apply_alone(self, members: int, now_s: float) -> None:
        """Nobody can be told: take for granted that the others spend as much."""
        for bucket in self._buckets.values():
            if bucket.own:
                bucket.refill(now_s)
                bucket.level = max(bucket.level - bucket.own * members, -float(bucket.burst))
                bucket.own = bucket.told = 0
        self._dirty.clear()

    def short(self, now_s: float, limit: int) -> dict[str, float]:
        """Tokens that are missing, by bucket."""
        found: dict[str, float] = {}
        for key, bucket in self._buckets.items():
            bucket.refill(now_s)
            if bucket.level < bucket.burst:
                found[key] = bucket.burst - bucket.level
                if len(found) >= limit:
                    break
        return found

    def lower(self, short: Mapping[str, float], now_s: float) -> None:
        """Take over how another gateway sees the buckets, where that is stricter."""
        for key, missing in short.items():
            rate = self._rate_of(key)
            if rate is not None and rate.per_s > 0:
                _, bucket = self._bucket(key, rate, now_s)
                bucket.level = max(min(bucket.level, bucket.burst - missing), -float(bucket.burst))

    def sweep(self, now_s: float) -> None:
        """Drop the buckets that are full, now and then."""
        if len(self._buckets) < _LARGE or now_s - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now_s
        for key in list(self._full(now_s)):
            del self._buckets[key]

    def _full(self, now_s: float) -> Iterator[str]:
        for key, bucket in self._buckets.items():
            bucket.refill(now_s)
            if bucket.full and key not in self._dirty:
                yield key

    def _bucket(self, key: str, rate: Rate, now_s: float) -> tuple[str, SharedBucket]:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self.sweep(now_s)
            if len(self._buckets) >= MAX_BUCKETS:
                key = overflow(key)
                bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = SharedBucket(rate, now_s)
        return key, bucket


def overflow(key: str) -> str:
    """The bucket that all share who find no room for one of their own."""
    return "@*" if key.startswith("@") else f"*.{key.rpartition('.')[2]}"
