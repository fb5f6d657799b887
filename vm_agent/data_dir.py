"""The agent's data directory: one agent at a time, told by a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import FatalError

_IDENTITY = re.compile(r"[0-9a-f]{8}")


def identity(data_dir: Path) -> str:
    """A token that tells what this directory's agent makes on the host from what others make.

    Made at the first call, and kept: a directory that is moved keeps it.
    """
    path = data_dir / "identity"
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if not _IDENTITY.fullmatch(found):
        found = secrets.token_hex(4)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(found + "\n")
        temporary.rename(path)
    return found


@contextmanager
def owned(data_dir: Path) -> Iterator[Path]:
    """Make the directory if need be, and hold it for the length of the block.

    Yields:
        Its absolute path.

    Raises:
        FatalError: It cannot be made, or another agent holds it.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FatalError(f"{data_dir}: cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FatalError(f"{data_dir}: another agent works here") from error
        yield data_dir.absolute()
    finally:
        os.close(lock)
