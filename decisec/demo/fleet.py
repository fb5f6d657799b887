"""The VMs of the demo, and the customers that hold them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

from decisec.dev.guest import IMAGE
from decisec.dev.race import together
from decisec.sdk import AsyncClient
from schemas.api import CreateVmRequest, VmAndOperation
from schemas.usage import UsageReport

WAIT_S = 45.0
_GRACE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A VM that the demo asks for. `args` tell the tiny guest what to do."""

    customer: str
    name: str
    args: dict[str, str]
    memory_mib: int = 64
    disk_mib: int = 0

    def request(self) -> CreateVmRequest:
        """The body to send."""
        return CreateVmRequest(
            image=IMAGE,
            name=self.name,
            memory_mib=self.memory_mib,
            disk_mib=self.disk_mib,
            kernel_args=self.args,
            labels={"demo": "yes"},
        )


_FOREVER = "1000000000"

WISHES = (
    Wish(
        customer="acme",
        name="database",
        args={"blkw": "128", "blkr": "64", "hz": "20", "loop": _FOREVER},
        memory_mib=128,
        disk_mib=64,
    ),
    Wish(
        customer="acme",
        name="archive",
        args={"blkr": "256", "hz": "19", "loop": _FOREVER},
        disk_mib=32,
    ),
    Wish(customer="acme", name="idle", args={}),
    Wish(customer="globex", name="sender", args={"tx": "20", "hz": "20", "loop": _FOREVER}),
    Wish(customer="globex", name="spinner", args={"spin": "1"}, memory_mib=32),
)

Tokens = Callable[[str], str]


class Window(NamedTuple):
    """A half-open window of time."""

    start: datetime
    end: datetime


class Fleet:
    """The demo's VMs, through the HTTP API, each customer with its own token.

    Attributes:
        names: Name of each VM that was made.
    """

    def __init__(self, api_url: str, tokens: Tokens, wishes: tuple[Wish, ...] = WISHES) -> None:
        self._wishes = wishes
        self._customers = {
            customer: AsyncClient(base_url=api_url, token=tokens(customer))
            for customer in sorted({wish.customer for wish in wishes})
        }
        self._exits = AsyncExitStack()
        self._vms: dict[UUID, str] = {}
        self.names: dict[UUID, str] = {}

    async def __aenter__(self) -> Self:
        """The fleet, without VMs yet."""
        for client in self._customers.values():
            await self._exits.enter_async_context(client)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections; the VMs stay as they are."""
        await self._exits.aclose()

    @property
    def customers(self) -> tuple[str, ...]:
        """Who holds VMs."""
        return tuple(self._customers)

    @property
    def vms(self) -> tuple[UUID, ...]:
        """All VMs, by age."""
        return tuple(sorted(self._vms))

    async def create(self) -> None:
        """Make all VMs."""

        async def make(wish: Wish) -> None:
            made = await self._customers[wish.customer].create_vm(wish.request(), wait_s=WAIT_S)
            self._vms[made.vm.vm_id] = wish.customer
            self.names[made.vm.vm_id] = wish.name

        await together([make(wish) for wish in self._wishes], name="create-vm")

    async def boot(self) -> None:
        """Boot all VMs."""
        await self._each(lambda client, vm_id: client.boot_vm(vm_id, wait_s=WAIT_S))

    async def shut_down(self) -> None:
        """Shut all VMs down."""
        await self._each(
            lambda client, vm_id: client.shutdown_vm(vm_id, grace_s=_GRACE_S, wait_s=WAIT_S)
        )

    async def usage(self, window: Window) -> list[UsageReport]:
        """The usage report of each customer."""
        return await together(
            [
                client.usage(start=window.start, end=window.end)
                for client in self._customers.values()
            ],
            name="usage",
        )

    async def settled_usage(self, window: Window, within_s: float) -> list[UsageReport]:
        """The same, once every VM's final sample is stored; after `within_s` as it stands."""
        reports: list[UsageReport] = []
        try:
            async with asyncio.timeout(within_s):
                while True:
                    reports = await self.usage(window)
                    rows = [row for report in reports for row in report.vms]
                    if len(rows) == len(self._vms) and all(row.settled for row in rows):
                        return reports
                    await asyncio.sleep(0.2)
        except TimeoutError:
            return reports

    async def _each(self, act: Callable[[AsyncClient, UUID], Awaitable[VmAndOperation]]) -> None:
        async def one(vm_id: UUID, owner: str) -> None:
            await act(self._customers[owner], vm_id)

        await together(
            [one(vm_id, owner) for vm_id, owner in sorted(self._vms.items())], name="vm-verb"
        )
