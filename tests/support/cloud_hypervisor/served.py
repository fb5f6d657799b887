"""What answers on an API socket: the server in front of it does the I/O and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple


class Reply(NamedTuple):
    """Status code and JSON body; None is an answer without one."""

    status: int
    body: Any = None


class Served(ABC):
    """One stand-in for a VMM.

    Attributes:
        server_name: As its answers have it.
        exit_requested: The process is to end, once the last answer is sent.
    """

    server_name: ClassVar[str]
    exit_requested: bool = False

    @abstractmethod
    def handle(self, method: str, path: str, body: bytes) -> Reply:
        """Answer one request."""

    @abstractmethod
    def refuse(self, message: str) -> Reply:
        """Answer what is no request."""

    def advance(self) -> float | None:
        """Do what is due; how many seconds until more is, None for never."""
        return None
