"""What can go wrong with a pretended machine: told by kernel arguments, due by the clock.

`fault=KIND`, `fault_after_ms=N` from the guest's start (0: the request that starts it meets the
fault), `fault_for_ms=N` for those that pass.
"""

from __future__ import annotations

ARGUMENTS = ("fault", "fault_after_ms", "fault_for_ms")
"""Kernel arguments that an image must allow for its VMs to be told of faults."""

KINDS = ("crash", "exit", "fill_disk", "hang", "lose_socket", "refuse", "reset", "triple")
PASSING = ("fill_disk", "hang", "refuse")
"""Those that may end by themselves."""

_MAX_MS = 10**9
_NS_PER_MS = 1_000_000


class Fault:
    """One thing that goes wrong, once.

    Attributes:
        kind: One of `KINDS`.

    Args:
        kind: Which.
        after_ms: When it comes, from the guest's start. The time of a pause counts too.
        for_ms: How long it lasts; None for ever.
    """

    def __init__(self, kind: str, *, after_ms: int = 0, for_ms: int | None = None) -> None:
        self.kind = kind
        self._after_ns = after_ms * _NS_PER_MS
        self._for_ns = None if for_ms is None else for_ms * _NS_PER_MS
        self._comes_ns: int | None = None
        self._goes_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """The guest starts."""
        self._comes_ns = now_ns + self._after_ns

    def comes(self, now_ns: int) -> bool:
        """Whether its time has come; says so once."""
        if self._comes_ns is None or now_ns < self._comes_ns:
            return False
        if self._for_ns is not None:
            self._goes_ns = self._comes_ns + self._for_ns
        self._comes_ns = None
        return True

    def goes(self, now_ns: int) -> bool:
        """Whether its time is over; says so once."""
        if self._goes_ns is None or now_ns < self._goes_ns:
            return False
        self._goes_ns = None
        return True

    def wait_ms(self, now_ns: int) -> int | None:
        """Time until it comes or goes, rounded up; None if neither will be."""
        due_ns = self._comes_ns if self._goes_ns is None else self._goes_ns
        return None if due_ns is None else max(0, -((now_ns - due_ns) // _NS_PER_MS))


def fault_in(boot_args: str) -> Fault | None:
    """The fault that a kernel command line asks for.

    Raises:
        ValueError: It asks for one that does not exist.
    """
    words = dict(word.partition("=")[::2] for word in boot_args.split())
    kind = words.get("fault")
    after_ms, for_ms = (_milliseconds(words, name) for name in ARGUMENTS[1:])
    if kind is None:
        if after_ms is not None or for_ms is not None:
            raise ValueError("a time, but no fault")
        return None
    if kind not in KINDS:
        raise ValueError(f"no fault `{kind[:40]}`, expected one of {', '.join(KINDS)}")
    if for_ms is not None and kind not in PASSING:
        raise ValueError(f"the fault `{kind}` does not pass")
    return Fault(kind, after_ms=after_ms or 0, for_ms=for_ms)


def _milliseconds(words: dict[str, str], name: str) -> int | None:
    text = words.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _MAX_MS:
        raise ValueError(f"`{name}` is no number of milliseconds up to {_MAX_MS}")
    return int(text)
