"""A whole stack at work, overheard: whatever is said on the bus stands in the AsyncAPI document."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from decisec.dev.programs import HOST_ID
from decisec.devkit.bus_contract import FILE
from decisec.devkit.tokens import ADMIN, mint
from decisec.sdk import ApiError, AsyncClient
from decisec.streams import replay
from decisec.tokens import TokenRevocations
from runtime.bus import Bus
from runtime.hosts import Hosts
from runtime.publisher import Publisher
from schemas.api import CreateVmRequest
from schemas.codec import encode
from schemas.commands import BootVm
from schemas.frames import encode_frame
from schemas.ids import new_id
from schemas.places import PlaceQuestion
from schemas.requests import REQUESTS, Reply, decode_reply
from schemas.store import StoreQuestion
from schemas.subjects import PLACE_EXPLAIN, metrics_raw, store_ask, vm_command, vm_request
from schemas.tokens import RevokedBy
from schemas.usage_windows import WindowUnit
from schemas.vms import VmSpec
from tests.support.frames import Row, frame
from tests.support.gateway import running_gateway
from tests.support.overheard import Heard, Judge, Listener, few_of_each, listening
from tests.support.stack import START_ORDER, KillableStack, running

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]
WAIT_S = 30
OTHER_HOST = "h9"


async def by_http(api: AsyncClient) -> None:
    """A VM's life through the API, and everything that can be looked at."""
    request = CreateVmRequest(image="tiny", memory_mib=64, labels={"team": "web"})
    vm_id = (await api.create_vm(request, wait_s=WAIT_S, idempotency_key="order-1")).vm.vm_id
    await api.boot_vm(vm_id, wait_s=WAIT_S)
    await api.patch_vm(vm_id, name="web-1")
    await api.pause_vm(vm_id, wait_s=WAIT_S)
    await api.resume_vm(vm_id, wait_s=WAIT_S)
    await api.reboot_vm(vm_id, grace_s=0, wait_s=WAIT_S)
    await api.vm_console(vm_id)
    with pytest.raises(ApiError, match="cannot take snapshots"):
        await api.snapshot_vm(vm_id, wait_s=WAIT_S)
    await api.shutdown_vm(vm_id, grace_s=0, wait_s=WAIT_S)
    end = datetime.now(UTC) + timedelta(seconds=1)
    start = end - timedelta(minutes=5)
    await api.usage(start=start, end=end)
    await api.usage_page(start=start, end=end, window=WindowUnit.MINUTE)
    await api.metric_series([vm_id], start=start, end=end)
    await api.event_page(start=start, end=end)
    async for _ in api.audit(start=start, end=end):
        break
    with pytest.raises(ApiError):
        await api.get_vm(new_id())
    await api.delete_vm(vm_id, wait_s=WAIT_S)


async def by_bus(bus: Bus) -> None:
    """The same at the door on the bus: every verb, done and refused."""

    async def ask(verb: str, **asked: Any) -> Reply:
        data = msgspec.json.encode(asked)
        answer = await bus.request(vm_request("acme", verb), data, timeout_s=WAIT_S + 10)
        return decode_reply(answer.data)

    vm = {"image": "tiny", "memory_mib": 64, "boot": True}
    first = await ask("create", vm=vm, wait_s=WAIT_S, idempotency_key="order-2")
    again = await ask("create", vm=vm, wait_s=WAIT_S, idempotency_key="order-2")
    assert first == again
    assert first.result is not None
    vm_id = first.result.vm.vm_id
    for verb in ("pause", "resume", "reboot", "shutdown", "boot"):
        await ask(verb, vm_id=vm_id, grace_s=0, wait_s=WAIT_S)
    await ask("get", vm_id=vm_id)
    await ask("console", vm_id=vm_id, tail_bytes=100)
    await ask("patch", vm_id=vm_id, patch={"labels": {"team": "web"}})
    await ask("list", state="running")
    await ask("shutdown", vm_id=vm_id, grace_s=0, wait_s=WAIT_S)
    await ask("operation", operation_id=first.result.operation.operation_id)
    await ask("operations", vm_id=vm_id)
    now = datetime.now(UTC)
    lately = {"start": now - timedelta(minutes=5), "end": now}
    for verb in ("usage", "events", "audit"):
        await ask(verb, **lately)
    await ask("metrics", **lately, vm_ids=[vm_id])
    for verb in ("quotas", "images", "snapshots"):
        await ask(verb)
    await ask("peer-add", peer_id="globex")
    await ask("peers")
    await ask("peer-remove", peer_id="globex")
    await ask("delete", vm_id=vm_id, wait_s=WAIT_S)
    for verb, asked in REQUESTS.items():
        nothing = str(new_id())
        named = dict.fromkeys(("vm_id", "snapshot_id", "operation_id"), nothing)
        named["peer_id"] = "operator"
        made = {"vm": {"image": "missing"}, "patch": {"name": "x"}}
        page = {"cursor": "of no page"} if verb != "audit" else {}
        moment = {"start": now, "end": now, "vm_ids": [nothing]}
        refused = await ask(verb, **named, **made, **moment, **page)
        assert refused.error is not None or not asked.mutates


async def by_admin(api_url: str, token: str) -> None:
    """What operators enter through the API."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"{api_url}/v1/admin", headers=headers) as api:
        plan = {
            "plan_id": "standard",
            "currency": "EUR",
            "valid_from": "2026-01-01T00:00:00Z",
            "prices": {"net_tx_bytes": {"price": "0.09", "per": "gib"}},
        }
        for path, body in (("customers", {"customer_id": "globex"}), ("price-plans", plan)):
            answer = await api.post(path, json=body)
            assert answer.status_code == 201, answer.text


async def by_operator(bus: Bus, listener: Listener) -> None:
    """What operators ask and do, and a host that cannot be believed."""
    for data, subject in (
        (encode(StoreQuestion()), store_ask("status")),
        (encode(PlaceQuestion(spec=VmSpec(image="tiny"))), PLACE_EXPLAIN),
    ):
        await bus.request(subject, data, timeout_s=20)
    publisher = Publisher(bus)
    lying = frame([Row(new_id())], run_id=new_id(), host=OTHER_HOST, tick_ms=4_000_000_000_000)
    await publisher.publish(metrics_raw(OTHER_HOST), encode_frame(lying), msg_id=lying.msg_id)
    forged = BootVm(
        command_id=new_id(), customer_id="acme", vm_id=new_id(), host_id=HOST_ID,
        issued_at=datetime.now(UTC), deadline=datetime.now(UTC) + timedelta(minutes=1),
    )  # fmt: skip
    await publisher.publish(vm_command(forged), encode(forged), msg_id=str(forged.command_id))
    await listener.until(f"host.audit.{HOST_ID}")
    hosts = Hosts(bus)
    said = {"reason": "to see", "requested_by": "test"}
    await hosts.declare_lost(OTHER_HOST, **said)
    await listener.until("host.evt.h9.host_lost")
    await hosts.declare_found(OTHER_HOST, **said)
    await listener.until("host.evt.h9.host_found")
    await TokenRevocations(bus).revoke(RevokedBy.JTI, "x", issued_before=None, **said)
    await replay(bus, "raw", "collector", begin=1, reason="to see", actor="test")
    await hosts.order(HOST_ID, draining=True, **said)
    for subject in (
        f"host.evt.{HOST_ID}.host_drained",
        f"host.evt.{HOST_ID}.metering_adjusted",
        f"metrics.rejected.clock_skew.{OTHER_HOST}",
    ):
        await listener.until(subject)


UNSAID = {
    *("gap_opened", "gap_closed", "host_silent", "host_suspected", "host_heard", "vm_failed"),
    *("restore", "discard", "vm_snapshotted", "DoorSnapshot", "network_abuse_suspected"),
    *("VmCorrections", "KeyRemoved"),
}
"""Messages for which something would have to fail, time to pass, or the simulator to have snapshots
and networks."""
UNSAID_ON = {
    *("requestImagesReply", "requestQuotasReply"),
    *("requestRestoreReply", "requestSnapshotReply", "requestSnapshotDeleteReply"),
}
"""Where nothing can be refused, and where nothing is done."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / FILE).read_text())
    return found


@asynccontextmanager
async def overheard(folder: Path) -> AsyncIterator[Listener]:
    """A stack that has done its work, and what was said on its bus meanwhile."""
    guest = folder / "vmlinux"
    guest.write_bytes(b"\x7fELF: the simulator boots anything")
    (folder / "stack").mkdir()
    stack = KillableStack(folder / "stack", driver="simulator", guest=guest)
    async with (
        running(stack, START_ORDER[:1], guest),
        listening(stack.ports.nats_url) as listener,
    ):
        for name in START_ORDER[1:]:
            await stack.start(name)
        await beside(stack.ports.nats_url)
        async with stack.client("acme") as api, stack.bus() as bus:
            async with asyncio.TaskGroup() as doors:
                doors.create_task(by_http(api), name="http")
                doors.create_task(by_bus(bus), name="bus")
            await by_admin(stack.ports.api_url, mint(stack.key, None, [ADMIN]))
            await by_operator(bus, listener)
            yield listener


async def beside(url: str) -> None:
    """A second gateway for a moment: it asks the first one how rates stand."""
    server: Any = SimpleNamespace(url=url)
    async with running_gateway(server):
        pass


def schema(d: dict[str, Any], name: str) -> Any:
    return d["components"]["schemas"][name]


def message(d: dict[str, Any], name: str) -> Any:
    return d["components"]["messages"][name]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no such subject": lambda d: d["channels"].pop("metricsProgress"),
    "no such inbox": lambda d: d["channels"]["requestBootReply"]["messages"].pop("DoorRefusal"),
    "no such event": lambda d: d["channels"]["vmEvent"].update(messages={}),
    "no such reason": lambda d: d["channels"]["metricsRejected"]["parameters"]["reason"].update(
        enum=["unknown_vm"]
    ),
    "a header too many": lambda d: message(d, "BootVm")["headers"]["properties"].pop("Nats-Msg-Id"),
    "a header that is missing": lambda d: message(d, "Rejected")["headers"].update(required=["x"]),
    "another type": lambda d: schema(d, "HostInfo")["properties"]["vms"].update(type="string"),
    "a field that is missing": lambda d: schema(d, "AuditEntry")["required"].append("why"),
    "a smaller number": lambda d: schema(d, "Frame")["items"][4].update(maximum=1),
    "another place": lambda d: schema(d, "EnrichedFrame")["items"].pop(0),
    "another word": lambda d: schema(d, "VmState").update(enum=["flying"]),
    "JSON that is none": lambda d: message(d, "Frame").update(contentType="application/json"),
}
"""Documents that are wrong, each about something that is said."""
STRANGE = (
    Heard(f"vm.evt.acme.{new_id()}.vm_exploded", b"{}"),
    Heard("metrics.stored", b'{"rows": 1}'),
    Heard("metrics.stored", b"rows"),
    Heard("metrics.raw.h1", b"\x91\x01"),
    Heard("gateway.limits.levels", b"{}"),
    Heard("$KV.hosts.h1", b"", {"KV-Operation": "LOST"}),
    Heard("vm.req.acme.fly", b"{}"),
)


async def test_all_that_is_said_is_described(tmp_path: Path, document: dict[str, Any]) -> None:
    """Each message has an entry: its subject, headers, payload. And what is described is said."""
    async with overheard(tmp_path) as listener:
        pass
    heard = listener.heard
    judge = Judge(document)
    assert not judge.problems(heard)
    described = {
        (name, key)
        for name, channel in document["channels"].items()
        for key in channel["messages"]
        if key not in UNSAID and name not in UNSAID_ON
    }
    unsaid = sorted(described - judge.seen)
    assert unsaid == [], "have them said above, or put them into UNSAID with the reason"
    few = few_of_each(heard)
    for what, change in CHANGES.items():
        changed = copy.deepcopy(document)
        change(changed)
        assert Judge(changed).problems(few), f"{what}: nobody noticed"
    for strange in STRANGE:
        assert Judge(document).problems([strange]), f"{strange}: nobody noticed"
