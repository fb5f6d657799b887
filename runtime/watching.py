"""Watches of a KV bucket as nats-py has them, begun and ended so that nothing of them is left."""

from __future__ import annotations

import asyncio

import nats.errors
import nats.js.errors
import structlog
from nats.js.kv import KeyValue

from runtime.errors import TransientError

_log = structlog.get_logger("decisec.watching")


async def begin(store: KeyValue, name: str) -> KeyValue.KeyWatcher:
    """Watch all keys of a bucket.

    Raises:
        TransientError: It cannot be done at the moment.
    """
    begun = asyncio.ensure_future(store.watch(">"))
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        # Cut off in the middle, the library would leave a subscription and two tasks behind.
        await asyncio.wait({begun})
        if begun.exception() is None:
            await end(begun.result())
        raise
    except (
        nats.errors.Error,
        nats.js.errors.Error,
        asyncio.InvalidStateError,  # nats-py: the answer came after its own time limit
        OSError,
        TimeoutError,
    ) as error:
        raise TransientError(f"cannot watch {name}: {error}") from error


async def next_entry(watcher: KeyValue.KeyWatcher, within_s: float) -> KeyValue.Entry | None:
    """The next entry, or None if none has come in time."""
    try:
        # Not `watcher.updates`: its wait_for can swallow a cancellation (Python 3.11).
        async with asyncio.timeout(within_s):
            while True:
                entry: KeyValue.Entry | None = await anext(watcher)
                if entry is not None:
                    return entry
    except TimeoutError:
        return None


async def end(watcher: KeyValue.KeyWatcher) -> None:
    """Watch no more."""
    try:
        await watcher.stop()  # type: ignore[no-untyped-call]
    except nats.errors.Error as error:
        # The connection is gone, and the watch with it.
        _log.debug("watch.already_gone", error=str(error))
