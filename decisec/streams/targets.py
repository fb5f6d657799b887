"""Where replayed messages go: back onto the bus, into a file, to the terminal, or nowhere."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from uuid import UUID

import msgspec

from decisec.streams.decoding import Row, message_row, place, sample_rows
from decisec.streams.reading import Record
from decisec.streams.rejects import reject_of, samples_in
from decisec.streams.selection import Selection
from runtime.bus import Bus
from runtime.errors import FatalError
from runtime.publisher import Publisher
from schemas.frames import (
    HEADER_REPLAY,
    EnrichedFrame,
    Frame,
    encode_frame,
)
from schemas.subjects import (
    METRICS_ENRICHED,
    METRICS_RAW,
    METRICS_REJECTED,
    VM_EVENTS,
    metrics_enriched,
    metrics_raw,
)

COLLECTOR = "collector"
BATCHER = "batcher"
TERMINAL = "terminal"
SOURCES = {
    "raw": METRICS_RAW,
    "enriched": METRICS_ENRICHED,
    "events": VM_EVENTS,
    "rejected": METRICS_REJECTED,
}
"""What can be replayed, by the word that a person says."""
GOES_BACK = {COLLECTOR: METRICS_RAW, BATCHER: METRICS_ENRICHED}
"""Streams that are read, and written, for a target on the bus."""
FILE_KINDS = (".jsonl", ".parquet")


def check_route(stream: str, target: str | None, selection: Selection) -> None:
    """Whether messages of a stream can go to a target; None stands for a function or a terminal.

    Raises:
        ValueError: They cannot; the message begins with the parameter that is wrong.
    """
    if stream not in SOURCES.values():
        raise ValueError(f"source: one of {', '.join(SOURCES)}; not {stream!r}")
    if stream == METRICS_REJECTED and selection.customers:
        raise ValueError("customer: of what is refused nobody has said whose it is")
    if target is None:
        return
    if target in GOES_BACK:
        if stream != GOES_BACK[target]:
            raise ValueError(f"into: {target} takes messages of {GOES_BACK[target]} only")
    elif (kind := Path(target).suffix) not in FILE_KINDS:
        raise ValueError(f"into: collector, batcher or a file ({', '.join(FILE_KINDS)})")
    elif kind == ".parquet" and stream in (VM_EVENTS, METRICS_REJECTED):
        raise ValueError(f"into: .parquet is for samples; {stream} goes to .jsonl")


@dataclass(frozen=True, slots=True)
class Item:
    """A message that is meant, and the frame in it with the rows that are meant.

    Attributes:
        whole: The frame is as it came, so that its bytes can go as they are.
    """

    record: Record
    frame: Frame | EnrichedFrame | None
    whole: bool = True


class Target(Protocol):
    """Takes messages."""

    async def take(self, items: Sequence[Item]) -> None:
        """Returns once all of them are safe there."""

    @property
    def written_bytes(self) -> int:
        """Size of the file, if it is one that can be added to."""


class Nowhere:
    """For a replay that only counts."""

    written_bytes = 0

    async def take(self, items: Sequence[Item]) -> None:
        """Nothing happens."""


class BackOntoTheBus:
    """Sends frames to collector or batcher once more, under ids and a header of this replay.

    Of a message's other headers none goes along: what they claimed was true when it was sent.
    """

    written_bytes = 0

    def __init__(self, bus: Bus, replay_id: UUID) -> None:
        self._publisher = Publisher(bus)
        self._replay_id = replay_id

    async def take(self, items: Sequence[Item]) -> None:
        """Returns once the stream has them all.

        Raises:
            TransientError: It has not, and NATS took none for half a minute.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(self._send(item), name=f"replay-{item.record.sequence}")
        except ExceptionGroup as failures:
            # They all fail for the same reason.
            raise failures.exceptions[0] from None

    async def _send(self, item: Item) -> None:
        frame = item.frame
        if frame is None:
            raise ValueError("only frames go back onto the bus")
        raw = isinstance(frame, Frame)
        await self._publisher.publish(
            metrics_raw(frame.host) if raw else metrics_enriched(frame.host),
            item.record.data if item.whole else encode_frame(frame),
            msg_id=f"replay:{self._replay_id}:{item.record.sequence}",
            headers={HEADER_REPLAY: str(self._replay_id)},
        )


class Printed:
    """Gives each row to a function."""

    written_bytes = 0

    def __init__(self, stream: str, show: Callable[[Row], None]) -> None:
        self._stream = stream
        self._show = show

    async def take(self, items: Sequence[Item]) -> None:
        """Row by row."""
        for item in items:
            for row in rows_of(self._stream, item):
                self._show(row)


class JsonLines:
    """A file with a line per sample, event or reject."""

    def __init__(self, stream: str, file: IO[bytes]) -> None:
        self.written_bytes = file.tell()
        self._stream = stream
        self._file = file

    async def take(self, items: Sequence[Item]) -> None:
        """Written, and handed to the kernel."""
        for item in items:
            rows = rows_of(self._stream, item)
            self._file.write(b"".join([msgspec.json.encode(row) + b"\n" for row in rows]))
            await asyncio.sleep(0)  # whoever else has work may do it
        self._file.flush()
        self.written_bytes = self._file.tell()


@contextmanager
def json_lines(path: Path, stream: str, kept_bytes: int | None) -> Iterator[JsonLines]:
    """The file, open for the length of the block.

    Args:
        path: A new file, or one that an interrupted replay has left.
        stream: What is written into it.
        kept_bytes: How much of it counts; None for a new file.

    Raises:
        FatalError: It cannot be written; or is there already and should not, or the reverse.
    """
    try:
        with path.open("xb" if kept_bytes is None else "r+b") as file:
            if kept_bytes is not None:
                # Lines after the checkpoint come again.
                file.truncate(kept_bytes)
                file.seek(0, os.SEEK_END)
            yield JsonLines(stream, file)
    except OSError as error:
        raise FatalError(f"{path}: {error.strerror}") from error


def rows_of(stream: str, item: Item) -> Iterator[Row]:
    """A message's rows: its samples, or the one that an event or a reject is."""
    where = place(item.record)
    if item.frame is not None:
        for row in sample_rows(item.frame):
            yield {**where, **row}
    elif stream == METRICS_REJECTED:
        reject = msgspec.to_builtins(reject_of(item.record))
        data = b64encode(item.record.data).decode()
        yield {**where, **reject, "samples": samples_in(item.record), "data_base64": data}
    else:
        yield {**where, **message_row(stream, item.record)}
