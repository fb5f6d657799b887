"""What a replay is to do, and how far it has come: enough to go on after it was interrupted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec

from decisec.streams.reading import Stretch
from decisec.streams.selection import Selection
from runtime.errors import FatalError

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A replay as it was asked for.

    Attributes:
        replay_id: Part of every message id, and the header of every frame.
        source: Name of the stream.
        target: `collector`, `batcher`, `terminal`, or the path of a file.
        first: First sequence.
        last: Last one.
        speed: How many times as fast as the messages were stored; 0 for as fast as it goes.
        again: Messages that are themselves of a replay are taken as well.
    """

    replay_id: UUID
    source: str
    target: str
    first: _Count
    last: _Count
    selection: Selection = Selection()
    speed: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    again: bool = False
    reason: str = ""

    @property
    def stretch(self) -> Stretch:
        """The sequences."""
        return Stretch(self.first, self.last)

    def words(self) -> str:
        """For people and the audit."""
        which = self.selection.words()
        return (
            f"{self.source} {self.first}-{self.last} to {self.target}"
            f"{f', {which}' if which else ''}"
        )


class Progress(msgspec.Struct, kw_only=True):
    """How far a replay has come.

    Attributes:
        cursor: The last sequence that is done, whatever was done with it.
        messages: Messages that went to the target.
        samples: Samples in them.
        size_bytes: Bytes of them.
        replays: Messages left out because they were replays.
        undecodable: Messages left out because they are no frames.
        other: Messages left out because of the selection.
        gone: Sequences that the stream had discarded before they were read, of other hosts too.
        written_bytes: Size of the target, if it is a file.
        hosts: Messages that went to the target, by host.
    """

    cursor: _Count = 0
    messages: _Count = 0
    samples: _Count = 0
    size_bytes: _Count = 0
    replays: _Count = 0
    undecodable: _Count = 0
    other: _Count = 0
    gone: _Count = 0
    written_bytes: _Count = 0
    hosts: dict[str, int] = msgspec.field(default_factory=dict)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a checkpoint file."""

    plan: Plan
    progress: Progress


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it whole, or leave the former one.

    Raises:
        FatalError: The file cannot be written.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(checkpoint)) + b"\n")
        os.replace(fresh, path)  # noqa: PTH105 - atomic, and said so
    except OSError as error:
        raise FatalError(f"the checkpoint {path} cannot be written: {error.strerror}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """What a replay left behind.

    Raises:
        FatalError: The file cannot be read, or is no checkpoint.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except OSError as error:
        raise FatalError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FatalError(f"{path} is no checkpoint: {error}") from error
