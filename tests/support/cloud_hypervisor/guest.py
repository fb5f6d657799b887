"""The tiny guest, pretended: what it has done is a function of how long it has run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_KIB = 1024
_NS_PER_S = 1_000_000_000
_REQUEST = 64 * _KIB
_NO_LIMIT = 1 << 62
_LOOK_S = 0.01


class Guest:
    """One start of the guest. Plain state; time is passed in.

    Args:
        arguments: Its kernel command line; `tests/guest/guest.c` says what it means. Besides,
            `tidy=ms` makes it finish its work when it is to stop, and go off so much later.
        disk: Whether there is one to work on.
        limiter: The disk's `rate_limiter_config`. It works in requests of 64 KiB.
        print_line: Writes to its serial port.
        saved: What `save` of a former one has given; it goes on from there, with no I/O counted.
    """

    def __init__(
        self,
        arguments: str,
        *,
        disk: bool,
        print_line: Callable[[str], None],
        limiter: dict[str, Any] | None = None,
        saved: dict[str, int] | None = None,
    ) -> None:
        values = _numbers(arguments)
        self._per_round = (
            (values.get("blkr", 0) * _KIB, values.get("blkw", 0) * _KIB) if disk else (0, 0)
        )
        self._requests = -(-sum(self._per_round) // _REQUEST)
        self._buckets = _buckets(limiter or {})
        self._partly = 0
        self._rounds = max(values.get("loop", 1), 1)
        self._hz = values.get("hz", 0)
        self._tidy_ms = values.get("tidy", 0)
        self._print = print_line
        saved = saved or {}
        self._done = self._done_before = saved.get("rounds", 0)
        self._ran_ns = saved.get("ran_ns", 0)
        self._running_since_ns: int | None = None
        self._done_at_ns = 0
        self._pressed = bool(saved.get("pressed", 0))
        self._fresh = not saved

    @property
    def read_bytes(self) -> int:
        """Read from the disk, since the VMM has this guest."""
        partly = min(self._partly * _REQUEST, self._per_round[0])
        return self._per_round[0] * (self._done - self._done_before) + partly

    @property
    def write_bytes(self) -> int:
        """Written to the disk, since the VMM has this guest."""
        partly = max(0, self._partly * _REQUEST - self._per_round[0])
        return self._per_round[1] * (self._done - self._done_before) + partly

    def save(self) -> dict[str, int]:
        """What a guest needs to go on elsewhere."""
        return {"rounds": self._done, "ran_ns": self._ran_ns, "pressed": int(self._pressed)}

    def run(self, now_ns: int) -> None:
        """Let it begin, or go on."""
        if self._running_since_ns is None:
            self._running_since_ns = now_ns
            if self._fresh:
                self._fresh = False
                self._print("READY")
            self.advance(now_ns)

    def pause(self, now_ns: int) -> None:
        """Let it stand still."""
        self.advance(now_ns)
        if self._running_since_ns is not None:
            self._ran_ns += now_ns - self._running_since_ns
            self._running_since_ns = None

    def press(self) -> None:
        """Press its power button: it obeys as soon as it runs."""
        self._pressed = True

    def obeys(self, now_ns: int) -> bool:
        """Whether it goes off now."""
        if not self._pressed or self._running_since_ns is None:
            return False
        if self._tidy_ms and (self._done < self._rounds or self._tidy_s(now_ns) > 0):
            return False
        self._print("BYE")
        return True

    def _tidy_s(self, now_ns: int) -> float:
        """How long it still takes from its last round to its end."""
        return (self._done_at_ns - now_ns) / _NS_PER_S + self._tidy_ms / 1000

    def advance(self, now_ns: int) -> float | None:
        """Do what is due; seconds until more is, None if nothing will be."""
        if self._running_since_ns is None:
            return None
        if self._done == self._rounds:
            return max(0.0, self._tidy_s(now_ns)) if self._pressed and self._tidy_ms else None
        ran_ns = self._ran_ns + now_ns - self._running_since_ns
        begun = ran_ns * self._hz // _NS_PER_S + 1 if self._hz else self._rounds
        begun = min(begun, self._rounds)
        may = self._may(ran_ns)
        self._done = max(self._done, min(begun, may // self._requests) if self._requests else begun)
        self._partly = min(may - self._done * self._requests, self._requests - 1)
        if self._done == self._rounds or self._done == begun:
            self._partly = 0
        if self._done == self._rounds:
            self._done_at_ns = now_ns
            self._print(f"DONE {self._done}")
            return self.advance(now_ns)
        if self._done < begun:
            return _LOOK_S
        return max(0.0, self._done / self._hz - ran_ns / _NS_PER_S)

    def _may(self, ran_ns: int) -> int:
        """Requests that its disk has let through, if it has asked for as many."""
        return min(
            (size + size * ran_ns // refill_ns) // cost for cost, size, refill_ns in self._buckets
        )


def _buckets(limiter: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Token buckets: what a request costs, tokens at first, and the time to fill in ns."""
    costs = {"bandwidth": _REQUEST, "ops": 1}
    found = [
        (costs[name], bucket["size"], bucket["refill_time"] * 1_000_000)
        for name, bucket in limiter.items()
    ]
    return found or [(1, _NO_LIMIT, 1)]


def _numbers(arguments: str) -> dict[str, int]:
    pairs = (word.partition("=") for word in arguments.split())
    return {name: int(value) for name, equals, value in pairs if equals and value.isdigit()}
