"""How a simulator ends that is told to, and what an agent may call it."""

from __future__ import annotations

import signal

ENDINGS: dict[str, tuple[int, frozenset[str]]] = {
    "crash": (-signal.SIGSEGV, frozenset({"crashed"})),
    "exit": (1, frozenset({"crashed", "internal_error"})),
    "triple": (0, frozenset({"crashed", "triple_fault"})),
    "reset": (0, frozenset({"guest_shutdown"})),
}
"""Exit code, and the values of `ExitReason` that fit."""
