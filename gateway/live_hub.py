"""Frames of hosts, for as long as somebody watches VMs there.

One core subscription per host, however many watch; it takes nothing from the services that share
the stream. Each frame is decoded once, and only rows of customers who watch are read.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from uuid import UUID

import msgspec
import nats.errors
import structlog
from nats.aio.subscription import Subscription

from gateway.live_rows import rows_of, sample_of
from runtime.bus import Bus, Message
from runtime.errors import TransientError
from schemas.errors import MalformedMessageError
from schemas.frames import EnrichedFrame, decode_enriched_frame, replay_of
from schemas.live import LiveSample
from schemas.subjects import metrics_enriched

_log = structlog.get_logger("decisec.live")

_FLUSH_S = 2


class Watcher:
    """What one stream has yet to send: the newest sample of each VM.

    Args:
        customer_id: Whose VMs.
        vm_ids: Only these; None for all.

    Attributes:
        hosts: Where it looks.
    """

    def __init__(self, customer_id: str, vm_ids: frozenset[UUID] | None) -> None:
        self.customer_id = customer_id
        self.hosts: frozenset[str] = frozenset()
        self._wanted = None if vm_ids is None else {vm_id.bytes for vm_id in vm_ids}
        self._waiting: dict[bytes, LiveSample] = {}
        self._last: dict[bytes, tuple[int, int]] = {}
        self._news = asyncio.Event()

    def wants(self, vm: bytes) -> bool:
        """Whether samples of a VM are to be put here."""
        return self._wanted is None or vm in self._wanted

    def put(self, vm: bytes, tick_ms: int, sample: LiveSample) -> None:
        """Take over a sample; one that still waits gives way to it, and is counted."""
        place = sample.incarnation, tick_ms
        if place <= self._last.get(vm, (-1, -1)):
            return  # it comes late: what is newer has been shown
        self._last[vm] = place
        before = self._waiting.get(vm)
        if before is not None:
            sample = msgspec.structs.replace(sample, skipped=before.skipped + 1)
        self._waiting[vm] = sample
        self._news.set()

    async def take(self, within_s: float) -> list[LiveSample]:
        """What waits; empty if nothing came in time."""
        if not self._waiting:
            self._news.clear()
            try:
                async with asyncio.timeout(within_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        taken = list(self._waiting.values())
        self._waiting.clear()
        return taken

    def keep_to(self, vms: set[bytes]) -> None:
        """Forget VMs that are no longer there."""
        for vm in self._last.keys() - vms:
            del self._last[vm]
            self._waiting.pop(vm, None)


class LiveHub:
    """Subscribes to hosts that somebody watches."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._watchers: dict[str, dict[str, set[Watcher]]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._changing = asyncio.Lock()

    async def look(self, watcher: Watcher, hosts: frozenset[str]) -> None:
        """Let a watcher see these hosts from now on, and no others."""
        if hosts == watcher.hosts:
            return
        async with self._changing:
            for host in watcher.hosts - hosts:
                self._leave(host, watcher)
            for host in hosts - watcher.hosts:
                by_customer = self._watchers.setdefault(host, defaultdict(set))
                by_customer[watcher.customer_id].add(watcher)
            watcher.hosts = hosts
            await self._adjust()

    async def _adjust(self) -> None:
        for host in self._subscriptions.keys() - self._watchers.keys():
            subscription = self._subscriptions.pop(host)
            if self._bus.connected:
                await subscription.unsubscribe()
        added = self._watchers.keys() - self._subscriptions.keys()
        for host in added:
            self._subscriptions[host] = await self._bus.subscribe(
                metrics_enriched(host), self._take
            )
        if added and self._bus.connected:
            # Whoever is told that the stream stands sees what is sent from then on.
            try:
                await self._bus.client.flush(_FLUSH_S)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                raise TransientError(f"the hosts cannot be listened to: {error}") from error

    def _leave(self, host: str, watcher: Watcher) -> None:
        by_customer = self._watchers[host]
        by_customer[watcher.customer_id].discard(watcher)
        if not by_customer[watcher.customer_id]:
            del by_customer[watcher.customer_id]
        if not by_customer:
            del self._watchers[host]

    async def _take(self, message: Message) -> None:
        by_customer = self._watchers.get(message.subject.rpartition(".")[2])
        if not by_customer or replay_of(message.headers):
            return  # nobody looks any more, or it is what was
        try:
            frame = decode_enriched_frame(message.data)
        except MalformedMessageError as error:
            _log.warning("frame.refused", subject=message.subject, error=str(error)[:300])
            return
        self._show(frame, by_customer)

    def _show(self, frame: EnrichedFrame, by_customer: dict[str, set[Watcher]]) -> None:
        for row in rows_of(frame, by_customer):
            sample: LiveSample | None = None
            for watcher in by_customer[row.customer_id]:
                if watcher.wants(row.vm):
                    sample = sample or sample_of(frame, row)
                    watcher.put(row.vm, frame.tick_ms, sample)
