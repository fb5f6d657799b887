"""What an embedded stack can fail with; every message is a sentence for its user."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start or go on. The message says why and what to do."""


class ChildDiedError(StackError):
    """A process of the stack ended although nobody asked it to.

    Attributes:
        name: Which one.
        exit_code: Negative for a signal.
        log_tail: The last lines of its log.
    """

    def __init__(self, name: str, exit_code: int, log_tail: tuple[str, ...], log: str) -> None:
        how = f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        super().__init__(f"{name} died ({how}), so the stack ends; its log is {log}")
        self.name = name
        self.exit_code = exit_code
        self.log_tail = log_tail
