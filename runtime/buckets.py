"""Typed KV buckets, and mirrors of them in memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue

from runtime import watching
from runtime.bus import Bus
from runtime.errors import DecisecError, PoisonError, TransientError
from schemas.codec import encode
from schemas.errors import MalformedMessageError

_log = structlog.get_logger("decisec.buckets")

T = TypeVar("T", bound=msgspec.Struct)

_RESYNC_S = 10.0
_QUIET_S = 0.25
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_CONFLICTS = frozenset({10071, 10164})
"""JetStream error codes: there is no such stream, no such message; the subject's last sequence is
another one."""
_OPERATION = "KV-Operation"


class RevisionConflictError(DecisecError):
    """The key exists already, or has been written by somebody else since it was read."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A value, and the revision to give to `update`."""

    value: T
    revision: int


@dataclass(frozen=True, slots=True)
class Mark(Generic[T]):
    """What was done last to a key.

    Attributes:
        revision: Of it; 0 if nothing was. `update` from here fails once anything else is done.
        at: When, by the server's clock.
        value: None if the key was removed, or never written.
    """

    revision: int = 0
    at: datetime | None = None
    value: T | None = None


class Bucket(Generic[T]):
    """One KV bucket whose values are all of one type.

    Every call raises TransientError when the server or the bucket cannot be reached.
    """

    def __init__(self, bus: Bus, name: str, decode: Callable[[bytes], T]) -> None:
        self.name = name
        self.bus = bus
        self._decode = decode

    @property
    def stream(self) -> str:
        """The stream that the bucket is."""
        return f"KV_{self.name}"

    def subject(self, key: str) -> str:
        """The subject of a key, wildcards allowed."""
        return f"$KV.{self.name}.{key}"

    async def store(self) -> KeyValue:
        """The library's handle of the bucket.

        Not as the library makes it, which asks for the stream's state: whoever may do that can
        have all keys listed.
        """
        return KeyValue(
            name=self.name, stream=self.stream, pre=self.subject(""), js=self.bus.js, direct=True
        )

    def decode(self, key: str, data: bytes | None) -> T:
        """Read a value.

        Raises:
            PoisonError: It is not of the bucket's type.
        """
        try:
            return self._decode(data or b"")
        except MalformedMessageError as error:
            raise PoisonError("malformed_value", f"{self.name}/{key}: {error}") from error

    async def get(self, key: str) -> Entry[T] | None:
        """The value of a key, or None."""
        store = await self.store()
        try:
            entry = await store.get(key)
        except nats.js.errors.KeyNotFoundError:
            return None
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("read", key, error) from error
        return Entry(self.decode(key, entry.value), entry.revision or 0)

    async def mark(self, key: str) -> Mark[T]:
        """What was done last to a key, its removal included.

        Raises:
            PoisonError: The value is not of the bucket's type.
        """
        try:
            last = await self.bus.js.get_last_msg(self.stream, self.subject(key))
        except nats.js.errors.NotFoundError as error:
            if error.err_code != _NO_MESSAGE:
                raise self._transient("read", key, error) from error
            return Mark()
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("read", key, error) from error
        removed = (last.headers or {}).get(_OPERATION) in (KV_DEL, KV_PURGE)
        value = None if removed else self.decode(key, last.data)
        return Mark(last.seq or 0, last.time, value)

    async def put(self, key: str, value: T) -> int:
        """Write a value whatever stands there; returns the revision."""
        store = await self.store()
        try:
            return await store.put(key, encode(value))
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("write", key, error) from error

    async def create(self, key: str, value: T) -> int:
        """Write a value where none stands.

        Raises:
            RevisionConflictError: One stands there.
        """
        store = await self.store()
        try:
            return await store.create(key, encode(value))
        except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.KeyDeletedError) as error:
            raise RevisionConflictError(f"{self.name}/{key} exists") from error
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("create", key, error) from error

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write a value if the key still stands at `revision`; 0 is that of one never written.

        Raises:
            RevisionConflictError: It does not.
        """
        store = await self.store()
        try:
            return await store.update(key, encode(value), last=revision)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise RevisionConflictError(f"{self.name}/{key} has changed") from error
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("update", key, error) from error

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove a key; nothing happens if there is none.

        Raises:
            RevisionConflictError: It does not stand at `revision`, if one is given.
        """
        store = await self.store()
        try:
            await store.delete(key, revision)
        except nats.js.errors.APIError as error:
            if error.err_code in _CONFLICTS:
                raise RevisionConflictError(f"{self.name}/{key} has changed") from error
            raise self._transient("delete", key, error) from error
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("delete", key, error) from error

    async def forget(self, key: str) -> None:
        """Remove a key and all that tells of it; for operators."""
        try:
            await self.bus.js.purge_stream(self.stream, subject=self.subject(key))
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise self._transient("forget", key, error) from error

    async def last_revision(self, key: str = ">") -> int:
        """The greatest revision that stands in the bucket, or of one key; 0 if there is none."""
        try:
            last = await self.bus.js.get_last_msg(self.stream, self.subject(key))
        except nats.js.errors.NotFoundError as error:
            if error.err_code == _NO_STREAM:
                raise TransientError(f"no bucket {self.name} (yet): {error}") from error
            return 0
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
            raise TransientError(f"no word about {self.name}: {error}") from error
        return last.seq or 0

    async def all(self) -> dict[str, T]:
        """All values by key, as they stand now. Waits while the server is away.

        Not by the library's `keys()`, which at times finds an empty bucket where there is none
        (nats.py issue 842).
        """
        mirror = Mirror(self)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(mirror.run(), name=f"read-{self.name}")
            await mirror.synced()
            following.cancel()
        return mirror.values

    def _transient(self, verb: str, key: str, error: BaseException) -> TransientError:
        return TransientError(f"cannot {verb} {self.name}/{key}: {str(error) or 'no answer'}")


class Mirror(Generic[T]):
    """A bucket's values in memory, kept up to date by `run`.

    Args:
        bucket: Where they stand.
        on_change: Called with each key that is written or removed.
        on_removed: Called with each key that is removed, or was before, and when that was by the
            server's clock; after a reconnect maybe again. Of some removals nothing is known.

    Attributes:
        values: Key to value. Read only.
        taking: While `on_change` is called: the revision that tells of the change.
    """

    def __init__(
        self,
        bucket: Bucket[T],
        on_change: Callable[[str, T | None], None] | None = None,
        *,
        on_removed: Callable[[str, datetime], None] | None = None,
    ) -> None:
        self.values: dict[str, T] = {}
        self._bucket = bucket
        self._on_change = on_change
        self._on_removed = on_removed
        self._synced = asyncio.Event()
        self.taking = 0
        self._revision = 0
        self._confirmed_s = -math.inf
        self._moved = asyncio.Event()

    async def synced(self) -> None:
        """Return once all values that stood at the start are there."""
        await self._synced.wait()

    @property
    def revision(self) -> int:
        """Everything up to here is there."""
        return self._revision

    @property
    def confirmed_s(self) -> float:
        """When (`time.monotonic`) the bucket was last heard of; minus infinity before that.

        Some 10 s ago at most while the server answers.
        """
        return self._confirmed_s

    def forget(self, key: str) -> None:
        """Drop a value that has expired: the server tells of no such end."""
        self._drop(key)

    async def reached(self, revision: int) -> None:
        """Return once everything up to this revision is there."""
        while self._revision < revision:
            await self._moved.wait()

    async def run(self) -> None:
        """Follow the bucket until cancelled; starts over after each reconnect."""
        bus = self._bucket.bus
        while True:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    group.create_task(self._follow_or_log(), name=f"mirror-{self._bucket.name}"),
                    group.create_task(bus.reconnected_after(bus.epoch), name="mirror-reconnect"),
                }
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()

    async def _follow_or_log(self) -> None:
        try:
            await self._follow()
        except TransientError as error:
            _log.warning("mirror.interrupted", bucket=self._bucket.name, error=str(error))
            await asyncio.sleep(0.25)

    async def _follow(self) -> None:
        store = await self._bucket.store()
        asked_s = time.monotonic()
        wanted = await self._bucket.last_revision()
        watcher = await watching.begin(store, self._bucket.name)
        try:
            await self._read(watcher, wanted)
            self._confirmed_s = asked_s
            self._synced.set()
            while True:
                entry = await watching.next_entry(watcher, _RESYNC_S)
                if entry is not None:
                    self._take(entry)
                    self._confirmed_s = time.monotonic()
                    continue
                asked_s = time.monotonic()
                if await self._bucket.last_revision() > self._revision:
                    return
                self._confirmed_s = asked_s
        finally:
            await watching.end(watcher)

    async def _read(self, watcher: KeyValue.KeyWatcher, wanted: int) -> None:
        """Take all that stood in the bucket when `wanted` was its last revision.

        Entries come in the order of their revisions, so that is a sign which cannot fail. The
        watcher's own ones do: it may say that this is all before the first entry has come, and
        what a message says of those behind it may be wrong while others write.
        """
        seen: set[str] = set()
        reached = 0
        while reached < wanted:
            entry = await watching.next_entry(watcher, _QUIET_S)
            if entry is None:
                # What was wanted may have expired meanwhile.
                wanted = min(wanted, await self._bucket.last_revision())
                continue
            seen.add(entry.key)
            reached = entry.revision or 0
            self._take(entry)
        self.taking = max(reached, wanted)
        for key in self.values.keys() - seen:
            self._drop(key)

    def _take(self, entry: KeyValue.Entry) -> None:
        self.taking = entry.revision or 0
        self._note(entry)
        self._revision = max(self._revision, entry.revision or 0)
        self._moved.set()
        self._moved = asyncio.Event()

    def _note(self, entry: KeyValue.Entry) -> None:
        if entry.operation in (KV_DEL, KV_PURGE):
            self._drop(entry.key)
            at: object = entry.created  # typed as a number, which it never is
            if self._on_removed and isinstance(at, datetime):
                self._on_removed(entry.key, at.astimezone(UTC))
            return
        try:
            value = self._bucket.decode(entry.key, entry.value)
        except PoisonError as error:
            _log.error("value.refused", bucket=self._bucket.name, key=entry.key, error=str(error))
            return
        self.values[entry.key] = value
        if self._on_change:
            self._on_change(entry.key, value)

    def _drop(self, key: str) -> None:
        if self.values.pop(key, None) is not None and self._on_change:
            self._on_change(key, None)
