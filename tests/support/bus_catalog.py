"""Everything on the bus, and who may touch it: said once more, apart from the roles themselves.

What `schemas.subjects`, the declared streams or the declared buckets have and this page has not
fails a test: whoever adds something says here who may use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VM = "0195d9a0-0000-7000-8000-000000000001"

GATEWAY, COLLECTOR, BATCHER, OPERATOR = "gateway", "collector", "batcher", "operator"
AGENT, CUSTOMER = "agent", "customer"
NAMES = {
    GATEWAY: "g1",
    COLLECTOR: "c1",
    BATCHER: "b1",
    OPERATOR: "ops",
    AGENT: "h1",
    CUSTOMER: "acme",
}
"""Role to name; h2 and globex are others'."""

OTHERS = {AGENT: "h2", CUSTOMER: "globex"}


class Case(NamedTuple):
    """A subject, or a filter on which nobody publishes."""

    subject: str
    publish: frozenset[str]
    subscribe: frozenset[str]


def _case(subject: str, publish: str = "", subscribe: str = "") -> Case:
    return Case(subject, frozenset(publish.split()), frozenset(subscribe.split()))


def _cases() -> Iterator[tuple[str, Case]]:
    for own, host in ((f" {AGENT}", "h1"), ("", "h2")):
        yield "vm_command", _case(f"vm.cmd.{host}.{VM}.boot", "gateway", "operator")
        yield "vm_command_to", _case(f"vm.cmd.{host}.{VM}.delete", "gateway", "operator")
        yield "vm_commands_of", _case(f"vm.cmd.{host}.>", "", "operator")
        yield "host_event", _case(f"host.evt.{host}.host_drained", f"collector{own}", "operator")
        # What is said of a host is not the host's to say.
        yield "host_event", _case(f"host.evt.{host}.gap_closed", "collector", "operator")
        # Except what a replay changes, which is the operator's.
        yield (
            "host_event",
            _case(f"host.evt.{host}.metering_adjusted", "collector operator", "operator"),
        )
        yield "host_audit", _case(f"host.audit.{host}", own, "operator")
        yield "metrics_raw", _case(f"metrics.raw.{host}", f"operator{own}", "operator")
        yield "metrics_raw_anywhere", _case(f"metrics.raw.*.{host}", "", "operator")
        yield "metrics_raw_of", _case(f"metrics.raw.3.{host}", "", "operator")
        yield (
            "metrics_enriched",
            _case(f"metrics.enriched.{host}", "collector operator", "operator gateway"),
        )
        yield (
            "metrics_rejected",
            _case(f"metrics.rejected.foreign_vm.{host}", "collector batcher", "operator"),
        )
        yield "vm_console", _case(f"vm.ask.{host}.{VM}.console", "gateway", f"operator{own}")
        yield "vm_network", _case(f"vm.ask.{host}.{VM}.network", "gateway", f"operator{own}")
        yield "vm_asks_of", _case(f"vm.ask.{host}.>", "", f"operator{own}")
    for own, customer in ((f" {CUSTOMER}", "acme"), ("", "globex")):
        # A host knows no more than the ids of its VMs, so that it may speak of any: ADR 0025.
        yield (
            "vm_event",
            _case(f"vm.evt.{customer}.{VM}.vm_started", "agent", f"operator gateway{own}"),
        )
        yield "vm_news_of", _case(f"vm.news.{customer}.>", "", "operator")
        yield "vm_events_of", _case(f"vm.evt.{customer}.>", "", f"operator gateway{own}")
        yield "vm_request", _case(f"vm.req.{customer}.create", own, "operator gateway")
        yield "usage_query", _case(f"usage.query.{customer}", "gateway operator", "batcher")
        yield "usage_windows", _case(f"usage.windows.{customer}", "gateway", "batcher")
        yield (
            "metrics_series",
            _case(f"metrics.series.{customer}", "gateway", "batcher operator"),
        )
        yield "audit_query", _case(f"auditlog.query.{customer}", "gateway", "batcher")
        yield "events_query", _case(f"events.query.{customer}", "gateway", "batcher")
        yield "audit_query", _case(f"auditlog.query.{customer}", "gateway", "batcher")
        yield (
            "vm_events_at",
            _case(f"vm.evt.{customer}.{VM}.vm_stopped", "agent", f"operator gateway{own}"),
        )
        yield (
            "audit",
            _case(f"audit.{customer}.vm-created", "gateway collector batcher operator", "operator"),
        )
    yield "METRICS_RAW_UNPARTED", _case("metrics.raw.*", "", "operator")
    yield "METRICS_RAW_PARTED", _case("metrics.raw.*.*", "", "operator")
    yield "metrics_progress", _case("metrics.progress.c1", "collector", "operator")
    yield "PEERS_STORED", _case("network.peers.*", "", "agent")
    yield "PEERS_STORED", _case("network.peers.acme", "", "agent")
    yield "METRICS_STORED", _case("metrics.stored", "batcher", "operator gateway")
    yield "COLLECTORS_ALIVE", _case("collector.alive.*", "", "operator collector")
    yield "collector_alive", _case("collector.alive.c2", "collector", "operator collector")
    yield "LIMITS_SPENT", _case("gateway.limits.spent", "gateway", "gateway")
    yield "LIMITS_LEVELS", _case("gateway.limits.levels", "gateway", "gateway")
    yield "PLACE_EXPLAIN", _case("place.ask.explain", "operator", "gateway")
    yield "store_ask", _case("store.ask.status", "operator", "batcher")


CASES = tuple(_cases())

NO_SUBJECTS = frozenset(
    {
        "parted",
        "METRICS_PROGRESS",
        "partitions_of",
        "partition_of",
        "host_of_metrics",
        "filters_of_host",
        "filters_of_frames",
        "customer_of",
        "parse_vm_command",
        "parse_vm_ask",
        "vm_key",
        "parse_vm_key",
        "status_key",
        "parse_status_key",
        "token",
        "event_type",
        "parse_uuid",
        "lru_cache",
    }
)
"""Functions of `schemas.subjects` that make none."""


class Use(NamedTuple):
    """Who uses a stream or bucket how."""

    consume: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()


def _use(consume: str = "", read: str = "", write: str = "") -> Use:
    return Use(*(frozenset(words.split()) for words in (consume, read, write)))


STREAMS = {
    "VM_COMMANDS": _use(read="operator"),
    "VM_EVENTS": _use(consume="batcher", read="gateway operator"),
    "HOST_EVENTS": _use(consume="batcher", read="gateway operator"),
    "METRICS_RAW": _use(consume="collector", read="collector operator"),
    "METRICS_ENRICHED": _use(consume="batcher", read="collector operator"),
    "METRICS_REJECTED": _use(read="operator"),
    "AUDIT": _use(consume="batcher", read="operator"),
    "HOST_AUDIT": _use(consume="batcher", read="operator"),
}

BUCKETS = {
    "customers": _use(read="gateway operator", write="gateway operator"),
    "price_plans": _use(read="gateway operator", write="gateway operator"),
    "vm_specs": _use(read="gateway collector batcher operator", write="gateway"),
    "vm_status": _use(read="gateway operator", write="agent"),
    "hosts": _use(read="gateway collector operator", write="agent"),
    "host_orders": _use(read="gateway operator", write="gateway operator"),
    "lost_hosts": _use(
        read="gateway collector batcher operator", write="gateway operator collector"
    ),
    "corrections": _use(read="collector batcher operator", write="batcher"),
    "revoked_tokens": _use(read="gateway operator", write="operator"),
    "secrets": _use(read="gateway", write="gateway"),
    "idempotency_keys": _use(read="gateway", write="gateway"),
    "quotas": _use(read="gateway", write="gateway"),
    "network_peers": _use(read="gateway operator", write="gateway"),
    "operations": _use(read="gateway operator", write="gateway agent"),
}

KEYS = {
    "vm_specs": (f"acme.{VM}", f"globex.{VM}"),
    "vm_status": (f"h1.acme.{VM}", f"h2.acme.{VM}"),
    "hosts": ("h1", "h2"),
    "host_orders": ("h1", "h2"),
    "lost_hosts": ("h1", "h2"),
}
"""An own one and another's."""

HEARD_BUCKETS = {"operations": frozenset({GATEWAY, OPERATOR})}
"""Those whose subjects somebody subscribes to."""

CONSUMING = frozenset(
    {
        "STREAM.INFO.@",
        "CONSUMER.CREATE.@.c",
        "CONSUMER.CREATE.@.c.f",
        "CONSUMER.INFO.@.c",
        "CONSUMER.LIST.@",
        "CONSUMER.MSG.NEXT.@.c",
        "CONSUMER.UNPIN.@.c",
    }
)
READING = frozenset(
    {
        "STREAM.INFO.@",
        "STREAM.MSG.GET.@",
        "DIRECT.GET.@",
        "DIRECT.GET.@.f",
        "CONSUMER.CREATE.@",
        "CONSUMER.CREATE.@.c",
        "CONSUMER.CREATE.@.c.f",
        "CONSUMER.INFO.@.c",
        "CONSUMER.LIST.@",
        "CONSUMER.MSG.NEXT.@.c",
        "CONSUMER.DELETE.@.c",
    }
)
OPERATING = frozenset(
    {
        "STREAM.CREATE.@",
        "STREAM.UPDATE.@",
        "STREAM.INFO.@",
    }
)
CALLS = (
    CONSUMING
    | READING
    | OPERATING
    | frozenset(
        {
            "STREAM.DELETE.@",
            "STREAM.PURGE.@",
            "STREAM.MSG.DELETE.@",
            "STREAM.SNAPSHOT.@",
            "STREAM.RESTORE.@",
            "STREAM.LEADER.STEPDOWN.@",
            "STREAM.PEER.REMOVE.@",
            "CONSUMER.NAMES.@",
            "CONSUMER.PAUSE.@.c",
            "CONSUMER.RESET.@.c",
            "CONSUMER.DURABLE.CREATE.@.c",
            "CONSUMER.LEADER.STEPDOWN.@.c",
        }
    )
)
"""All of JetStream's requests about a stream: `@` is its name, `c` a consumer, `f` a filter."""

GENERAL_CALLS = frozenset(
    {
        "INFO",
        "STREAM.NAMES",
        "STREAM.LIST",
        "ACCOUNT.PURGE.CORE",
        "META.LEADER.STEPDOWN",
        "SERVER.REMOVE",
        "STREAM.TEMPLATE.CREATE.x",
    }
)

NOBODYS = (
    ">", "*", "*.>", "*.*", "_INBOX.>", "_INBOX.*.>", "_INBOX.*", "_R_.>", "_R_.*.*",
    "$SYS.>", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.*.CONNZ", "$SYS.ACCOUNT.*.CONNECT",
    "$JS.>", "$JS.API.>", "$JS.API.STREAM.>", "$JS.EVENT.>", "$JS.ACK.>", "$JS.FC.>",
    "JS.CORE.API.>", "$G.>", "$SRV.>", "*.cmd.>", "*.req.>", "usage.>", "store.>",
)  # fmt: skip
"""Subscriptions that nobody is let have."""
