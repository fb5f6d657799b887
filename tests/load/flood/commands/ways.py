"""The deployment that a storm goes to: a stack of its own, or one that runs already."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from decisec.cli import connection
from decisec.cli.exits import CommandError, Exit
from decisec.dev.tokens import development_token
from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.errors import InvalidIdError
from schemas.hosts import Customer, HostInfo, Resources, decode_customer, decode_host_info
from schemas.ids import token
from schemas.limits import ApiRates, Rate
from schemas.subjects import CUSTOMERS, HOSTS
from tests.load.flood.commands.doors import BusDoor, Door, HttpDoor
from tests.load.flood.commands.endings import AskedOfTheApi, listening
from tests.load.flood.commands.plan import BUS, HTTP, StormPlan
from tests.load.flood.commands.storm import Ways
from tests.load.flood.commands.verdict import ListedByTheApi, RecordedOnTheBus
from tests.support.stack import KillableStack, killable_stack

OWN_CUSTOMERS = ("flood-a", "flood-b", "flood-c")
_EMPTY_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a deployment is, as options say; what is empty is that of a local `decisec dev`.

    Attributes:
        customer: For whom to speak on the bus, if there is no token to tell.
        api_only: Leave the bus alone, even if it is known.
    """

    api_url: str = ""
    token: str = ""
    nats_url: str = ""
    customer: str = ""
    state_dir: Path = connection.DEFAULT_STATE
    api_only: bool = False


@asynccontextmanager
async def own_stack(plan: StormPlan, root: Path, **gateway: str) -> AsyncIterator[KillableStack]:
    """A stack with one host of simulated VMs that has room for the storm.

    Args:
        plan: Of the storm.
        root: Where its state is.
        gateway: Settings of the gateway.
    """
    room = plan.at_once + 50
    roomy = {
        "DECISEC_AGENT_SLOTS": str(room),
        "DECISEC_AGENT_VCPUS": str(room),
        "DECISEC_AGENT_MEMORY_MIB": str(room * plan.memory_mib),
    }
    kernel = root / "kernel"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    async with killable_stack(
        root / "state",
        driver="simulator",
        guest=kernel,
        settings={
            "agent": roomy,
            "gateway": {f"DECISEC_GATEWAY_{k.upper()}": v for k, v in gateway.items()},
        },
    ) as stack:
        async with stack.bus() as bus:
            await _admit(bus, room, plan)
        yield stack


_UNLIMITED = ApiRates(reads=Rate(per_s=0), mutations=Rate(per_s=0), expensive=Rate(per_s=0))


async def _admit(bus: Bus, room: int, plan: StormPlan) -> None:
    bucket = Bucket(bus, CUSTOMERS, decode_customer)
    quota = Resources(
        vcpus=room, memory_mib=room * plan.memory_mib, disk_mib=room * 1024, slots=room
    )
    for customer in OWN_CUSTOMERS:
        entry = Customer(
            customer_id=customer, quota=quota, rates=_UNLIMITED, created_at=datetime.now(UTC)
        )
        await bucket.put(customer, entry)


@asynccontextmanager
async def ways_of(stack: KillableStack, plan: StormPlan) -> AsyncIterator[Ways]:
    """The ways into a stack of our own, as several customers; its host must be empty at the end."""
    async with AsyncExitStack() as exits:
        bus = await exits.enter_async_context(stack.bus())
        doors: list[Door] = []
        for customer in OWN_CUSTOMERS:
            key = development_token(stack.key, customer)
            if plan.through != BUS:
                http = HttpDoor(stack.ports.api_url, key, plan.at_once)
                doors.append(await exits.enter_async_context(http))
            if plan.through != HTTP:
                doors.append(BusDoor(bus, customer))
        endings = await exits.enter_async_context(listening(bus, frozenset(OWN_CUSTOMERS)))
        leftovers = RecordedOnTheBus(bus, doors)
        yield Ways(doors=doors, endings=endings, leftovers=leftovers, bus=bus)


async def left_on_hosts(bus: Bus) -> dict[str, int]:
    """Hosts that say that they hold VMs, with how many; empty once none does, waits a while."""
    bucket: Bucket[HostInfo] = Bucket(bus, HOSTS, decode_host_info)
    held: dict[str, int] = {}
    try:
        async with asyncio.timeout(_EMPTY_WITHIN_S):
            while True:
                held = {host: info.vms for host, info in (await bucket.all()).items() if info.vms}
                if not held:
                    return held
                await asyncio.sleep(0.2)
    except TimeoutError:
        return held


@asynccontextmanager
async def own_ways(plan: StormPlan) -> AsyncIterator[Ways]:
    """Those of a stack that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="decisec-flood-") as folder:
        async with own_stack(plan, Path(folder)) as stack, ways_of(stack, plan) as ways:
            yield ways


@asynccontextmanager
async def given_ways(plan: StormPlan, address: Address) -> AsyncIterator[Ways]:
    """Those of a deployment that runs.

    Raises:
        CommandError: It is not known where it is, or as whom to ask.
        ApiError: It refuses the token.
        TransportError: It is not there.
    """
    if address.api_only and plan.through != HTTP:
        raise CommandError("--api-only: goes with --through http only", Exit.USAGE, "usage")
    async with AsyncExitStack() as exits:
        http: HttpDoor | None = None
        bus: Bus | None = None
        if plan.through != BUS or address.token:
            url, bearer = connection.api_address(address.api_url, address.token, address.state_dir)
            http = await exits.enter_async_context(HttpDoor(url, bearer, plan.at_once))
        if not address.api_only and _knows_bus(address, plan):
            opened = connection.bus(address.nats_url, address.state_dir)
            bus = await exits.enter_async_context(opened)
        customer = http.customer if http else _customer(address)
        doors: list[Door] = [http] if http and plan.through != BUS else []
        if bus is None:
            if http is None:
                raise AssertionError  # without the bus there is the API
            yield Ways(doors=doors, endings=AskedOfTheApi(), leftovers=ListedByTheApi([http]))
            return
        if plan.through != HTTP:
            doors.append(BusDoor(bus, customer))
        endings = await exits.enter_async_context(listening(bus, frozenset({customer})))
        leftovers = ListedByTheApi([http]) if http else RecordedOnTheBus(bus, doors)
        yield Ways(doors=doors, endings=endings, leftovers=leftovers, bus=bus)


def _knows_bus(address: Address, plan: StormPlan) -> bool:
    """Whether a bus is named, or needed; that of a local stack only if its API is meant as well."""
    if plan.through != HTTP or address.nats_url:
        return True
    local = connection.endpoint(address.state_dir)
    return local is not None and address.api_url.rstrip("/") in ("", local.api_url)


def _customer(address: Address) -> str:
    local = connection.endpoint(address.state_dir) if not address.customer else None
    named = address.customer or (local.customer if local else "")
    try:
        return token(named)
    except InvalidIdError as error:
        raise CommandError(
            "--customer: say for which customer to ask on the bus, or give DECISEC_TOKEN",
            Exit.USAGE,
            "usage",
        ) from error


def words(doors: Sequence[Door]) -> str:
    """For people."""
    customers = sorted({door.customer for door in doors})
    return f"{', '.join(sorted({door.name for door in doors}))} as {', '.join(customers)}"
