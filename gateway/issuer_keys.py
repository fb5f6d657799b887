"""An issuer's keys, followed as they change: read in the background, kept while it is away.

Promised: one reading at a time; tokens cannot make the gateway ask more often than `ASK_EVERY_S`
after a first few; no token is taken by keys that are older than `max_stale_s`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from gateway.compact import CompactToken
from gateway.jwks import KeySet, MalformedKeysError, parse_keys
from gateway.key_documents import KeyDocument
from gateway.keys import KeySource, PinnedKey, UnknownKeyError
from runtime.errors import TransientError
from runtime.telemetry import meter

_log = structlog.get_logger("decisec.keys")

ASK_BURST = 3
ASK_EVERY_S = 10.0
"""Tokens with an unknown `kid` may have the document read again so often, all together."""

_RETRY_MAX_S = 30.0
_MAX_WAITING = 256
_MAX_TOLD = 20


class IssuerKeys(KeySource):
    """The keys of a document that changes.

    Args:
        document: Where it is read from.
        refresh_s: How often, at least.
        max_stale_s: So long after they were last read, keys are not believed any more.
        wait_s: How long a token with an unknown `kid` waits for a reading.
        tell: Called with what is wrong, or with an empty text once nothing is.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        document: KeyDocument,
        *,
        refresh_s: float,
        max_stale_s: float,
        wait_s: float,
        tell: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._document = document
        self._refresh_s = refresh_s
        self._max_stale_s = max_stale_s
        self._wait_s = wait_s
        self._tell = tell
        self._clock = clock
        self._set = KeySet({})
        self._data: bytes | None = None
        self._generation = 0
        self._read_at_s: float | None = None
        self._failures = 0
        self._wanted = asyncio.Event()
        self._synced = asyncio.Event()
        self._reading = False
        self._round = asyncio.Event()
        self._waiting = 0
        self._asks = float(ASK_BURST)
        self._asks_at_s = clock()
        self._reads = meter().create_counter(
            "decisec_gateway_key_reads", description="Readings of the issuer's keys, by outcome"
        )

    @property
    def generation(self) -> int:
        """Grows whenever the set of keys changes."""
        self._require_fresh()
        return self._generation

    async def synced(self) -> None:
        """Return once the keys have been read."""
        await self._synced.wait()

    async def run(self) -> None:
        """Read again and again until cancelled.

        Raises:
            SettingsError: The certificates to check the issuer's with cannot be read.
        """
        async with self._document.opened():
            while True:
                self._wanted.clear()
                await self._read()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._wanted.wait()

    async def key_for(self, token: CompactToken) -> PinnedKey:
        """The key that the header names; the document is read again for one that is unknown."""
        if token.key_id is None:
            raise UnknownKeyError("no kid")
        self._require_fresh()
        if token.key_id not in self._set.ids:
            await self._ask(token.key_id)
            self._require_fresh()
        found = self._set.keys.get((token.key_id, token.algorithm))
        if found is not None:
            return found
        if self._failures and token.key_id not in self._set.ids:
            # It may be one that is new: nobody can tell.
            raise TransientError("the issuer's keys cannot be read at the moment")
        raise UnknownKeyError("no such kid")

    async def _ask(self, key_id: str) -> None:
        """Have the document read, unless that was done too often; return when it was."""
        if self._reading:
            await self._wait()
            if key_id in self._set.ids:
                return
        if self._may_ask():
            self._wanted.set()
            await self._wait()

    async def _wait(self) -> None:
        if self._waiting >= _MAX_WAITING:
            raise TransientError("too many wait for the issuer's keys")
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    await self._round.wait()
        finally:
            self._waiting -= 1

    def _may_ask(self) -> bool:
        if self._wanted.is_set():
            return True  # that reading will do for this one as well
        now_s = self._clock()
        grown = (now_s - self._asks_at_s) / ASK_EVERY_S
        self._asks = min(float(ASK_BURST), self._asks + grown)
        self._asks_at_s = now_s
        if self._asks < 1:
            return False
        self._asks -= 1
        return True

    async def _read(self) -> None:
        self._reading = True
        began_s = self._clock()
        try:
            data = await self._document.read()
            # Reading a hundred keys takes some ten milliseconds, and they hardly ever change.
            found = self._set if data == self._data else parse_keys(data)
        except TransientError as error:
            self._failed("unreachable", str(error))
        except MalformedKeysError as error:
            self._failed("malformed", str(error))
        else:
            self._data = data
            self._take(found, began_s)
        finally:
            self._reading = False
            done, self._round = self._round, asyncio.Event()
            done.set()

    def _failed(self, outcome: str, why: str) -> None:
        self._failures += 1
        self._reads.add(1, {"outcome": outcome})
        _log.error("keys.not_read", outcome=outcome, error=why, kept=len(self._set.keys))
        try:
            self._require_fresh()
        except TransientError as error:
            self._tell(f"{error}: {why}")

    def _take(self, found: KeySet, began_s: float) -> None:
        self._reads.add(1, {"outcome": "read" if found.keys else "no_keys"})
        self._failures = 0
        self._read_at_s = began_s
        if found.material != self._set.material or found.left_out != self._set.left_out:
            _log.info(
                "keys.changed",
                new=sorted(found.ids - self._set.ids)[:_MAX_TOLD],
                gone=sorted(self._set.ids - found.ids)[:_MAX_TOLD],
                left_out=[f"{kid}: {why}" for kid, why in found.left_out[:_MAX_TOLD]],
            )
        if found.material != self._set.material:
            self._generation += 1
        self._set = found
        if not found.keys:
            # The issuer's word all the same: what it has withdrawn is not used on.
            self._failures = 1
            _log.error("keys.none_usable", left_out=len(found.left_out))
            self._tell("the issuer's document has no key that can be used")
            return
        self._synced.set()
        self._tell("")

    def _require_fresh(self) -> None:
        if self._read_at_s is None:
            raise TransientError("the issuer's keys have not been read yet")
        if self._clock() - self._read_at_s > self._max_stale_s:
            raise TransientError("the issuer's keys are too old to be believed")
        if not self._set.keys:
            raise TransientError("the issuer has no key that can be used")

    def _pause_s(self) -> float:
        if not self._failures:
            # Gateways that were started together need not ask together for ever.
            return self._refresh_s * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
        return min(self._refresh_s, _RETRY_MAX_S, 2.0 ** min(self._failures - 1, 10))
