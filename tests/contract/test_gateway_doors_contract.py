"""The two doors of the gateway, HTTP and the bus: one table of questions, the same answers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import httpx
import pytest
import pytest_asyncio

from gateway.door import Door
from runtime.bus import Bus
from schemas.errors import ErrorCode
from schemas.ids import new_id
from schemas.subjects import vm_request
from tests.support.gateway import Stack, refusing, shared_stack
from tests.support.tokens import bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|host-[a-z2-7]{24}")
"""Of VMs and what belongs to them, and each customer's own name of a host."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_VMS = "/v1/vms"
LAST_YEAR = {"start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for both doors; each door has a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


class AnyDoor(Protocol):
    """A way to ask the gateway."""

    async def ask(self, verb: str, **asked: Any) -> Any:
        """The answer's body, or an error as `{"error": {"code", "message"}}`."""


class BusDoor:
    """`vm.req.<customer>.<verb>`."""

    def __init__(self, bus: Bus, customer: str) -> None:
        self._bus = bus
        self._customer = customer

    async def ask(self, verb: str, **asked: Any) -> Any:
        data = json.dumps(asked).encode()
        subject = vm_request(self._customer, verb)
        reply = json.loads((await self._bus.request(subject, data, timeout_s=20)).data)
        ((name, body),) = reply.items()
        return reply if name == "error" else body


class HttpDoor:
    """Routes below `/v1`."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api

    async def ask(self, verb: str, **asked: Any) -> Any:
        wait_s = asked.pop("wait_s", 0)
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        method, path, body, query = _route(verb, asked, headers)
        params = httpx.QueryParams(tuple(query))
        answer = await self._api.request(method, path, json=body, params=params, headers=headers)
        found = answer.json()
        if answer.is_success:
            return found
        assert answer.headers["Content-Type"] == "application/problem+json"
        return {"error": {"code": found["code"], "message": found["detail"]}}


def _route(
    verb: str, asked: dict[str, Any], headers: dict[str, str]
) -> tuple[str, str, Any, list[tuple[str, str]]]:
    """Method, path, body and query that mean what the bus's message does."""
    params: list[tuple[str, str]] = []
    match verb:
        case "create":
            return "POST", _VMS, asked["vm"], params
        case "list" | "operations" | "snapshots":
            for name, value in (asked.pop("labels", None) or {}).items():
                params.append(("label", name if value is None else f"{name}:{value}"))
            params += [(name, str(value)) for name, value in asked.items()]
            return "GET", _VMS if verb == "list" else f"/v1/{verb}", None, params
        case "peers":
            params += [(name, str(value)) for name, value in asked.items()]
            return "GET", "/v1/network/peers", None, params
        case "peer-add" | "peer-remove":
            method = "PUT" if verb == "peer-add" else "DELETE"
            return method, f"/v1/network/peers/{asked['peer_id']}", None, params
        case "images" | "quotas":
            return "GET", f"/v1/{verb}", None, params
        case "usage" | "metrics" | "events" | "audit":
            tail = "/series" if verb == "metrics" else ""
            for name, value in asked.items():
                many = isinstance(value, list)
                said = {"vm_ids": "vm_id", "types": "type"}.get(name, name)
                params += [(said, str(one)) for one in (value if many else [value])]
            return "GET", f"/v1/{verb}{tail}", None, params
        case "operation":
            return "GET", f"/v1/operations/{asked['operation_id']}", None, params
        case "snapshot-get" | "snapshot-delete":
            method = "GET" if verb == "snapshot-get" else "DELETE"
            return method, f"/v1/snapshots/{asked['snapshot_id']}", None, params
    path = f"{_VMS}/{asked.pop('vm_id')}"
    match verb:
        case "get":
            return "GET", path, None, params
        case "delete":
            return "DELETE", path, None, params
        case "patch":
            if "generation" in asked:
                headers["If-Match"] = f'"{asked["generation"]}"'
            return "PATCH", path, asked["patch"], params
        case "console":
            return "GET", f"{path}/console", None, params
        case "check-network":
            return "POST", f"{path}/network-check", None, params
    return "POST", f"{path}/{verb}", asked or None, params


class Recorder:
    """Asks through one door, and keeps what was answered in a form that two doors share."""

    def __init__(self, door: AnyDoor) -> None:
        self._door = door
        self._ids: dict[str, str] = {}
        self.seen: list[tuple[str, Any]] = []
        self.verbs: set[str] = set()

    async def ask(self, verb: str, **asked: Any) -> Any:
        self.verbs.add(verb)
        body = await self._door.ask(verb, **asked)
        self.seen.append((verb, self._plain(body)))
        return body

    def _plain(self, value: Any) -> Any:
        match value:
            case dict():
                return {
                    name: bool(one) if name == "next_cursor" else self._plain(one)
                    for name, one in value.items()
                    if name != "customer_id"
                }
            case list():
                return [self._plain(one) for one in value]
            case str():
                named = _ID.sub(
                    lambda found: self._ids.setdefault(found[0], f"id-{len(self._ids)}"), value
                )
                return _TIME.sub("time", named)
        return value


async def life(ask: Callable[..., Any]) -> None:
    """A VM's life, and looks at it in between."""
    made = await ask("create", vm={"image": "tiny", "name": "web", "labels": {"a": "1"}}, wait_s=9)
    vm_id = made["vm"]["vm_id"]
    await ask("create", vm={"image": "tiny", "name": "db", "boot": True}, wait_s=9)
    for verb in ("boot", "pause", "resume"):
        await ask(verb, vm_id=vm_id, wait_s=9)
    await ask("get", vm_id=vm_id)
    taken = await ask("snapshot", vm_id=vm_id, wait_s=9)
    snapshot_id = taken["operation"]["snapshot_id"]
    await ask("snapshot", vm_id=vm_id, kind="diff", wait_s=9)
    await ask("snapshot-get", snapshot_id=snapshot_id)
    page = await ask("snapshots", limit=1)
    await ask("snapshots", limit=1, cursor=page["next_cursor"])
    await ask("snapshots", vm_id=vm_id)
    await ask("restore", vm_id=vm_id, snapshot_id=snapshot_id, wait_s=9)
    await ask("reboot", vm_id=vm_id, grace_s=1, wait_s=9)
    await ask("shutdown", vm_id=vm_id, grace_s=0, wait_s=9)
    await ask("snapshot", vm_id=vm_id)
    await ask("restore", vm_id=vm_id, snapshot_id=snapshot_id, wait_s=9)
    await ask("snapshot-delete", snapshot_id=snapshot_id, wait_s=9)
    await ask("snapshot-get", snapshot_id=snapshot_id)
    await ask("patch", vm_id=vm_id, patch={"labels": {"a": None, "b": "2"}, "name": "web-2"})
    await ask("patch", vm_id=vm_id, patch={"labels": {"b": "3"}}, generation=2)
    await ask("patch", vm_id=vm_id, patch={"labels": {"b": "4"}}, generation=2)
    await ask("patch", vm_id=vm_id, patch={"name": None, "labels": None})
    for query in (
        {},
        {"state": "running"},
        {"labels": {"b": None}},
        {"image": "tiny", "sort": "-name"},
        {"name": "db"},
        {"sort": "-created_at"},
        {"image": "none"},
    ):
        await ask("list", **query)
    page = await ask("list", limit=1)
    await ask("list", limit=1, cursor=page["next_cursor"])
    await ask("list", limit=1, cursor=page["next_cursor"], sort="name")
    await ask("list", cursor="x")
    await ask("images")
    await ask("quotas")
    page = await ask("operations", limit=3)
    await ask("operations", limit=3, cursor=page["next_cursor"])
    await ask("operations", vm_id=vm_id, status="succeeded")
    await ask("operations", cursor=page["next_cursor"])
    await ask("operation", operation_id=taken["operation"]["operation_id"])
    await ask("delete", vm_id=vm_id, wait_s=9)
    await ask("get", vm_id=vm_id)
    await ask("snapshots")
    for peer_id in ("globex", "globex", "initech"):
        await ask("peer-add", peer_id=peer_id)
    page = await ask("peers", limit=1)
    await ask("peers", limit=1, cursor=page["next_cursor"])
    await ask("peers", state="waiting")
    await ask("peers", state="agreed")
    for peer_id in ("globex", "globex", "nobody"):
        await ask("peer-remove", peer_id=peer_id)


async def refusals(ask: Callable[..., Any]) -> None:
    """What is not there, not legal, or makes no sense."""
    nothing = str(new_id())
    for verb in ("get", "boot", "shutdown", "pause", "resume", "reboot", "delete", "snapshot"):
        await ask(verb, vm_id=nothing)
    await ask("console", vm_id=nothing)
    await ask("check-network", vm_id=nothing)
    await ask("patch", vm_id=nothing, patch={"name": "x"})
    await ask("restore", vm_id=nothing, snapshot_id=nothing)
    await ask("snapshot-get", snapshot_id=nothing)
    await ask("snapshot-delete", snapshot_id=nothing)
    await ask("snapshots", vm_id=nothing)
    await ask("operation", operation_id=nothing)
    await ask("create", vm={"image": "missing"})
    await ask("create", vm={"image": "tiny", "memory_mib": 1_000_000})
    made = await ask("create", vm={"image": "tiny"}, wait_s=9)
    vm_id = made["vm"]["vm_id"]
    for verb in ("pause", "resume", "shutdown", "reboot", "snapshot"):
        await ask(verb, vm_id=vm_id, wait_s=9)
    await ask("restore", vm_id=vm_id, snapshot_id=nothing)
    await ask("peer-add", peer_id="operator")
    await ask("peer-remove", peer_id="gateway")
    await ask("peers", cursor="x")
    many = {f"l{number}": "x" for number in range(33)}
    await ask("patch", vm_id=vm_id, patch={"labels": many})


async def malformed(ask: Callable[..., Any]) -> None:
    """Messages that say nothing: the words are each door's own, the code is not."""
    nothing = str(new_id())
    await ask("create", vm={"image": "tiny", "vcpus": "2"})
    await ask("create", vm={"image": "tiny", "path": "/etc/passwd"})
    await ask("patch", vm_id=nothing, patch={"vcpus": 2})
    await ask("patch", vm_id=nothing, patch={"labels": {"A B": "x"}})
    await ask("restore", vm_id=nothing, snapshot_id="x")
    await ask("snapshot", vm_id=nothing, kind="half")
    await ask("list", limit=0)
    await ask("list", sort="size")
    await ask("list", state="flying")
    await ask("operations", status="lost")
    await ask("peers", state="friends")
    await ask("peers", limit=1001)
    await ask("peer-add", peer_id="Globex")
    await ask("peer-remove", peer_id="-")
    await ask("snapshots", vm_id="x")
    await ask("usage", start="yesterday", end="2026-01-01T00:00:00Z")
    for verb in ("usage", "metrics", "audit"):
        named = {} if verb == "audit" else {"vm_ids": [nothing]}
        await ask(verb, start="2026-01-02T00:00:00Z", end="2026-01-01T00:00:00Z", **named)
    await ask("metrics", **LAST_YEAR, vm_ids=[nothing], step_ms=7)
    await ask("metrics", **LAST_YEAR, vm_ids=[])
    await ask("metrics", start="1900-01-01T00:00:00Z", end="2300-01-01T00:00:00Z", vm_ids=[nothing])
    await ask("audit", **LAST_YEAR)
    await ask("audit", start="2026-01-01T00:00:00Z", end="2026-01-02T00:00:00Z", cursor="x")
    await ask("events", limit=0)
    await ask("events", types=["Vm Started"])
    await ask("events", cursor="x")


async def both(
    shared: Stack, table: Callable[[Callable[..., Any]], Any], name: str
) -> tuple[Recorder, Recorder]:
    """Run a table through both doors."""
    async with shared.client(headers=bearer(f"{name}-http")) as api:
        http = Recorder(HttpDoor(api))
        await table(http.ask)
    bus = Recorder(BusDoor(shared.bus, f"{name}-bus"))
    await table(bus.ask)
    return http, bus


@pytest.mark.parametrize("table", [life, refusals], ids=["life", "refusals"])
async def test_both_doors_give_the_same_answers(
    shared: Stack, table: Callable[[Callable[..., Any]], Any]
) -> None:
    """Step by step, to the last field and word."""
    http, bus = await both(shared, table, table.__name__)
    for by_http, by_bus in zip(http.seen, bus.seen, strict=True):
        assert by_http == by_bus
    if table is refusals:
        codes = [body["error"]["code"] for _, body in http.seen if "error" in body]
        assert len(codes) == len(http.seen) - 1
        assert set(codes) == {"not_found", "unknown_image", "forbidden", "illegal_transition",
                              "bad_request"}  # fmt: skip


async def test_both_doors_refuse_what_makes_no_sense_with_one_code(shared: Stack) -> None:
    """Nothing of it reaches a service."""
    before = await shared.commands()
    for recorder in await both(shared, malformed, "malformed"):
        codes = {body["error"]["code"] for _, body in recorder.seen}
        assert codes == {"bad_request"}
    assert await shared.commands() == before


async def test_both_doors_tell_alike_of_what_a_host_refuses(shared: Stack) -> None:
    """The agent's code and words, whoever waits for them."""

    async def unsupported(ask: Callable[..., Any]) -> None:
        made = await ask("create", vm={"image": "tiny", "boot": True}, wait_s=9)
        shared.agent.script = refusing(ErrorCode.UNSUPPORTED, "snapshot")
        try:
            refused = await ask("snapshot", vm_id=made["vm"]["vm_id"], wait_s=9)
        finally:
            shared.agent.script = lambda _: None
        assert refused["error"]["code"] == "unsupported"

    http, bus = await both(shared, unsupported, "unsupported")
    assert http.seen == bus.seen


async def test_no_verb_of_the_bus_is_left_out_here(shared: Stack) -> None:
    """The door's own list of verbs: a new one without a case in a table fails."""
    nothing: Any = None
    known = Door(
        shared.bus, nothing, nothing, nothing, nothing, nothing, nothing,
        operations=nothing, snapshots=nothing, images=nothing, peers=nothing, reads=nothing,
    ).verbs  # fmt: skip
    asked: set[str] = set()

    async def note(verb: str, **_: Any) -> Any:
        asked.add(verb)
        return {"vm": {"vm_id": "x"}, "operation": {"snapshot_id": "x", "operation_id": "x"},
                "next_cursor": ""}  # fmt: skip

    for table in (life, refusals, malformed):
        await table(note)
    assert asked == known
