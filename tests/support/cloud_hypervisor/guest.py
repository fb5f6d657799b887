"""The tiny guest, pretended: what it has done is a function of how long it has run."""

from __future__ import annotations

from collections.abc import Callable

_KIB = 1024
_NS_PER_S = 1_000_000_000


class Guest:
    """One start of the guest. Plain state; time is passed in.

    Args:
        arguments: Its kernel command line; `tests/guest/guest.c` says what it means. Besides,
            `tidy=ms` makes it finish its work when it is to stop, and go off so much later.
        disk: Whether there is one to work on.
        print_line: Writes to its serial port.
        saved: What `save` of a former one has given; it goes on from there, with no I/O counted.
    """

    def __init__(
        self,
        arguments: str,
        *,
        disk: bool,
        print_line: Callable[[str], None],
        saved: dict[str, int] | None = None,
    ) -> None:
        values = _numbers(arguments)
        self._per_round = (
            (values.get("blkr", 0) * _KIB, values.get("blkw", 0) * _KIB) if disk else (0, 0)
        )
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
        return self._per_round[0] * (self._done - self._done_before)

    @property
    def write_bytes(self) -> int:
        """Written to the disk, since the VMM has this guest."""
        return self._per_round[1] * (self._done - self._done_before)

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
        self._done = max(self._done, min(begun, self._rounds))
        if self._done == self._rounds:
            self._done_at_ns = now_ns
            self._print(f"DONE {self._done}")
            return self.advance(now_ns)
        return max(0.0, self._done / self._hz - ran_ns / _NS_PER_S)


def _numbers(arguments: str) -> dict[str, int]:
    pairs = (word.partition("=") for word in arguments.split())
    return {name: int(value) for name, equals, value in pairs if equals and value.isdigit()}
