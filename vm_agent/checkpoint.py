"""The newest tick on disk, written before it is sent, for an agent that is killed.

Counters that were reported may never be undercut by the next run, and a VMM that dies while no
agent looks is billed what was last seen. So each tick's frames go to one of two files in turn,
with a checksum: a write that is cut short leaves the tick before it whole. Nothing is synced:
the page cache outlives the process, and a host that goes down takes its VMs along.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from pathlib import Path
from uuid import UUID

import msgspec

from schemas.errors import MalformedMessageError
from schemas.frames import Frame, decode_frame
from vm_agent.counters import Values

_HEADER = struct.Struct("<II")
_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(list[bytes])


class Checkpoint:
    """Two files that hold the last two ticks.

    Attributes:
        tick_ms: Newest tick that was found; -1 without one.
        values: Counters per VM and incarnation at that tick.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"tick.{number}" for number in (0, 1)]
        self.tick_ms = -1
        self.values: dict[tuple[UUID, int], Values] = {}
        newest = 1
        for number, path in enumerate(paths):
            frames = _load(path)
            if frames and frames[0].tick_ms > self.tick_ms:
                self.tick_ms = frames[0].tick_ms
                self.values = _values(frames)
                newest = number
        self._files = [
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for path in paths
        ]
        self._next = 1 - newest

    def write(self, payloads: list[bytes]) -> None:
        """Replace the older of the two ticks by the encoded frames of a new one."""
        body = _pack.encode(payloads)
        os.pwrite(self._files[self._next], _HEADER.pack(len(body), zlib.crc32(body)) + body, 0)
        self._next = 1 - self._next

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            os.close(file)


def _load(path: Path) -> list[Frame]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    if len(data) < _HEADER.size:
        return []
    size, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size : _HEADER.size + size]
    if len(body) != size or zlib.crc32(body) != checksum:
        return []
    try:
        return [decode_frame(payload) for payload in _unpack.decode(body)]
    except (msgspec.DecodeError, MalformedMessageError):
        # The checksum is right, so another version wrote it: as good as none.
        return []


def _values(frames: list[Frame]) -> dict[tuple[UUID, int], Values]:
    found: dict[tuple[UUID, int], Values] = {}
    for frame in frames:
        incarnations = array("I", frame.incarnations)
        columns = zip(
            *(
                array("Q", column)
                for column in (
                    frame.uptime_ms,
                    frame.cpu_ns,
                    frame.mem_kib_ms,
                    frame.disk_read_bytes,
                    frame.disk_write_bytes,
                    frame.net_rx_bytes,
                    frame.net_tx_bytes,
                )
            ),
            strict=True,
        )
        for row, values in enumerate(columns):
            vm_id = UUID(bytes=frame.vm_ids[16 * row : 16 * row + 16])
            found[vm_id, incarnations[row]] = values
    return found
