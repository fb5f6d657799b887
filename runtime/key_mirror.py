"""One key of a bucket in memory, followed by one who may read nothing else of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
import structlog

from runtime.buckets import Bucket
from runtime.bus import Message
from runtime.errors import PoisonError, TransientError

_log = structlog.get_logger("decisec.buckets")

T = TypeVar("T", bound=msgspec.Struct)

_LOOK_S = 10.0
_LOOK_AGAIN_S = 0.25


class KeyMirror(Generic[T]):
    """A key's value in memory, kept up to date by `run`.

    A `Mirror` takes a consumer, and who may make one may have any key sent anywhere. This one
    hears what is written as core messages, and looks now and then, so that a lost one costs some
    seconds.

    Args:
        bucket: Where it stands.
        key: Which.
        on_change: Called when it is written or removed.

    Attributes:
        values: The key and its value, or nothing. Read only.
    """

    def __init__(
        self,
        bucket: Bucket[T],
        key: str,
        on_change: Callable[[str, T | None], None] | None = None,
    ) -> None:
        self.values: dict[str, T] = {}
        self._bucket = bucket
        self._key = key
        self._on_change = on_change
        self._synced = asyncio.Event()
        self._revision = 0
        self._heard = 0

    @property
    def is_synced(self) -> bool:
        """Whether all keys that stood at the start are there."""
        return self._synced.is_set()

    async def synced(self) -> None:
        """Return once it is known what stood at the start."""
        await self._synced.wait()

    async def run(self) -> None:
        """Follow the key until cancelled."""
        bus = self._bucket.bus
        subscription = await bus.subscribe(self._bucket.subject(self._key), self._hear)
        try:
            while True:
                epoch = bus.epoch
                pause_s = _LOOK_S if await self._look() else _LOOK_AGAIN_S
                try:
                    async with asyncio.timeout(pause_s):
                        await bus.reconnected_after(epoch)
                except TimeoutError:
                    continue
        finally:
            if bus.connected:
                await subscription.unsubscribe()

    async def _look(self) -> bool:
        heard = self._heard
        try:
            entry = await self._bucket.get(self._key)
        except TransientError as error:
            _log.warning("mirror.interrupted", bucket=self._bucket.name, error=str(error))
            return False
        except PoisonError as error:
            _log.error("value.refused", bucket=self._bucket.name, key=self._key, error=str(error))
            entry = None
        else:
            # What was written meanwhile, or a copy of the stream that lags behind, is no news.
            if heard == self._heard and entry is not None and entry.revision > self._revision:
                self._revision = entry.revision
                self._set(entry.value)
            elif heard == self._heard and entry is None and self._revision:
                self._revision = 0
                self._set(None)
        self._synced.set()
        return True

    async def _hear(self, message: Message) -> None:
        self._heard += 1
        if message.headers.get("KV-Operation"):
            self._set(None)
            return
        try:
            self._set(self._bucket.decode(self._key, message.data))
        except PoisonError as error:
            _log.error("value.refused", bucket=self._bucket.name, key=self._key, error=str(error))

    def _set(self, value: T | None) -> None:
        if value == self.values.get(self._key):
            return
        if value is None:
            self.values.pop(self._key, None)
        else:
            self.values[self._key] = value
        if self._on_change:
            self._on_change(self._key, value)
