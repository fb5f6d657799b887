"""What guests print on their serial ports: kept to the last MiB, and read by offset.

A guest may print megabytes a second, and a pipe that nobody reads would block its VMM. So a
console is a file that VMMs append to and the agent trims, at least once a second. How much has
been cut off is kept beside it: an offset counts from the first byte that the VM ever printed, over
all its incarnations and those of the agent.

The content is a stranger's and may be anything; nothing here looks into it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import structlog

from schemas.consoles import ConsoleChunk, ConsoleQuery
from schemas.units import MIB
from vm_agent.drivers.hostile import open_plain

_log = structlog.get_logger("decisec.consoles")

KEPT_BYTES = MIB
"""What is left of a console that is cut."""

_READ_BYTES = MIB


class ConsoleLog:
    """The console of one VM. Blocks, and is for one thread at a time.

    A VMM holds the file open, and one that a hostile guest has taken over may write or shorten it
    as it likes. That confuses whoever reads this one console, and nobody else.

    Args:
        path: The file; need not exist (yet).
        kept_bytes: What is left of it when it is cut.
    """

    def __init__(self, path: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self._path = path
        self._tally = path.with_suffix(".cut")
        self._next_tally = path.with_suffix(".cut.tmp")
        self._kept_bytes = kept_bytes
        self._cut_bytes: int | None = None

    def is_long(self) -> bool:
        """Whether it is time to trim it."""
        try:
            return self._path.lstat().st_size > 2 * self._kept_bytes
        except FileNotFoundError:
            return False

    def read(
        self, limit_bytes: int, *, offset: int | None = None, tail_bytes: int | None = None
    ) -> ConsoleChunk:
        """A part of it, as `ConsoleQuery` has it. One that is not there is empty.

        Raises:
            OSError: It cannot be read, or is no plain file.
        """
        first = self._cut()
        try:
            descriptor = open_plain(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return _chunk(b"", first, first)
        try:
            end = first + os.fstat(descriptor).st_size
            if offset is None and tail_bytes is not None:
                wanted = max(first, end - tail_bytes)
            else:
                wanted = offset or 0
            begin = min(max(wanted, first), end)
            data = os.pread(descriptor, min(limit_bytes, end - begin), begin - first)
        finally:
            os.close(descriptor)
        return _chunk(data, begin, end, lost_bytes=max(0, first - wanted))

    def trim(self) -> bool:
        """Cut it down to its last `kept_bytes` once it is over twice that size.

        VMMs write it in append mode, so after the cut they go on at its new end. What they print
        during the cut, some hundred microseconds, may be lost or come before the rest.

        Returns:
            Whether it was cut. False, too, if it does not exist.

        Raises:
            OSError: It cannot be cut, or is no plain file.
        """
        cut_bytes = self._cut()
        try:
            descriptor = open_plain(self._path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return False
        try:
            size = os.fstat(descriptor).st_size
            if size <= 2 * self._kept_bytes:
                return False
            tail = _read_from(descriptor, size - self._kept_bytes, 2 * self._kept_bytes)
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, 0)
            # All of it, less what is written back: right at any moment, on a full disk, too.
            self._cut_bytes = cut_bytes + size
            while tail:
                written = os.write(descriptor, tail)
                self._cut_bytes -= written
                tail = tail[written:]
        finally:
            os.close(descriptor)
            if self._cut_bytes != cut_bytes:
                self._save()
        return True

    def remove(self) -> None:
        """Remove it for good; nothing happens if it is gone."""
        for path in (self._path, self._tally, self._next_tally):
            path.unlink(missing_ok=True)
        self._cut_bytes = None

    def _cut(self) -> int:
        """How much has been cut off so far."""
        if self._cut_bytes is None:
            try:
                self._cut_bytes = max(0, int(self._tally.read_bytes()))
            except (FileNotFoundError, ValueError):
                # Torn by a power cut: offsets begin anew, which costs readers some repetition.
                self._cut_bytes = 0
        return self._cut_bytes

    def _save(self) -> None:
        """Keep the tally for the next agent.

        After the cut and without a sync. If this agent dies in between, the end goes back, and
        whoever reads along goes on from there: that is cheaper than a sync per MiB.
        """
        self._next_tally.write_bytes(b"%d\n" % self._cut())
        self._next_tally.replace(self._tally)


class Consoles:
    """All consoles of a host: each is read or cut by one thread at a time.

    Args:
        path_of: Where a VM's console is.
    """

    def __init__(self, path_of: Callable[[UUID], Path]) -> None:
        self._path_of = path_of
        self._consoles: dict[UUID, _Console] = {}

    async def read(self, query: ConsoleQuery) -> ConsoleChunk:
        """What a query asks for, whoever asks.

        Raises:
            OSError: It cannot be read.
        """
        console = self._of(query.vm_id)
        async with console.lock:
            return await asyncio.to_thread(
                console.log.read,
                query.limit_bytes,
                offset=query.offset,
                tail_bytes=query.tail_bytes,
            )

    async def trim(self, vm_id: UUID) -> None:
        """Cut a console if it is long. One that cannot be cut is told of, and tried again."""
        console = self._of(vm_id)
        if not console.log.is_long():
            return
        async with console.lock:
            try:
                await asyncio.to_thread(console.log.trim)
            except OSError as error:
                _log.warning("console.not_trimmed", vm_id=str(vm_id), error=str(error))

    async def remove(self, vm_id: UUID) -> None:
        """Remove a VM's console for good; nothing happens if it is gone."""
        console = self._of(vm_id)
        async with console.lock:
            await asyncio.to_thread(console.log.remove)
        self._consoles.pop(vm_id, None)

    def _of(self, vm_id: UUID) -> _Console:
        console = self._consoles.get(vm_id)
        if console is None:
            console = self._consoles[vm_id] = _Console(ConsoleLog(self._path_of(vm_id)))
        return console


class _Console:
    """A log and whose turn it is."""

    def __init__(self, log: ConsoleLog) -> None:
        self.log = log
        self.lock = asyncio.Lock()


def _chunk(data: bytes, begin: int, end: int, lost_bytes: int = 0) -> ConsoleChunk:
    return ConsoleChunk(
        data=data,
        offset=begin,
        next_offset=begin + len(data),
        end=begin + len(data) >= end,
        lost_bytes=lost_bytes,
    )


def _read_from(descriptor: int, begin: int, limit_bytes: int) -> memoryview:
    """All from `begin` on, also what is appended meanwhile, up to a limit."""
    parts: list[bytes] = []
    while limit_bytes > 0:
        part = os.pread(descriptor, min(_READ_BYTES, limit_bytes), begin)
        if not part:
            break
        parts.append(part)
        begin += len(part)
        limit_bytes -= len(part)
    return memoryview(b"".join(parts))
