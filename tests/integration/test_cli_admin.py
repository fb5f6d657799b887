"""`decisec admin …` and `client.admin` against a gateway: customers, price plans, hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from decisec.cli.exits import Exit
from decisec.devkit.tokens import ADMIN, mint
from decisec.sdk import (
    AsyncClient,
    Client,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PreconditionFailedError,
    UnknownPricePlanError,
)
from runtime.clock import utc_now
from schemas.admin_customers import CreateCustomerRequest, CustomerPatch, QuotaPatch
from schemas.admin_hosts import HostState
from schemas.hosts import CustomerStatus
from schemas.price_plans import CpuPrice, CreatePricePlanRequest, Prices, PriceVersionRequest
from tests.support.gateway import Stack, made, shared_stack
from tests.support.shell import Done, Shell
from tests.support.tokens import KEY, bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")
Run = Callable[..., Awaitable[Done]]
HOUR = utc_now().replace(minute=0, second=0, microsecond=0)
LATER = HOUR.replace(year=HOUR.year + 1, day=1)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def admin(
    shared: Stack,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """`decisec admin …` as an operator."""
    shell = Shell(tmp_path, capfd, monkeypatch)
    environment = {
        "DECISEC_API_URL": shared.url,
        "DECISEC_TOKEN": mint(KEY, None, scopes=(ADMIN,), subject="ann"),
    }

    async def run(*words: str, **other: str) -> Done:
        return await asyncio.to_thread(shell, "admin", *words, **environment | other)

    return run


async def test_customers_at_the_command_line(admin: Run) -> None:
    """The whole round, with exit codes that scripts go by."""
    made_one = await admin(
        *("customer", "create", "cli", "--pool", "fast", "--quota", "vms=3"),
        *("--quota", "vcpus=8", "--rate", "mutations=5/20", "--json"),
    )
    assert (made_one.json["quota"]["vms"], made_one.json["quota"]["snapshots"]) == (3, 100)
    assert made_one.json["rates"]["mutations"] == {"per_s": 5.0, "burst": 20}
    again = await admin("customer", "create", "cli", "--json")
    assert (again.code, again.problem["code"]) == (Exit.FAILED, "conflict")
    changed = await admin(
        *("customer", "set", "cli", "--quota", "vms=default", "--rate", "mutations=default"),
        *("--generation", "1", "--json"),
    )
    assert (changed.json["quota"]["vms"], changed.json["quota"]["vcpus"]) == (100, 8)
    assert changed.json["rates"]["mutations"] is None
    stale = await admin("customer", "set", "cli", "--pool", "x", "--generation", "1", "--json")
    assert (stale.code, stale.problem["code"]) == (Exit.FAILED, "precondition_failed")
    shown = await admin("customer", "show", "cli")
    assert "0 of 100" in shown.out
    assert "the gateways'" in shown.out
    assert (await admin("customer", "suspend", "cli", "--json")).json["status"] == "suspended"
    listed = (await admin("customer", "ls", "--status", "suspended", "--json")).json["customers"]
    assert [one["customer_id"] for one in listed] == ["cli"]
    assert "suspended" in (await admin("customer", "ls")).out
    assert (await admin("customer", "resume", "cli", "--json")).json["status"] == "active"
    assert (await admin("customer", "close", "cli", "--json")).json["status"] == "closed"
    assert (await admin("customer", "show", "nobody")).code == Exit.NOT_FOUND
    for wrong in (
        ("create", "Bad.Name"), ("create", "x", "--quota", "vms"), ("set", "cli"),
        ("create", "x", "--quota", "vms=many"), ("create", "x", "--quota", "cpus=1"),
        ("create", "x", "--rate", "reads=fast"), ("create", "x", "--quota", "vms=-1"),
        ("create", "x", "--plan", "nowhere"),
    ):  # fmt: skip
        assert (await admin("customer", *wrong)).code == Exit.USAGE, wrong
    refused = await admin("customer", "ls", DECISEC_TOKEN=mint(KEY, "acme"))
    assert refused.code == Exit.DENIED


async def test_price_plans_at_the_command_line(admin: Run) -> None:
    """Prices stay as they were typed."""
    options = (
        *("--currency", "EUR", "--valid-from", HOUR.isoformat()),
        *("--price", "cpu_ns=0.0310/vcpu_hour", "--price", "net_tx_bytes=0.09/gib"),
    )
    entered = await admin("plan", "create", "typed", *options, "--name", "[x] y", "--json")
    assert entered.json["current"]["prices"]["cpu_ns"] == {"price": "0.0310", "per": "vcpu_hour"}
    assert (await admin("plan", "create", "typed", *options)).code == Exit.FAILED
    version = ("--valid-from", LATER.isoformat(), "--price", "uptime_ms=1")
    added = await admin("plan", "add", "typed", *version, "--generation", "1", "--json")
    assert added.json["versions"][1]["prices"]["uptime_ms"] == {"price": "1", "per": "hour"}
    assert (await admin("plan", "add", "typed", *version)).code == Exit.FAILED
    shown = (await admin("plan", "show", "typed")).out
    assert "cpu_ns 0.0310 per vcpu_hour" in shown
    assert "[x] y" in shown
    assert "0.09 per gib" in (await admin("plan", "ls")).out
    for wrong in (
        ("--price", "cpu_ns=1,5"), ("--price", "cpu_ns=1/gib"), ("--price", "cpus=1"),
        ("--price", "cpu_ns"), ("--valid-from", "2026-01-01T00:30:00Z"), ("--currency", "euro"),
    ):  # fmt: skip
        assert (await admin("plan", "create", "x", *options, *wrong)).code == Exit.USAGE, wrong
    assert (await admin("plan", "show", "x")).code == Exit.NOT_FOUND


async def test_hosts_at_the_command_line(shared: Stack, admin: Run) -> None:
    """What `decisec host` orders on the bus, by the API."""
    async with shared.client(headers=bearer("cli-vms")) as own:
        vm_id = await made(own)
    shown = (await admin("host", "show", "h1", "--json")).json
    assert (shown["state"], shown["listed_vms"][0]["vm_id"]) == ("up", vm_id)
    table = (await admin("host", "show", "h1")).out
    assert "simulator" in table
    assert vm_id in table
    assert "h1" in (await admin("host", "ls")).out
    drained = await admin("host", "drain", "h1", "--reason", "[new] memory")
    assert "drain ordered" in drained.out
    assert "[new] memory" in drained.out
    assert (await admin("host", "undrain", "h1", "--json")).json["order"]["draining"] is False
    heard = await admin("host", "lost", "h1", "--reason", "burnt", "--json")
    assert (heard.code, heard.problem["code"]) == (Exit.FAILED, "conflict")
    assert (await admin("host", "lost", "gone")).code == Exit.USAGE
    lost = await admin("host", "lost", "gone", "--reason", "burnt")
    assert "burnt (ann)" in lost.out
    assert (await admin("host", "found", "gone", "--json")).json["loss"] is None
    assert (await admin("host", "show", "gone")).code == Exit.NOT_FOUND
    assert (await admin("host", "drain", "gone")).code == Exit.NOT_FOUND


async def test_the_async_client(shared: Stack) -> None:
    """The whole round."""
    async with AsyncClient(shared.url, mint(KEY, None, scopes=(ADMIN,))) as client:
        api = client.admin
        plan = CreatePricePlanRequest(
            plan_id="sdk", currency="EUR", valid_from=HOUR,
            prices=Prices(cpu_ns=CpuPrice(price="0.03")),
        )  # fmt: skip
        assert (await api.create_price_plan(plan)).generation == 1
        grown = await api.add_price_plan_version(
            "sdk", PriceVersionRequest(valid_from=LATER, prices=Prices()), generation=1
        )
        assert grown == await api.get_price_plan("sdk")
        assert "sdk" in [one.plan_id async for one in api.list_price_plans(page_size=1)]
        with pytest.raises(UnknownPricePlanError):
            await api.create_customer(CreateCustomerRequest(customer_id="a1", price_plan="no"))
        for name in ("a1", "a2", "a3"):
            wanted = CreateCustomerRequest(customer_id=name, pool="sdk", price_plan="sdk")
            assert (await api.create_customer(wanted)).generation == 1
        patch = CustomerPatch(quota=QuotaPatch(vms=1))
        assert (await api.patch_customer("a2", patch, generation=1)).quota.vms == 1
        with pytest.raises(PreconditionFailedError):
            await api.close_customer("a2", generation=1)
        assert (await api.suspend_customer("a3")).status is CustomerStatus.SUSPENDED
        assert (await api.resume_customer("a3")).status is CustomerStatus.ACTIVE
        assert (await api.get_customer("a2")).used.vms == 0
        found = [one.customer_id async for one in api.list_customers(pool="sdk", page_size=2)]
        assert found == ["a1", "a2", "a3"]
        assert (await api.drain_host("s1", reason="why not", force=True)).order is not None
        assert (await api.undrain_host("s1")).state is HostState.NOT_HEARD
        assert (await api.declare_host_lost("s1", reason="burnt")).loss is not None
        assert (await api.get_host("s1")).loss is not None
        assert (await api.declare_host_found("s1")).loss is None
        assert "h1" in [one.host_id async for one in api.list_hosts(state=HostState.UP)]
        assert [one.vm_id async for one in api.list_host_vms("s1")] == []


async def test_the_blocking_client(shared: Stack) -> None:
    """The same from a thread."""

    def work() -> None:
        with Client(shared.url, mint(KEY, None, scopes=(ADMIN,))) as client:
            api = client.admin
            plan = CreatePricePlanRequest(
                plan_id="sync", currency="EUR", valid_from=HOUR, prices=Prices()
            )
            api.create_price_plan(plan)
            with pytest.raises(ConflictError):
                api.create_price_plan(plan)
            version = PriceVersionRequest(valid_from=LATER, prices=Prices())
            assert api.add_price_plan_version("sync", version) == api.get_price_plan("sync")
            assert "sync" in [one.plan_id for one in api.list_price_plans(page_size=1)]
            for name in ("b1", "b2"):
                api.create_customer(CreateCustomerRequest(customer_id=name, pool="sync"))
            api.patch_customer("b1", CustomerPatch(price_plan="sync"))
            assert api.get_customer("b1").price_plan == "sync"
            assert [c.customer_id for c in api.list_customers(pool="sync", page_size=1)] == [
                "b1", "b2",
            ]  # fmt: skip
            assert [c.customer_id for c in api.list_customers(price_plan="sync")] == ["b1"]
            assert api.suspend_customer("b1").status is CustomerStatus.SUSPENDED
            assert api.resume_customer("b1").status is CustomerStatus.ACTIVE
            assert api.close_customer("b1").status is CustomerStatus.CLOSED
            with pytest.raises(NotFoundError):
                api.drain_host("s2")
            api.drain_host("s2", force=True)
            assert api.undrain_host("s2").order is not None
            assert api.declare_host_lost("s2", reason="burnt").loss is not None
            assert "s2" in [one.host_id for one in api.list_hosts(page_size=1)]
            assert api.declare_host_found("s2", reason="there").loss is None
            assert api.get_host("h1").heartbeat is not None
            assert all(vm.customer_id for vm in api.list_host_vms("h1", page_size=1))
        with Client(shared.url, mint(KEY, "acme")) as customer, pytest.raises(ForbiddenError):
            customer.admin.get_customer("b1")

    await asyncio.to_thread(work)
