"""As each role, everything on the bus that it must not touch, on a server as in production."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import pytest

from decisec.bus.roles import shipped
from runtime.credentials import inbox_prefix, read_credentials
from runtime.streams import declared
from schemas import subjects
from tests.support.bus_catalog import (
    AGENT,
    BUCKETS,
    CALLS,
    CASES,
    CONSUMING,
    CUSTOMER,
    GATEWAY,
    GENERAL_CALLS,
    HEARD_BUCKETS,
    KEYS,
    NAMES,
    NO_SUBJECTS,
    NOBODYS,
    OPERATING,
    OPERATOR,
    OTHERS,
    READING,
    STREAMS,
    VM,
)  # fmt: skip
from tests.support.secured_bus import SecuredBus, all_sent, secured_bus

GATEWAYS_CALLS = {
    f"{call}.{stream}"
    for call in ("CONSUMER.LIST", "STREAM.MSG.GET")
    for stream in ("METRICS_RAW", "METRICS_ENRICHED")
}
HOSTS_OWN = ("hosts", "host_orders", "vm_status")
"""Buckets whose keys begin with the host that they are of."""

AGENTS_CALLS = {
    "CONSUMER.CREATE.VM_COMMANDS.agent-h1.vm.cmd.h1.>",
    "CONSUMER.DELETE.VM_COMMANDS.agent-h1",
    "CONSUMER.MSG.NEXT.VM_COMMANDS.agent-h1",
    f"DIRECT.GET.VM_COMMANDS.vm.cmd.h1.{VM}.boot",
    f"DIRECT.GET.KV_operations.$KV.operations.{VM}",
    "DIRECT.GET.KV_host_orders.$KV.host_orders.h1",
    "DIRECT.GET.KV_network_peers.$KV.network_peers.acme",
}


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[SecuredBus]:
    root = tmp_path / "bus"
    async with secured_bus(root) as secured:
        for role, name in (*NAMES.items(), *OTHERS.items()):
            secured.issue(role, name)
        assert secured.folder.reload()
        yield secured


def test_everything_on_the_bus_has_a_rule() -> None:
    """A new subject, stream, bucket or role is refused here until somebody says who may use it."""
    made = {
        name
        for name, value in vars(subjects).items()
        if callable(value) and not name.startswith("_") and not isinstance(value, type)
        and getattr(value, "__module__", "") == subjects.__name__
    }  # fmt: skip
    constants = {
        name
        for name, value in vars(subjects).items()
        if isinstance(value, str) and not name.startswith("_") and "." in value
    }
    assert (made | constants) - NO_SUBJECTS == {name for name, _ in CASES}
    declaration = declared()
    assert {stream.name for stream in declaration.stream} == set(STREAMS)
    assert {bucket.name for bucket in declaration.bucket} == set(BUCKETS)
    assert set(shipped().names) == set(NAMES)


async def test_each_role_publishes_and_hears_what_it_may_and_nothing_else(bus: SecuredBus) -> None:
    """Every subject of the schemas, every key of every bucket, and wildcards around them."""
    wrong: list[str] = []
    for role, name in NAMES.items():
        # A wildcard is no subject: published, it is a word like any other.
        publish = {
            case.subject: role in case.publish
            for _, case in CASES
            if role in OTHERS or not {"*", ">"} & set(case.subject)
        }
        subscribe = {case.subject: role in case.subscribe for _, case in CASES}
        for bucket, use in BUCKETS.items():
            for number, key in enumerate(KEYS.get(bucket, (VM,))):
                subject = f"$KV.{bucket}.{key}"
                own = number == 0 or bucket not in HOSTS_OWN or role != AGENT
                publish[subject] = role in use.write and own
                subscribe[subject] = role in HEARD_BUCKETS.get(bucket, ()) or (
                    role == AGENT and subject == "$KV.host_orders.h1"
                )
            subscribe[f"$KV.{bucket}.>"] = role in HEARD_BUCKETS.get(bucket, ())
        subscribe |= dict.fromkeys(NOBODYS, False)
        for wild in ("vm.>", "vm.cmd.*.>", "vm.evt.*.>", "vm.req.>", "vm.ask.*.>", "$KV.*.h1",
                     "$KV.>", "metrics.>", "metrics.raw.>", "host.>", "audit.>"):  # fmt: skip
            publish |= {wild: False} if role in OTHERS else {}
            subscribe[wild] = (role == OPERATOR and wild[0] != "$") or (
                role == "gateway" and wild == "vm.evt.*.>"
            )
        async with bus.intruder(role, name) as who:
            refused = await who.refused_publishes(*publish)
            wrong += [f"{role} publishes {s}: {may}" for s, may in publish.items()
                      if may is (s in refused)]  # fmt: skip
            refused = await who.refused_subscriptions(*subscribe)
            wrong += [f"{role} hears {s}: {may}" for s, may in subscribe.items()
                      if may is (s in refused)]  # fmt: skip
    assert not wrong


async def test_nobody_administers_what_is_not_his(bus: SecuredBus) -> None:
    """All of JetStream's requests about all streams and buckets, in both ways to say them."""
    uses = {**STREAMS, **{f"KV_{bucket}": use for bucket, use in BUCKETS.items()}}
    wrong: list[str] = []
    for role, name in NAMES.items():
        allowed: set[str] = set()
        for stream, use in uses.items():
            calls = (CONSUMING if role in use.consume else frozenset()) | (
                READING if role in use.read else frozenset()
            )
            if role == OPERATOR:
                calls |= OPERATING
            allowed |= {f"$JS.API.{call.replace('@', stream)}" for call in calls}
        if role == OPERATOR:
            allowed |= {f"$JS.API.{call}" for call in ("INFO", "STREAM.NAMES", "STREAM.LIST")}
            allowed.add("$JS.API.STREAM.MSG.DELETE.METRICS_REJECTED")
        if role == GATEWAY:
            allowed |= {f"$JS.API.{call}" for call in GATEWAYS_CALLS}
        tried = {
            f"{prefix}.{call.replace('@', stream)}"
            for prefix, call, stream in product(("$JS.API", "JS.CORE.API"), CALLS, uses)
        } | {f"{p}.{c}" for p, c in product(("$JS.API", "JS.CORE.API"), GENERAL_CALLS)}
        if role == AGENT:
            allowed |= {f"JS.CORE.API.{call}" for call in AGENTS_CALLS}
            tried |= allowed | {call.replace("h1", "h2") for call in allowed if "h1" in call}
            tried |= {f"JS.CORE.API.CONSUMER.CREATE.VM_COMMANDS.agent-h1.{f}"
                      for f in ("vm.cmd.h2.>", "vm.cmd.>", ">", "vm.cmd.*.x.boot")}  # fmt: skip
        async with bus.intruder(role, name) as who:
            refused = await who.refused_publishes(*tried)
        may = tried - refused
        wrong += [f"{role} may {s}" for s in sorted(may - allowed)]
        wrong += [f"{role} may not {s}" for s in sorted((allowed & tried) - may)]
    assert not wrong


async def test_nobody_hears_answers_to_another(bus: SecuredBus) -> None:
    """Not by another's prefix, nor within one's own role or account; one's own are one's own."""
    twin = bus.folder.issue(CUSTOMER, "acme")[0].credential.public_key
    keys = {
        role: read_credentials(str(bus.issue(role, name))).public_key
        for role, name in NAMES.items()
    }
    for role, name in NAMES.items():
        async with bus.intruder(role, name) as who:
            others = {f"{inbox_prefix(key)}.>" for key in (*keys.values(), twin)}
            mine = f"{inbox_prefix(keys[role])}.>"
            assert await who.refused_subscriptions(*others) == others - {mine}
            if not shipped().core.get(role) or not shipped().core[role].answer:
                guesses = {f"_INBOX.{key}.guess" for key in keys.values()} | {"_R_.a.b"}
                assert await who.refused_publishes(*guesses) == guesses


async def test_a_host_has_nothing_done_where_it_may_not_itself(bus: SecuredBus) -> None:
    """The server answers wherever a request asks for it, and what it answers is the host's."""
    key = f"$KV.vm_specs.acme.{VM}"
    async with bus.bus("gateway", "g1") as gateway, bus.bus(OPERATOR, "ops") as operator:
        await gateway.js.publish(key, b"the record")
        await operator.js.publish("$KV.lost_hosts.h9", b"an entry")
        async with bus.intruder(AGENT, "h1") as host:
            await host.client.request(f"$KV.operations.{VM}", b"a forged command", timeout=5)
            await host.client.request("$KV.hosts.h1", b"a heartbeat", timeout=5)
            for reply in (key, "vm.cmd.h2.vm.boot", "$KV.hosts.h2", "metrics.raw.h2",
                          "$JS.API.STREAM.PURGE.METRICS_RAW"):  # fmt: skip
                # The acknowledgement, and a value of its own choice.
                await host.send("metrics.raw.h1", b"x", reply=reply)
                call = f"JS.CORE.API.DIRECT.GET.KV_operations.$KV.operations.{VM}"
                await host.send(call, reply=reply)
            await host.send("JS.CORE.API.CONSUMER.CREATE.VM_COMMANDS.agent-h1.vm.cmd.h1.>",
                            b'{"stream_name":"VM_COMMANDS","config":{"name":"agent-h1",'
                            b'"filter_subject":"vm.cmd.h1.>","deliver_subject":"vm.evt.a.b.c"}}',
                            reply="$KV.hosts.h2")  # fmt: skip
            await host.send("metrics.raw.h1", b"x", Nats_Trace_Dest="vm.cmd.h2.vm.boot")
            async with asyncio.timeout(10):
                while not any("vm.cmd.h2" in error for error in host.errors):
                    await asyncio.sleep(0.02)
            # A header that would empty the bucket: other hosts' heartbeats with it.
            await operator.js.publish("$KV.lost_hosts.h8", b"an entry")
            answer = await host.client.request(
                "$KV.hosts.h1", b"{}", timeout=5, headers={"Nats-Rollup": "all"}
            )
            assert b"rollup" in answer.data
            # What it may publish it has: five frames, and that is all that there is.
            async with asyncio.timeout(10):
                while await count(operator, "METRICS_RAW") < 5:
                    await asyncio.sleep(0.02)
        assert (await operator.js.get_last_msg("KV_vm_specs", key)).data == b"the record"
        assert await count(operator, "VM_COMMANDS") == 0
        assert await count(operator, "KV_hosts") == 1
        assert await count(operator, "VM_EVENTS") == 0
        stored = await operator.js.stream_info("METRICS_RAW", subjects_filter=">")
        assert {subject.rpartition(".")[2] for subject in stored.state.subjects or {}} == {"h1"}


async def count(bus: object, stream: str) -> int:
    """Messages in a stream."""
    info = await bus.js.stream_info(stream)  # type: ignore[attr-defined]
    return int(info.state.messages)


async def test_a_host_cannot_have_others_commands_sent_to_it(bus: SecuredBus) -> None:
    """The filter in the subject, which is permitted, is the one that counts."""
    async with bus.intruder(AGENT, "h1") as host:
        subject = "JS.CORE.API.CONSUMER.CREATE.VM_COMMANDS.agent-h1.vm.cmd.h1.>"
        for config in (
            b'"filter_subject":"vm.cmd.>"',
            b'"filter_subject":"vm.cmd.h2.>"',
            b'"filter_subjects":["vm.cmd.>"]',
            b'"filter_subject":"vm.cmd.h1.>","filter_subjects":["vm.cmd.h2.>"]',
        ):
            body = b'{"stream_name":"VM_COMMANDS","config":{"name":"agent-h1",%s}}' % config
            answer = await host.client.request(subject, body, timeout=5)
            assert b'"error"' in answer.data, config
        other = b'{"stream_name":"METRICS_RAW","config":{"name":"agent-h1",' \
                b'"filter_subject":"vm.cmd.h1.>"}}'  # fmt: skip
        assert b'"error"' in (await host.client.request(subject, other, timeout=5)).data


async def test_a_customer_reaches_the_door_only_as_itself(bus: SecuredBus) -> None:
    """What stands in the reply of a request leads nowhere but back into the customer's account."""
    key = f"$KV.vm_specs.globex.{VM}"
    async with bus.bus("gateway", "g1") as gateway, bus.intruder(CUSTOMER, "acme") as service:
        heard: list[str] = []

        async def door(message: object) -> bytes:
            heard.append(f"{getattr(message, 'subject', '')} {getattr(message, 'reply', '')}")
            return b"an answer"

        await gateway.subscribe("vm.req.*.*", door, queue="gateway")
        await all_sent(gateway.client)
        answer = await service.client.request("vm.req.acme.get", b"{}", timeout=5)
        assert answer.data == b"an answer"
        for reply in (key, "vm.req.globex.delete", f"vm.cmd.h1.{VM}.delete", "vm.evt.acme.x.y"):
            assert not await service.send("vm.req.acme.get", b"{}", reply=reply)
        assert await service.send("vm.req.globex.get", b"{}")
        async with asyncio.timeout(10):
            while len(heard) < 5:
                await asyncio.sleep(0.02)
        await all_sent(gateway.client)
        assert {line.split()[0] for line in heard} == {"vm.req.acme.get"}
        assert all(line.split()[1].startswith("_R_.") for line in heard)
        async with bus.bus(OPERATOR, "ops") as operator:
            for stream in ("KV_vm_specs", "VM_COMMANDS", "VM_EVENTS"):
                assert await count(operator, stream) == 0
