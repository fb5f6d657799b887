"""Channels on which somebody tells or orders: commands, events, metrics, audit, heartbeats."""

from __future__ import annotations

from typing import get_args

from decisec.messages.channel import BYTES, MSGPACK, Channel, Message, one
from decisec.messages.headers import (
    EXPECTED,
    PUT_BACK,
    REJECTED,
    REPLAYED,
    STORED,
    TOLD_ONCE_MORE,
    TRACED,
)
from schemas.audit import AuditEntry
from schemas.collectors import CollectorAlive
from schemas.commands import VERB_OF
from schemas.events import HostEvent, VmEvent
from schemas.frames import HEADER_COMPLETE_MS, EnrichedFrame, Frame, FramesStored, RejectReason
from schemas.limits import SpendReport
from schemas.network_peers import CustomerPeers
from schemas.progress import HostProgress

_VM_EVENTS = {
    str(kind.__struct_config__.tag): Message(
        kind, headers=(*STORED, *TOLD_ONCE_MORE), correlated_by="command_id"
    )
    for kind in get_args(VmEvent)
}
_FRAME = Message(Frame, content_type=MSGPACK, headers=(*STORED, HEADER_COMPLETE_MS, *PUT_BACK))
_ENTRY = Message(
    AuditEntry,
    headers=STORED,
    example={"action": "create-vm", "target": "vm web-1", "outcome": "succeeded"},
)
_REJECT = Message(
    name="Rejected",
    content_type=BYTES,
    summary="What was refused: mostly a `Frame` or an `EnrichedFrame`, or rows of it",
    headers=(*STORED, *REJECTED, *REPLAYED),
)

CHANNELS: tuple[Channel, ...] = (
    Channel(
        "vmCommand",
        "vm.cmd.{host}.{vm}.{verb}",
        {
            verb: Message(kind, headers=STORED, correlated_by="command_id")
            for kind, verb in VERB_OF.items()
        },
        "Commands to the agent of a host",
        "In order for each VM. The result stands in the bucket `operations` under `command_id`, "
        "which is the `Nats-Msg-Id` too: the same command twice has one effect.",
    ),
    Channel(
        "vmEvent",
        "vm.evt.{customer}.{vm}.{type}",
        _VM_EVENTS,
        "What happened to a VM",
        "Customers hear their own, each when it is stored, with its place in the stream.",
    ),
    Channel(
        "vmNews",
        "vm.news.{customer}.{vm}.{type}",
        _VM_EVENTS,
        "The same once more, each when it is stored",
        "Published by NATS itself with the place in the stream; what customers hear as "
        "`vm.evt.<customer>.>`.",
        republished=True,
    ),
    Channel(
        "hostEvent",
        "host.evt.{host}.{type}",
        {
            str(kind.__struct_config__.tag): Message(kind, headers=STORED)
            for kind in get_args(HostEvent)
        },
        "What happened to a host and to its metrics",
    ),
    Channel(
        "metricsRaw",
        "metrics.raw.{host}",
        one(_FRAME),
        "All VMs of a host at one tick of 100 ms",
        "`Nats-Msg-Id` is `host:run_id:seq`, or begins with `replay:`.",
    ),
    Channel(
        "metricsRawStored",
        "metrics.raw.{partition}.{host}",
        one(_FRAME),
        "The same as the stream `METRICS_RAW` keeps it",
        "NATS puts each frame into the partition of its host; collectors share the partitions.",
        republished=True,
    ),
    Channel(
        "metricsEnriched",
        "metrics.enriched.{host}",
        one(Message(EnrichedFrame, content_type=MSGPACK, headers=(*STORED, *PUT_BACK))),
        "The good rows of a frame, and whose they are",
    ),
    Channel(
        "metricsProgress",
        "metrics.progress.{collector}",
        one(Message(HostProgress, headers=STORED)),
        "How far hosts have come",
    ),
    Channel(
        "metricsRejected",
        "metrics.rejected.{reason}.{host}",
        one(_REJECT),
        "What a collector or the store refused",
        "`host` is `unknown` where the subject named none.",
        values={"reason": tuple(reason.value for reason in RejectReason)},
    ),
    Channel(
        "metricsStored",
        "metrics.stored",
        one(Message(FramesStored, headers=TRACED)),
        "A batcher's word that frames can be queried",
    ),
    Channel(
        "collectorAlive",
        "collector.alive.{collector}",
        one(Message(CollectorAlive, headers=TRACED)),
        "Heartbeats of collectors, twice a second",
    ),
    Channel(
        "audit",
        "audit.{customer}.{action}",
        one(_ENTRY),
        "Who did what",
    ),
    Channel(
        "hostAudit",
        "host.audit.{host}",
        one(_ENTRY),
        "What a host refused to do",
        "Entries that only this host may write; readers take no other entry from there.",
    ),
    Channel(
        "networkPeers",
        "network.peers.{customer}",
        one(
            Message(
                CustomerPeers, name="PeersStored", headers=(*EXPECTED, *TOLD_ONCE_MORE, *TRACED)
            )
        ),
        "With whom a customer agrees, once it is stored",
        "Published by NATS itself with the place in the bucket `network_peers`; what agents hear.",
        republished=True,
    ),
    Channel(
        "limitsSpent",
        "gateway.limits.spent",
        one(Message(SpendReport, headers=TRACED)),
        "What a gateway has admitted since its last report",
    ),
)
