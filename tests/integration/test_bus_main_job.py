"""The main job on a bus as in production: each part with the credentials of its own role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from decisec.dev.child import ChildSpec
from decisec.dev.programs import HOST_ID
from decisec.sdk import AsyncClient
from decisec.streams import replay
from runtime.bus import Bus
from schemas.api import CreateVmRequest
from schemas.requests import decode_reply
from schemas.subjects import VM_EVENTS, vm_events_of, vm_request
from schemas.usage import UsageReport
from schemas.vms import METERS, VmState
from tests.support.nats_tool import do, examples
from tests.support.secured_bus import SecuredBus, all_sent
from tests.support.stack import START_ORDER, KillableStack, running

pytestmark = pytest.mark.timeout(150)

PAGE = Path(__file__).parents[2] / "docs/bus.md"
_ROLES = {
    "agent": ("agent", HOST_ID),
    **{n: (n, "one") for n in ("gateway", "collector", "batcher")},
}


class SecuredStack(KillableStack):
    """A stack on a secured bus."""

    def __init__(self, root: Path, guest: Path) -> None:
        super().__init__(root, driver="simulator", guest=guest)
        self.secured = SecuredBus(root / "bus", self.ports.nats)
        for role, name in (*_ROLES.values(), ("operator", "ops"), ("customer", "acme")):
            self.secured.issue(role, name)

    def _spec(self, name: str) -> ChildSpec:
        spec = super()._spec(name)
        if name == "nats-server":
            return replace(spec, argv=self.secured.command)
        return replace(spec, env={**spec.env, **self.secured.env(*_ROLES[name])})

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """A connection of the operator's."""
        async with self.secured.bus("operator", "ops") as bus:
            yield bus


async def do_examples(bus: Bus, vm_id: UUID, section: str) -> None:
    """Type what docs/bus.md says, about a VM that is there."""
    found = [example for example in examples(PAGE) if example.section == section]
    assert found
    for example in found:
        # Mutations have their own places in this test.
        if example.arguments[:1] in (("vm.req.acme.create",), ("vm.req.acme.shutdown",)):
            continue
        answer = await do(bus, example.about(vm=str(vm_id), host=HOST_ID))
        if example.words == "request":
            assert b'"error":{' not in answer, answer


async def settled(client: AsyncClient, since: datetime, vms: int) -> UsageReport:
    """Usage once every VM's last sample is in the store."""
    async with asyncio.timeout(60):
        while True:
            until = datetime.now(UTC) + timedelta(seconds=1)
            report = await client.usage(start=since, end=until)
            if len(report.vms) == vms and all(row.settled for row in report.vms):
                return report
            await asyncio.sleep(0.2)


async def test_the_main_job_needs_no_more_than_the_roles_permit(tmp_path: Path) -> None:
    """Created, booted, metered, billed, deleted, over both doors; the server refused nothing."""
    guest = tmp_path / "vmlinux"
    guest.write_bytes(b"\x7fELF: the simulator boots anything")
    root = tmp_path / "stack"
    root.mkdir()
    since = datetime.now(UTC) - timedelta(seconds=1)
    stack = SecuredStack(root, guest)
    async with (
        running(stack, START_ORDER, guest),
        stack.client("acme") as client,
        stack.secured.bus("customer", "acme") as service,
    ):
        heard: list[str] = []

        async def hear(message: object) -> None:
            heard.append(str(getattr(message, "subject", "")).rpartition(".")[2])

        await service.subscribe(vm_events_of("acme"), hear)
        await all_sent(service.client)
        request = CreateVmRequest(image="tiny", memory_mib=64, boot=True)
        over_http = (await client.create_vm(request, wait_s=30)).vm
        answer = await service.request(
            vm_request("acme", "create"),
            msgspec.json.encode({"vm": request, "wait_s": 20}),
            timeout_s=30,
        )
        result = decode_reply(answer.data).result
        assert result is not None
        over_bus = result.vm
        assert {over_http.state, over_bus.state} == {VmState.RUNNING}
        await client.vm_console(over_http.vm_id)
        await asyncio.sleep(1)  # metered for a while
        await do_examples(service, over_http.vm_id, "As a customer's service")
        async with stack.bus() as operator:
            await do_examples(operator, over_http.vm_id, "As an operator")
            await replay(operator, "raw", "collector", begin=1, reason="to see", actor="test")
        ended = [await client.shutdown_vm(vm.vm_id, wait_s=30) for vm in (over_http, over_bus)]
        report = await settled(client, since, 2)
        for one in ended:
            row = next(row for row in report.vms if row.vm_id == one.vm.vm_id)
            billed = {meter: getattr(row, meter) for meter in METERS}
            assert billed == {meter: getattr(one.vm.final_counters, meter) for meter in METERS}
        for vm in (over_http, over_bus):
            await client.delete_vm(vm.vm_id, wait_s=30)
        async with stack.bus() as operator:
            info = await operator.js.stream_info(VM_EVENTS)
            assert info.state.messages >= 8
        async with asyncio.timeout(20):
            while not {"vm_created", "vm_started", "vm_stopped", "vm_deleted"} <= set(heard):
                await asyncio.sleep(0.05)
        server = stack.log("nats-server")
        logs = {name: stack.log(name) for name in _ROLES}
    assert "Violation" not in server, [line for line in server.splitlines() if "Viol" in line]
    assert not [name for name, log in logs.items() if "bus.not_permitted" in log]
