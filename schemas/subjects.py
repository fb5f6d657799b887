"""Every subject, stream, bucket and KV key, built from checked ids only."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from schemas.audit import AuditEntry
from schemas.commands import COMMAND_OF, Command
from schemas.errors import InvalidIdError, MalformedMessageError
from schemas.events import HostEvent, VmEvent, event_type
from schemas.ids import parse_uuid, token

_PARTITIONS = re.compile(r"\{\{partition\((\d+),")

VM_COMMANDS = "VM_COMMANDS"
VM_EVENTS = "VM_EVENTS"
HOST_EVENTS = "HOST_EVENTS"
METRICS_RAW = "METRICS_RAW"
METRICS_ENRICHED = "METRICS_ENRICHED"
METRICS_REJECTED = "METRICS_REJECTED"
AUDIT = "AUDIT"
HOST_AUDIT = "HOST_AUDIT"

CUSTOMERS = "customers"
VM_SPECS = "vm_specs"
VM_STATUS = "vm_status"
HOSTS = "hosts"
HOST_ORDERS = "host_orders"
LOST_HOSTS = "lost_hosts"
PRICE_PLANS = "price_plans"
CORRECTIONS = "corrections"
OPERATIONS = "operations"
NETWORK_PEERS = "network_peers"
QUOTAS = "quotas"
SECRETS = "secrets"
IDEMPOTENCY_KEYS = "idempotency_keys"

COLLECTORS_ALIVE = "collector.alive.*"
"""Filter for the heartbeats of all collectors: core NATS, not kept."""

METRICS_PROGRESS = "metrics.progress."
"""What the subjects begin with on which collectors say how far hosts have come."""

PLACE_EXPLAIN = "place.ask.explain"
"""Core NATS, asked of a gateway by operators: where a VM would be placed."""

LIMITS_SPENT = "gateway.limits.spent"
"""Core NATS, not kept: gateways tell each other what they have admitted."""

LIMITS_LEVELS = "gateway.limits.levels"
"""Core NATS: a gateway that starts asks the others how the buckets stand."""

PEERS_STORED = "network.peers.*"
"""Filter for what is stored in `network_peers`: `network.peers.<customer>`, told by NATS itself."""

METRICS_STORED = "metrics.stored"
"""Core NATS, not kept: a batcher's word that frames can be queried."""


def vm_command(command: Command) -> str:
    """`vm.cmd.<host>.<vm>.<verb>`."""
    return vm_command_to(command.host_id, command.vm_id, command.verb)


def vm_command_to(host_id: str, vm_id: UUID, verb: str) -> str:
    """The same for a verb of `COMMAND_OF`."""
    return f"vm.cmd.{token(host_id)}.{vm_id}.{verb}"


def vm_commands_of(host_id: str) -> str:
    """Filter for all commands to one host."""
    return f"vm.cmd.{token(host_id)}.>"


def vm_event(event: VmEvent) -> str:
    """`vm.evt.<customer>.<vm>.<type>`."""
    return f"vm.evt.{token(event.customer_id)}.{event.vm_id}.{event_type(event)}"


def vm_events_of(customer_id: str) -> str:
    """Filter for all events of one customer's VMs."""
    return f"vm.evt.{token(customer_id)}.>"


def vm_events_at(customer_id: str, vm_id: UUID, kind: str = "") -> str:
    """Filter for the events of one VM, or for those of one type."""
    return f"vm.evt.{token(customer_id)}.{vm_id}.{kind or '*'}"


def vm_news_of(customer_id: str) -> str:
    """Filter for the same once more, each when it is stored."""
    return f"vm.news.{token(customer_id)}.>"


def host_event(event: HostEvent) -> str:
    """`host.evt.<host>.<type>`."""
    return f"host.evt.{token(event.host_id)}.{event_type(event)}"


def metrics_raw(host_id: str) -> str:
    """`metrics.raw.<host>`."""
    return f"metrics.raw.{token(host_id)}"


def metrics_raw_anywhere(host_id: str) -> str:
    """Filter for the stored frames of a host, whatever partition they lie in."""
    return f"metrics.raw.*.{token(host_id)}"


def metrics_raw_of(partition: int) -> str:
    """Filter for the stored frames of one partition: `metrics.raw.<partition>.*`."""
    return f"metrics.raw.{partition}.*"


METRICS_RAW_UNPARTED = "metrics.raw.*"
"""What agents publish on, and filter for the frames stored while the stream had no partitions."""

METRICS_RAW_PARTED = "metrics.raw.*.*"
"""Filter for the stored frames of all partitions."""


def parted(subject: str, partitions: int) -> str:
    """How a stream stores `a.b.*`: as `a.b.<partition>.*`, in the words of nats-server."""
    stem = subject.removesuffix("*")
    return f"{stem}{{{{partition({partitions},1)}}}}.{{{{wildcard(1)}}}}"


def partitions_of(destination: str) -> int:
    """How many partitions a stream's transform makes, 0 if it makes none; undoes `parted`."""
    found = _PARTITIONS.search(destination)
    return int(found[1]) if found else 0


@lru_cache(maxsize=65_536)
def partition_of(host_id: str, partitions: int) -> int:
    """The partition that nats-server stores a host's frames in: FNV-1a of the token, 32 bits.

    Asked for each frame, hence remembered.
    """
    value = 0x811C9DC5
    for byte in host_id.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value % partitions


def metrics_enriched(host_id: str) -> str:
    """`metrics.enriched.<host>`."""
    return f"metrics.enriched.{token(host_id)}"


def metrics_progress(collector: str) -> str:
    """`metrics.progress.<collector>`, in the stream of enriched frames."""
    return f"{METRICS_PROGRESS}{token(collector)}"


def metrics_rejected(reason: str, host_id: str) -> str:
    """`metrics.rejected.<reason>.<host>`."""
    return f"metrics.rejected.{reason}.{token(host_id)}"


def host_of_metrics(subject: str) -> str:
    """The host in `metrics.raw.<host>`, as published or stored, or `metrics.enriched.<host>`.

    Raises:
        InvalidIdError: The subject does not end in a valid host id.
    """
    return token(subject.rpartition(".")[2])


def collector_alive(collector_id: str) -> str:
    """`collector.alive.<collector>`: core NATS, twice a second."""
    return f"collector.alive.{token(collector_id)}"


def filters_of_host(stream: str, host_id: str) -> tuple[str, ...]:
    """What the messages of one host have as subjects in a stream; empty where no subject tells.

    A filter of stored subjects, for consumers.
    """
    host = token(host_id)
    filters = {
        METRICS_RAW: (f"metrics.raw.{host}", f"metrics.raw.*.{host}"),
        METRICS_ENRICHED: (f"metrics.enriched.{host}",),
        METRICS_REJECTED: (f"metrics.rejected.*.{host}",),
        HOST_EVENTS: (f"host.evt.{host}.>",),
        HOST_AUDIT: (f"host.audit.{host}",),
        VM_COMMANDS: (f"vm.cmd.{host}.>",),
    }
    return filters.get(stream, ())


def filters_of_frames(stream: str) -> tuple[str, ...]:
    """The subjects of all frames, in a stream that may hold other things as well; empty for all."""
    return ("metrics.enriched.>",) if stream == METRICS_ENRICHED else ()


def audit(entry: AuditEntry) -> str:
    """`audit.<customer>.<action>`."""
    return f"audit.{token(entry.customer_id)}.{token(entry.action)}"


def host_audit(host_id: str) -> str:
    """`host.audit.<host>`: entries of what a host refused, which only that host may write."""
    return f"host.audit.{token(host_id)}"


def usage_query(customer_id: str) -> str:
    """`usage.query.<customer>`."""
    return f"usage.query.{token(customer_id)}"


def audit_query(customer_id: str) -> str:
    """`auditlog.query.<customer>`: core NATS, answered by the batcher; no subject of `AUDIT`."""
    return f"auditlog.query.{token(customer_id)}"


def usage_windows(customer_id: str) -> str:
    """`usage.windows.<customer>`."""
    return f"usage.windows.{token(customer_id)}"


def metrics_series(customer_id: str) -> str:
    """`metrics.series.<customer>`."""
    return f"metrics.series.{token(customer_id)}"


def events_query(customer_id: str) -> str:
    """`events.query.<customer>`."""
    return f"events.query.{token(customer_id)}"


def vm_request(customer_id: str, verb: str) -> str:
    """`vm.req.<customer>.<verb>`."""
    return f"vm.req.{token(customer_id)}.{token(verb)}"


def customer_of(subject: str) -> str:
    """The customer in `usage.query.<customer>`, `vm.req.<customer>.<verb>`, `vm.evt.…` and so on.

    Raises:
        InvalidIdError: There is no valid customer id at that place.
    """
    parts = subject.split(".")
    if len(parts) < 3:
        raise InvalidIdError(f"{subject[:80]!r} names no customer")
    return token(parts[2])


def store_ask(verb: str) -> str:
    """`store.ask.<verb>`: core NATS, asked of the batcher by operators."""
    return f"store.ask.{token(verb)}"


class CommandAddress(NamedTuple):
    """What a command's subject says."""

    host_id: str
    vm_id: UUID
    verb: str


def parse_vm_command(subject: str) -> CommandAddress:
    """Take `vm.cmd.<host>.<vm>.<verb>` apart.

    Raises:
        MalformedMessageError: With reason `bad_subject`.
    """
    parts = subject.split(".")
    if len(parts) != 5 or parts[:2] != ["vm", "cmd"] or parts[4] not in COMMAND_OF:
        raise MalformedMessageError("bad_subject", f"{subject[:120]!r} is no command subject")
    try:
        return CommandAddress(token(parts[2]), parse_uuid(parts[3]), parts[4])
    except InvalidIdError as error:
        raise MalformedMessageError("bad_subject", str(error)) from error


def vm_console(host_id: str, vm_id: UUID) -> str:
    """`vm.ask.<host>.<vm>.console`: core NATS, asked of the VM's agent."""
    return f"vm.ask.{token(host_id)}.{vm_id}.console"


def vm_network(host_id: str, vm_id: UUID) -> str:
    """`vm.ask.<host>.<vm>.network`: core NATS, asked of the VM's agent."""
    return f"vm.ask.{token(host_id)}.{vm_id}.network"


def vm_asks_of(host_id: str) -> str:
    """Filter for all that one host is asked about its VMs."""
    return f"vm.ask.{token(host_id)}.>"


class AskAddress(NamedTuple):
    """What the subject of a question says."""

    host_id: str
    vm_id: UUID
    what: str


def parse_vm_ask(subject: str) -> AskAddress:
    """Take `vm.ask.<host>.<vm>.<what>` apart.

    Raises:
        MalformedMessageError: With reason `bad_subject`.
    """
    parts = subject.split(".")
    if len(parts) != 5 or parts[:2] != ["vm", "ask"]:
        raise MalformedMessageError("bad_subject", f"{subject[:120]!r} asks nothing of a VM")
    try:
        return AskAddress(token(parts[2]), parse_uuid(parts[3]), token(parts[4]))
    except InvalidIdError as error:
        raise MalformedMessageError("bad_subject", str(error)) from error


def vm_key(customer_id: str, vm_id: UUID) -> str:
    """Key of `vm_specs`: `<customer>.<vm>`."""
    return f"{token(customer_id)}.{vm_id}"


def parse_vm_key(key: str) -> tuple[str, UUID]:
    """Customer and VM of a key of `vm_specs`.

    Raises:
        InvalidIdError: It is no such key.
    """
    customer, _, vm = key.partition(".")
    return token(customer), parse_uuid(vm)


def status_key(host_id: str, customer_id: str, vm_id: UUID) -> str:
    """Key of `vm_status`: `<host>.<customer>.<vm>`. Only that host may write it."""
    return f"{token(host_id)}.{token(customer_id)}.{vm_id}"


def parse_status_key(key: str) -> tuple[str, str, UUID]:
    """Host, customer and VM of a key of `vm_status`.

    The host is empty in keys from before they had one: `<customer>.<vm>`.

    Raises:
        InvalidIdError: It is no such key.
    """
    parts = key.split(".")
    if len(parts) == 2:
        return "", token(parts[0]), parse_uuid(parts[1])
    if len(parts) != 3:
        raise InvalidIdError(f"{key[:80]!r} is no key of a status")
    return token(parts[0]), token(parts[1]), parse_uuid(parts[2])
