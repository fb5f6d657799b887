"""Rates and their exchange over NATS: what a request may spend, told to the other gateways.

Over core NATS, because what was spent a second ago is of no use to anybody; a request is judged
from memory and waits for no message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from gateway.rates import Buckets, Verdict
from gateway.rounds import MAX_TOLD, TICK_S, Rounds
from runtime.bus import Bus, Message
from runtime.errors import TransientError
from schemas.codec import encode
from schemas.errors import MalformedMessageError
from schemas.ids import new_id
from schemas.limits import Rate, SpendReport, decode_levels, decode_spend_report
from schemas.subjects import LIMITS_LEVELS, LIMITS_SPENT

_log = structlog.get_logger("decisec.limits")

_QUEUE = "gateway"
_LEVELS_WITHIN_S = 0.5


class Sharing:
    """Token buckets that all gateways on a bus spend from together.

    Args:
        bus: The connection.
        rate_of: The rate of a bucket by its name; None for a name that means nothing here.
        now_s: A monotonic clock.
    """

    def __init__(
        self,
        bus: Bus,
        rate_of: Callable[[str], Rate | None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._now_s = now_s
        self._buckets = Buckets(rate_of)
        self._rounds = Rounds(str(new_id()), self._buckets, now_s())
        self._joined = asyncio.Event()

    @property
    def members(self) -> int:
        """How many gateways there are, this one included."""
        return self._rounds.members

    @property
    def buckets(self) -> int:
        """How many buckets are held."""
        return len(self._buckets)

    def take(self, key: str, rate: Rate) -> Verdict:
        """Spend a token; `rate.per_s` is not 0."""
        return self._buckets.take(key, rate, self._now_s(), self._rounds.members)

    async def joined(self) -> None:
        """Return once `run` knows how the buckets stand."""
        await self._joined.wait()

    async def run(self) -> None:
        """Exchange until cancelled."""
        spent = await self._bus.subscribe(LIMITS_SPENT, self._hear)
        await self._join()
        levels = await self._bus.subscribe(LIMITS_LEVELS, self._tell_levels, queue=_QUEUE)
        self._joined.set()
        try:
            while True:
                await asyncio.sleep(TICK_S)
                if self._bus.connected:
                    await self._tell(self._rounds.tick(self._now_s()))
                else:
                    self._rounds.alone(self._now_s())
        finally:
            if self._bus.connected:
                await levels.unsubscribe()
                await spent.unsubscribe()
                await self._tell(self._rounds.leave())

    async def _join(self) -> None:
        try:
            answer = await self._bus.request(LIMITS_LEVELS, b"", timeout_s=_LEVELS_WITHIN_S)
            stand = decode_levels(answer.data)
        except (TransientError, MalformedMessageError) as error:
            _log.info("limits.begun", reason=str(error))
            return
        await self._tell(self._rounds.join(stand, self._now_s()))
        _log.info("limits.joined", members=self.members)

    async def _hear(self, message: Message) -> None:
        try:
            report = decode_spend_report(message.data)
        except MalformedMessageError as error:
            _log.warning("limits.report_refused", error=str(error))
            return
        if len(report.spent) <= MAX_TOLD:
            await self._tell(self._rounds.hear(report, self._now_s()))

    async def _tell_levels(self, _: Message) -> bytes:
        return encode(self._rounds.levels(self._now_s()))

    async def _tell(self, report: SpendReport | None) -> None:
        if report is None:
            return
        try:
            await self._bus.publish(LIMITS_SPENT, encode(report))
        except TransientError as error:
            # No word of it comes back, so it is settled as when NATS is away.
            _log.warning("limits.not_told", error=str(error))
