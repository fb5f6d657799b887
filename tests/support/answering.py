"""A gateway behind which everything answers: a host with much room, consoles, the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from runtime.buckets import Bucket
from runtime.bus import Bus, Message
from runtime.clock import utc_now
from schemas.audit_log import AuditPage, AuditReply, decode_audit_query
from schemas.codec import encode
from schemas.consoles import ConsoleChunk, ConsoleReply
from schemas.event_lists import EventsFound, EventsReply, decode_events_query
from schemas.hosts import Customer, Resources, decode_customer
from schemas.subjects import CUSTOMERS, customer_of, vm_asks_of
from schemas.usage import UsageReply, UsageReport, decode_usage_query
from tests.support.gateway import ScriptedAgent, Stack, running_gateway
from tests.support.nats import bus_with_streams

MUCH = Resources(vcpus=2**40, memory_mib=2**40, disk_mib=2**40, slots=2**40)
OUTPUT = b"hello\n"


async def console(message: Message) -> bytes:
    """What a VM has printed."""
    chunk = ConsoleChunk(data=OUTPUT, offset=0, next_offset=len(OUTPUT), end=True)
    return encode(ConsoleReply(chunk=chunk))


async def usage(message: Message) -> bytes:
    """A report without VMs, for the subject's customer."""
    query = decode_usage_query(message.data)
    report = UsageReport(
        customer_id=customer_of(message.subject),
        start=query.start,
        end=query.end,
        vms=(),
        totals={},
    )
    return encode(UsageReply(report=report))


async def audit_log(message: Message) -> bytes:
    """An empty page."""
    decode_audit_query(message.data)
    return encode(AuditReply(page=AuditPage(entries=())))


async def events(message: Message) -> bytes:
    """None."""
    decode_events_query(message.data)
    return encode(EventsReply(found=EventsFound(events=())))


@asynccontextmanager
async def answering_stack(folder: Path, *customers: str, **options: Any) -> AsyncIterator[Stack]:
    """The stack; these customers may have as much as they like."""
    async with bus_with_streams(folder) as (server, bus):
        await _no_quota(bus, customers)
        for subject, handler in (
            (vm_asks_of("h1"), console),
            ("usage.query.*", usage),
            ("auditlog.query.*", audit_log),
            ("events.query.*", events),
        ):
            await bus.subscribe(subject, handler)
        agent = ScriptedAgent(bus, "h1")
        await agent.beat(capacity=MUCH, free=MUCH)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(agent.run(capacity=MUCH, free=MUCH), name="agent")
            try:
                async with running_gateway(server, **options) as (settings, health, url):
                    yield Stack(server, bus, agent, health, settings, url)
            finally:
                task.cancel()


async def _no_quota(bus: Bus, customers: tuple[str, ...]) -> None:
    bucket = Bucket(bus, CUSTOMERS, decode_customer)
    for name in customers:
        await bucket.put(name, Customer(customer_id=name, quota=MUCH, created_at=utc_now()))
