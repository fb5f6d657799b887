"""The state directory of an embedded stack: what lies where, and who holds it.

Exactly one stack runs on a state directory. The kernel ends the lock with its holder, so a
stack that was killed leaves no lock behind, only files that the next start takes over.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decisec.dev.errors import StackError

KEY_BYTES = 32


class StateDir:
    """Paths below one directory, and the operations on them.

    Args:
        root: Created with mode 0700 if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.logs = self.root / "logs"
        self.nats = self.root / "nats"
        self.agent = self.root / "agent"
        self.store = self.root / "clickhouse"
        self.bin = self.root / "bin"
        self.guest = self.root / "guest" / "tiny.elf"
        self.key_file = self.root / "dev.key"
        self.endpoint_file = self.root / "dev.json"
        self._lock_file = self.root / "lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory for the length of the block.

        Raises:
            StackError: Another stack holds it, or it cannot be written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StackError(
                f"cannot use {self.root} as state directory: {error.strerror}"
            ) from error
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StackError(
                f"another stack (process {holder}) runs on {self.root}; "
                "stop it, or choose another directory with --state-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    @property
    def running(self) -> bool:
        """Whether some process holds the directory now."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @property
    def used(self) -> bool:
        """Whether a stack has ever run here."""
        return self._lock_file.exists()

    def clear(self) -> None:
        """Remove all that a former stack stored, except fetched binaries and the built guest.

        Call it while the directory is held. Touches only the names that a stack makes.
        """
        for folder in (self.logs, self.nats, self.agent, self.store):
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.key_file, self.endpoint_file):
            file.unlink(missing_ok=True)

    def key(self) -> bytes:
        """The development signing key: random, made once, readable by its owner only."""
        try:
            return self.key_file.read_bytes()
        except FileNotFoundError:
            key = secrets.token_hex(KEY_BYTES).encode()
            write_private(self.key_file, key)
            return key


def write_private(file: Path, content: bytes) -> None:
    """Put `content` into `file` with mode 0600, all or nothing."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
