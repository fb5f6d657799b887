"""The supervisor's own log: its bus connection speaks there, not in the user's terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.telemetry import configure_logging


@contextmanager
def journal(file: Path) -> Iterator[None]:
    """Send this process's log to `file` for the length of the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    former, level = root.handlers[:], root.level
    configure_logging("dev")
    with file.open("w") as stream:
        for handler in root.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(stream)
        try:
            yield
        finally:
            root.handlers[:] = former
            root.setLevel(level)
