"""How many requests are worked on at once: a bounded number, a short queue, then a fast refusal.

When something behind the gateway is slow, requests end as slowly; without a bound they would pile
up until nothing is answered any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import suppress
from enum import StrEnum

from gateway.errors import RefusedError
from gateway.settings import GatewaySettings
from runtime.telemetry import meter
from schemas.errors import ErrorCode
from schemas.limits import RouteClass

_QUEUE_SHARE = 1.0
_CUSTOMER_SHARE = 0.5


class Lane(StrEnum):
    """Requests that must not take each other's places."""

    READS = "reads"
    MUTATIONS = "mutations"
    EXPENSIVE = "expensive"
    WAITING = "waiting"


def lane_of(kind: RouteClass, *, waits: bool) -> Lane:
    """The lane of a request; one that waits for an operation costs nothing but its place."""
    return Lane.WAITING if waits and kind is RouteClass.MUTATIONS else Lane(kind.value)


class Place:
    """A request's place; leaving twice does no harm."""

    __slots__ = ("_customer_id", "_gate", "_left")

    def __init__(self, gate: Gate, customer_id: str) -> None:
        self._gate = gate
        self._customer_id = customer_id
        self._left = False

    def leave(self) -> None:
        """Make room for the next."""
        if not self._left:
            self._left = True
            self._gate.leave(self._customer_id)


class Gate:
    """One lane.

    Args:
        places: Requests at once; as many again may queue, and one customer gets half.
        deadline_s: How long one may queue.
    """

    def __init__(self, places: int, deadline_s: float) -> None:
        self._places = places
        self._per_customer = max(1, int(places * _CUSTOMER_SHARE))
        self._queue_limit = max(1, int(places * _QUEUE_SHARE))
        self._deadline_s = deadline_s
        self._held: Counter[str] = Counter()
        self._queue: deque[asyncio.Future[None]] = deque()
        self.taken = 0

    @property
    def queued(self) -> int:
        """How many are waiting for a place."""
        return len(self._queue)

    async def enter(self, customer_id: str) -> Place:
        """Take a place, waiting a little for one.

        Raises:
            RefusedError: RATE_LIMITED, the customer has its share of places already; or
                UNAVAILABLE, there is no place in time.
        """
        if self._held[customer_id] >= self._per_customer:
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                "Too many of your requests are being worked on at once. Try again in 1 s.",
                retry_after_s=1.0,
            )
        # Counted while it queues as well, so that one customer cannot fill the queue.
        self._held[customer_id] += 1
        try:
            await self._take()
        except BaseException:
            self._let_go(customer_id)
            raise
        return Place(self, customer_id)

    def leave(self, customer_id: str) -> None:
        """Give a place back, to whoever has waited longest."""
        self._let_go(customer_id)
        self._pass_on()

    async def _take(self) -> None:
        if self.taken < self._places:
            self.taken += 1
            return
        if len(self._queue) >= self._queue_limit:
            raise _overloaded()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._deadline_s):
                await turn
        except BaseException as error:
            with suppress(ValueError):
                self._queue.remove(turn)
            if turn.done() and not turn.cancelled():
                self._pass_on()  # given a place in the very moment
            if isinstance(error, TimeoutError):
                raise _overloaded() from None
            raise

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.taken -= 1

    def _let_go(self, customer_id: str) -> None:
        self._held[customer_id] -= 1
        if self._held[customer_id] <= 0:
            del self._held[customer_id]


class Admission:
    """The lanes of a gateway, for all its doors."""

    def __init__(self, settings: GatewaySettings) -> None:
        deadline_s = settings.queue_deadline_s
        self.gates = {
            Lane.READS: Gate(settings.max_in_flight, deadline_s),
            Lane.MUTATIONS: Gate(settings.max_in_flight, deadline_s),
            Lane.EXPENSIVE: Gate(settings.max_expensive, deadline_s),
            Lane.WAITING: Gate(settings.max_waiting, deadline_s),
        }
        self._shed = meter().create_counter(
            "decisec_requests_shed", description="Requests refused for want of a place, by lane"
        )

    async def enter(self, customer_id: str, lane: Lane) -> Place:
        """Take a place; see `Gate.enter`."""
        try:
            return await self.gates[lane].enter(customer_id)
        except RefusedError:
            self._shed.add(1, {"lane": lane.value})
            raise


def _overloaded() -> RefusedError:
    return RefusedError(
        ErrorCode.UNAVAILABLE,
        "The service has more to do than it can at the moment. Nothing was changed; try again.",
        retry_after_s=1.0,
    )
