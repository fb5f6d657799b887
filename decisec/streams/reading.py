"""Stretches of a stream, read in order beside its consumers, which notice nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from decisec.streams.bounds import Bound
from runtime.bus import Bus
from runtime.errors import FatalError, TransientError
from runtime.retry import reading

_FAILURES = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)
_BATCH = 128
"""Messages; of the largest frames, 64 MiB."""
_FETCH_S = 5.0
_PATIENCE_S = 30.0
_FORGET_S = 300.0
"""The server drops what a reader that was killed has left there."""


@dataclass(frozen=True, slots=True)
class Record:
    """A message of a stream.

    Attributes:
        at: When the stream stored it.
    """

    sequence: int
    at: datetime
    subject: str
    data: bytes
    headers: Mapping[str, str]


class Extent(NamedTuple):
    """What a stream holds; `max_bytes` 0 for no limit. It is empty if `last` is before `first`."""

    first: int
    last: int
    messages: int
    size_bytes: int
    max_bytes: int


class Stretch(NamedTuple):
    """Sequences `first..last`; empty if `last` is before `first`."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Sequences in it; not all need be there."""
        return max(0, self.last - self.first + 1)


async def extent(bus: Bus, stream: str) -> Extent:
    """What a stream holds at the moment.

    Raises:
        FatalError: There is no such stream.
        TransientError: The server did not say.
    """
    try:
        info = await bus.js.stream_info(stream)
    except nats.js.errors.NotFoundError as error:
        raise FatalError(f"there is no stream {stream}: run `decisec streams apply`") from error
    except _FAILURES as error:
        raise TransientError(f"no word about {stream}: {error}") from error
    state = info.state
    limit = max(0, info.config.max_bytes or 0)
    return Extent(state.first_seq, state.last_seq, state.messages, state.bytes, limit)


async def resolve(bus: Bus, stream: str, begin: Bound | None, end: Bound | None) -> Stretch:
    """The sequences between two bounds, both included, as the stream stands now.

    What is stored later is not part of it, so a replay never meets what it sent itself.

    Raises:
        FatalError: There is no such stream.
        TransientError: The server did not say.
    """
    holds = await extent(bus, stream)

    async def sequence(bound: Bound | None, default: int) -> int:
        match bound:
            case None:
                return default
            case datetime():
                return await sequence_at(bus, stream, bound)
            case _:
                return bound

    first = max(holds.first, 1, await sequence(begin, holds.first))
    last = await sequence(end, holds.last)
    if isinstance(end, datetime):
        last -= 1
    return Stretch(first, min(last, holds.last))


async def sequence_at(bus: Bus, stream: str, at: datetime) -> int:
    """The first sequence stored at that time or later; the next one to come if there is none."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=at, headers_only=True
    )
    async for attempt in reading(_PATIENCE_S):
        with attempt:
            async with _Pull(bus, stream, config) as pull:
                if pull.pending:
                    return (await pull.fetch(1))[0].sequence
            return (await extent(bus, stream)).last + 1
    raise AssertionError  # the policy returns or raises


async def records(
    bus: Bus, stream: str, stretch: Stretch, filters: Sequence[str] = ()
) -> AsyncIterator[list[Record]]:
    """The messages of a stretch in their order, some at a time.

    Args:
        bus: The connection; may break in between.
        stream: Not a work queue.
        stretch: What of it.
        filters: Subjects, wildcards allowed; empty for all.

    Raises:
        TransientError: The server is away for longer than half a minute.
    """
    following = stretch.first
    pull: _Pull | None = None
    try:
        while following <= stretch.last:
            batch: list[Record] = []
            async for attempt in reading(_PATIENCE_S):
                with attempt:
                    try:
                        if pull is None:
                            pull = await _open(bus, stream, following, filters)
                        batch = await pull.fetch(_BATCH) if pull.pending else []
                    except TransientError:
                        # Whatever went wrong, a fresh consumer goes on where this one stopped.
                        if pull is not None:
                            await pull.close()
                        pull = None
                        raise
            if not batch:
                return
            following = batch[-1].sequence + 1
            if wanted := [record for record in batch if record.sequence <= stretch.last]:
                yield wanted
    finally:
        if pull is not None:
            await pull.close()


async def record_at(bus: Bus, stream: str, sequence: int) -> Record | None:
    """One message, or None if it is not there (any more).

    Raises:
        TransientError: The server did not answer.
    """
    async for attempt in reading(_PATIENCE_S):
        with attempt:
            try:
                found = await bus.js.get_msg(stream, sequence)
            except nats.js.errors.NotFoundError:
                return None
            except _FAILURES as error:
                raise TransientError(f"{stream} cannot be read: {error}") from error
            return Record(
                sequence=sequence,
                at=found.time or datetime.fromtimestamp(0, UTC),
                subject=found.subject or "",
                data=found.data or b"",
                headers=found.headers or {},
            )
    raise AssertionError  # the policy returns or raises


async def remove(bus: Bus, stream: str, sequence: int) -> bool:
    """Take one message out of a stream; false if it was not there (any more).

    Raises:
        TransientError: The server did not answer.
    """
    async for attempt in reading(_PATIENCE_S):
        with attempt:
            try:
                await bus.js.delete_msg(stream, sequence)
            except nats.js.errors.APIError as error:
                # The server has one code for all that can be wrong with a deletion.
                if await record_at(bus, stream, sequence) is None:
                    return False
                raise TransientError(f"{stream} keeps {sequence}: {error}") from error
            except _FAILURES as error:
                raise TransientError(f"{stream} keeps {sequence}: {error}") from error
            return True
    raise AssertionError  # the policy returns or raises


async def _open(bus: Bus, stream: str, first: int, filters: Sequence[str]) -> _Pull:
    pull = _Pull(
        bus,
        stream,
        ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=first,
            filter_subjects=list(filters) or None,
        ),
    )
    await pull.open()
    return pull


class _Pull:
    """A consumer of our own that lives as long as we read.

    Attributes:
        pending: Messages that are still to come, as far as the server has said.
    """

    def __init__(self, bus: Bus, stream: str, config: ConsumerConfig) -> None:
        self.pending = 0
        self._bus = bus
        self._stream = stream
        self._name = f"reader-{uuid4().hex}"
        self._config = config.evolve(
            name=self._name,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_FORGET_S,
            mem_storage=True,
        )
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._delivered = 0

    async def __aenter__(self) -> _Pull:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Set it up at the server."""
        try:
            info = await self._bus.js.add_consumer(self._stream, self._config)
            self.pending = info.num_pending or 0
            self._subscription = await self._bus.js.pull_subscribe_bind(
                consumer=self._name, stream=self._stream
            )
        except _FAILURES as error:
            raise TransientError(f"{self._stream} cannot be read: {error}") from error

    async def fetch(self, most: int) -> list[Record]:
        """The next messages, at least one. Only while some are pending.

        Raises:
            TransientError: None came in time, or some were lost on the way.
        """
        if self._subscription is None:
            raise TransientError(f"{self._stream} is not open")
        try:
            found = await self._subscription.fetch(most, timeout=_FETCH_S)
        except _FAILURES as error:
            words = str(error) or "no message in time"
            raise TransientError(f"{self._stream} cannot be read: {words}") from error
        for message in found:
            self._delivered += 1
            if message.metadata.sequence.consumer != self._delivered:
                raise TransientError(f"messages of {self._stream} were lost on the way")
            self.pending = message.metadata.num_pending
        return [_record(message) for message in found]

    async def close(self) -> None:
        """Remove it; a server that is away does so by itself."""
        subscription, self._subscription = self._subscription, None
        if subscription is None or not self._bus.connected:
            return
        try:
            async with asyncio.timeout(_FETCH_S):
                await subscription.unsubscribe()
                await self._bus.js.delete_consumer(self._stream, self._name)
        except _FAILURES:
            return  # it is forgotten in a while


def _record(message: Msg) -> Record:
    metadata = message.metadata
    return Record(
        sequence=metadata.sequence.stream,
        at=metadata.timestamp,
        subject=message.subject,
        data=message.data,
        headers=message.headers or {},
    )
