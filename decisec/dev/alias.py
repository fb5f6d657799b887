"""A short name for a long path: a Unix socket's address holds 107 bytes (unix(7)).

The agent's sockets lie deep below its data directory, so a stack in a deep working directory
gives its agent a symbolic link instead. The link's name follows from the path: the next start,
which ends what a killed stack left, finds VMs under the same name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decisec.dev.errors import StackError

MAX_BYTES = 54
"""107 less what the agent adds: `/run/<32 hex digits>-<6 digits>/api.sock`."""


@contextmanager
def short_path(directory: Path) -> Iterator[Path]:
    """The directory itself if its path is short, else a link to it for the length of the block.

    Raises:
        StackError: The link cannot be made.
    """
    if len(os.fsencode(directory)) <= MAX_BYTES:
        yield directory
        return
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    link = _base() / f"decisec-{digest}"
    try:
        _make(link, directory)
    except OSError as error:
        raise StackError(
            f"{directory} is too long a path for sockets, and {link} cannot stand for it "
            f"({error.strerror}): choose a shorter --state-dir"
        ) from error
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)


def _base() -> Path:
    if os.geteuid() == 0:
        return Path("/run")
    # Others may write to /tmp, but its sticky bit keeps them from replacing a link of ours.
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108


def _make(link: Path, directory: Path) -> None:
    try:
        link.symlink_to(directory)
    except FileExistsError:
        # A killed stack's; somebody else's link must not lead our agent anywhere.
        if link.lstat().st_uid != os.geteuid() or not link.is_symlink():
            raise
        link.unlink()
        link.symlink_to(directory)
