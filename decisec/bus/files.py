"""Files that are there as a whole or not at all, and secrets that only their owner can read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from runtime.errors import FatalError


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file at once, also for one who reads it meanwhile.

    Raises:
        FatalError: It cannot be written.
    """
    try:
        # Made with mode 0600, whatever the umask.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FatalError(f"{path} cannot be written: {error.strerror}") from error


def write_secret(path: Path, data: bytes) -> None:
    """The same with mode 0600; never over a file that is there.

    Raises:
        FatalError: It is there, or cannot be written.
    """
    if path.exists():
        raise FatalError(f"{path} is there already; a secret is never written over another one")
    write_whole(path, data, mode=0o600)
