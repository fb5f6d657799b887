"""What the operator has ordered for this host: whether it takes new VMs, and word once it is empty.

An order stands on the bus, so it is obeyed from the first command of an agent that was down when
it was given. While NATS is away the last order that was heard stands. A host without orders goes
by its settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from runtime.clock import Clock, utc_now
from runtime.retry import forever
from schemas.codec import decoder, encode
from schemas.errors import MalformedMessageError
from schemas.events import HostDrained
from schemas.hosts import HostOrders
from schemas.ids import new_id
from schemas.units import NS_PER_S
from vm_agent.fleet import Fleet
from vm_agent.ports import Host
from vm_agent.settings import AgentSettings
from vm_agent.store import write_durably

_log = structlog.get_logger("decisec.orders")

_PERIOD_NS = NS_PER_S // 2
"""How often the host looks whether it has become empty."""

BY_SETTINGS = "the agent's setting `draining`"
"""The reason of a host that drains without an order."""

Announce = Callable[[HostDrained], Awaitable[object]]
"""Returns once the event is stored; TransientError while NATS is away."""


class OrderBook(Protocol):
    """Orders by host; `runtime.key_mirror.KeyMirror` is one."""

    @property
    def values(self) -> Mapping[str, HostOrders]:
        """What stands now, or stood when NATS was last heard."""

    @property
    def is_synced(self) -> bool:
        """Whether all orders that stood at the start are there."""

    async def synced(self) -> None:
        """Return once all orders that stood at the start are there."""

    async def run(self) -> None:
        """Follow the orders until cancelled."""


class _Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Word that the host is empty, kept so that each order is answered once over all runs.

    Attributes:
        told: The event is stored.
    """

    event: HostDrained
    told: bool = False


_decode_notice: Callable[[bytes], _Notice] = decoder(_Notice)


class Orders:
    """Follows the orders for one host.

    Args:
        settings: Whether a host without orders drains.
        host: Its name, and where its notices are kept.
        fleet: Its VMs.
        book: The orders.
        announce: Tells that the host is empty.
        clock: Monotonic time.
    """

    def __init__(
        self,
        settings: AgentSettings,
        host: Host,
        fleet: Fleet,
        book: OrderBook,
        announce: Announce,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._host_id = host.host_id
        self._fleet = fleet
        self._book = book
        self._announce = announce
        self._clock = clock
        self._path = host.data_dir / "drained.json"

    def draining(self) -> bool:
        """Whether new VMs are refused."""
        order = self._order
        return self._settings.draining if order is None else order.draining

    @property
    def drain_reason(self) -> str:
        """Why new VMs are refused, for people; empty where they are not."""
        if not self.draining():
            return ""
        return BY_SETTINGS if self._order is None else self._order.reason

    def quarantined(self) -> frozenset[UUID] | None:
        """VMs that are to be cut off from the network; None before it is known."""
        if not self._book.is_synced:
            return None
        return frozenset(self._order.quarantined) if self._order is not None else frozenset()

    async def known(self, stop: asyncio.Event) -> bool:
        """Wait until it is known what is ordered, as long as NATS is away; False once `stop` is."""
        async with asyncio.TaskGroup() as group:
            synced: asyncio.Task[Any] = group.create_task(self._book.synced(), name="orders-known")
            stopped: asyncio.Task[Any] = group.create_task(stop.wait(), name="orders-unwanted")
            await asyncio.wait({synced, stopped}, return_when=asyncio.FIRST_COMPLETED)
            synced.cancel()
            stopped.cancel()
        return not stop.is_set()

    async def run(self) -> None:
        """Follow the orders and answer them, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._book.run(), name="order-book")
            group.create_task(self._answer(), name="order-answers")

    @property
    def _order(self) -> HostOrders | None:
        return self._book.values.get(self._host_id)

    async def _answer(self) -> None:
        """Say once per order that the host is empty.

        The word is on disk before it is sent: a run that ends in between leaves it to the next.
        """
        await self._book.synced()
        notice = await asyncio.to_thread(_read, self._path)
        seen: HostOrders | None = None
        while True:
            if notice is not None and not notice.told:
                notice = await self._tell(notice)
            order = self._order
            if order != seen:
                _log.info("order.taken", draining=self.draining(), reason=self.drain_reason)
                seen = order
            if not self.draining():
                if notice is not None:
                    notice = await self._keep(None)
            elif not self._fleet.present and not _answers(notice, order):
                notice = await self._keep(self._drained(order))
                continue
            await self._clock.sleep_until(self._clock.monotonic_ns() + _PERIOD_NS)

    def _drained(self, order: HostOrders | None) -> _Notice:
        event = HostDrained(
            event_id=new_id(),
            at=utc_now(),
            host_id=self._host_id,
            reason=self.drain_reason,
            ordered_at=order.ordered_at if order else None,
        )
        return _Notice(event=event)

    async def _tell(self, notice: _Notice) -> _Notice | None:
        async for attempt in forever("announcement"):
            with attempt:
                await self._announce(notice.event)
        _log.info("host.drained", reason=notice.event.reason)
        return await self._keep(msgspec.structs.replace(notice, told=True))

    async def _keep(self, notice: _Notice | None) -> _Notice | None:
        try:
            if notice is None:
                await asyncio.to_thread(self._path.unlink, missing_ok=True)
            else:
                await asyncio.to_thread(write_durably, self._path, encode(notice))
        except OSError as error:
            # A full disk must not end the agent; at worst the next run says it again.
            _log.error("notice.not_kept", path=str(self._path), error=str(error))
        return notice


def _answers(notice: _Notice | None, order: HostOrders | None) -> bool:
    ordered_at: datetime | None = order.ordered_at if order else None
    return notice is not None and notice.event.ordered_at == ordered_at


def _read(path: Path) -> _Notice | None:
    try:
        return _decode_notice(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, MalformedMessageError) as error:
        # At worst an empty host says so again.
        _log.error("notice.not_read", path=str(path), error=str(error))
        return None
