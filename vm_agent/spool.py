"""Frames on disk while NATS is away: whole segments, oldest first, bounded."""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from vm_agent.store import sync_folder

_log = structlog.get_logger("decisec.spool")


class Outgoing(msgspec.Struct, frozen=True, array_like=True):
    """One encoded frame, the id it is published under, and its tick; -1 if that is not known."""

    msg_id: str
    payload: bytes
    tick_ms: int = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of frames."""

    path: Path
    size_bytes: int
    frames: int


_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(list[Outgoing])


class Spool:
    """Segments in a directory, named by a growing number and the count of their frames.

    A segment is written under another name, synced and renamed: it is there whole or not at
    all. Without syncing that holds for a death of the agent, not for one of the host. Calls block
    on the disk: make them in a thread. A lock keeps them apart, because a cancelled caller leaves
    its thread at work.

    Args:
        folder: Where; segments that an earlier run left are taken over.
        max_bytes: The oldest segments are given up to stay below.
        sync: Wait until the disk has a segment, and the folder its name.

    Attributes:
        number: The next segment's.
        damaged: Segments that were set aside since the start.
    """

    def __init__(self, folder: Path, max_bytes: int, *, sync: bool = True) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._sync = sync
        self._segments: deque[Segment] = deque()
        self._lock = threading.RLock()
        self.damaged = 0
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        for path in sorted(folder.glob("*.frames")):
            frames = int(path.stem.partition("-")[2])
            self._segments.append(Segment(path, path.stat().st_size, frames))
        last = self._segments[-1].path.stem.partition("-")[0] if self._segments else "-1"
        self.number = int(last) + 1

    @property
    def frames(self) -> int:
        """Frames in all segments."""
        return sum(segment.frames for segment in self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, frames: list[Outgoing]) -> int:
        """Write a new segment; returns how many of the oldest frames had to go for it.

        Raises:
            OSError: The disk does not take it; nothing has changed.
        """
        body = _pack.encode(frames)
        with self._lock:
            return self._append(body, len(frames))

    def _append(self, body: bytes, frames: int) -> int:
        path = self._folder / f"{self.number:016d}-{frames}.frames"
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(body)
                file.flush()
                if self._sync:
                    os.fsync(file.fileno())
            temporary.rename(path)
            if self._sync:
                sync_folder(self._folder)
        except OSError:
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        self.number += 1
        self._segments.append(Segment(path, len(body), frames))
        dropped = 0
        while self.size_bytes > self._max_bytes and len(self._segments) > 1:
            oldest = self._segments[0]
            dropped += oldest.frames
            self.remove(oldest)
        return dropped

    def oldest(self) -> tuple[Segment, list[Outgoing]] | None:
        """The oldest segment and its frames; None when there is none.

        A damaged one is set aside under another name, with a log, and the next one is taken.
        """
        with self._lock:
            return self._oldest()

    def _oldest(self) -> tuple[Segment, list[Outgoing]] | None:
        while self._segments:
            segment = self._segments[0]
            try:
                return segment, _unpack.decode(segment.path.read_bytes())
            except (msgspec.DecodeError, OSError) as error:
                _log.error(
                    "segment.damaged", path=str(segment.path), frames=segment.frames,
                    error=str(error),
                )  # fmt: skip
                if segment.path.exists():
                    segment.path.rename(segment.path.with_suffix(".damaged"))
                self._segments.popleft()
                self.damaged += 1
        return None

    def holds(self, segment: Segment) -> bool:
        """Whether a segment is still here."""
        return segment in self._segments

    def remove(self, segment: Segment) -> None:
        """Delete a segment; nothing happens if it is gone."""
        with self._lock:
            segment.path.unlink(missing_ok=True)
            if segment in self._segments:
                self._segments.remove(segment)
