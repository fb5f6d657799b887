"""Control messages: round trips, old and new readers, garbage."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas import (
    audit,
    collectors,
    commands,
    consoles,
    corrections,
    events,
    hosts,
    progress,
    store,
    usage,
    vms,
)
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo, MalformedMessageError
from schemas.ids import new_id

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
SPEC = vms.VmSpec(image="tiny", vcpus=2, memory_mib=256, kernel_args={"spin": "1"})
COUNTERS = vms.Counters(uptime_ms=5, cpu_ns=2**63 - 1)


def _command(kind: type, **more: Any) -> Any:
    return kind(
        command_id=new_id(), customer_id="acme", vm_id=new_id(), host_id="h1",
        issued_at=NOW, deadline=NOW + timedelta(seconds=30), requested_by="alice", **more,
    )  # fmt: skip


def _vm_event(kind: type, **more: Any) -> Any:
    return kind(event_id=new_id(), at=NOW, customer_id="acme", vm_id=new_id(), host_id="h1", **more)


def _host_event(kind: type, **more: Any) -> Any:
    return kind(event_id=new_id(), at=NOW, host_id="h1", **more)


def _correction(kind: type, **more: Any) -> Any:
    return kind(correction_id=new_id(), at=NOW, actor="ann@desk", reason="sold", **more)


MESSAGES: list[tuple[Callable[[bytes], Any], Any]] = [
    (
        corrections.decode_vm_corrections,
        corrections.VmCorrections(
            vm_id=new_id(),
            former=("acme",),
            corrections=(
                _correction(
                    corrections.OwnerCorrection,
                    customer_id="bolt",
                    first_incarnation=1,
                    last_incarnation=2**32 - 1,
                    before=(corrections.Total(customer_id="acme", used=COUNTERS),),
                    applied_at=NOW,
                ),
                _correction(
                    corrections.PlanCorrection, from_ms=0, until_ms=2**63 - 1, price_plan="gold"
                ),
            ),
        ),
    ),
    (
        store.decode_store_question,
        store.StoreQuestion(
            actor="ann@desk",
            reason="sold",
            backfill=corrections.BackfillWish(
                vm_id=new_id(), customer_id="bolt", since=NOW, until=NOW + timedelta(days=1)
            ),
        ),
    ),
    (commands.decode_command, _command(commands.CreateVm, spec=SPEC)),
    (commands.decode_command, _command(commands.ShutdownVm, grace_s=3.0)),
    (commands.decode_command, _command(commands.SnapshotVm, snapshot_id=new_id())),
    *(
        (commands.decode_command, _command(kind))
        for kind in (
            commands.BootVm, commands.DeleteVm, commands.PauseVm, commands.ResumeVm,
            commands.RebootVm,
        )
    ),
    (
        collectors.decode_collector_alive,
        collectors.CollectorAlive(collector_id=new_id(), units=("collector-0",), leaving=True),
    ),
    (
        audit.decode_audit_entry,
        audit.AuditEntry(
            event_id=new_id(), at=NOW, actor="ann@desk", customer_id=audit.OPERATOR,
            action="replay", target="METRICS_RAW 1-2 to collector", reason="lost rows",
            outcome=audit.AuditOutcome.UNDER_WAY, details={audit.DETAIL_PHASE: "begun"},
        ),
    ),
    (
        consoles.decode_console_query,
        consoles.ConsoleQuery(customer_id="acme", vm_id=new_id(), offset=7, limit_bytes=1),
    ),
    (
        consoles.decode_console_reply,
        consoles.ConsoleReply(
            chunk=consoles.ConsoleChunk(
                data=bytes(range(256)), offset=2, next_offset=258, end=True, lost_bytes=1
            )
        ),
    ),
    (events.decode_vm_event, _vm_event(events.VmCreated)),
    (events.decode_vm_event, _vm_event(events.VmStarted, driver="firecracker")),
    (
        events.decode_vm_event,
        _vm_event(events.VmStopped, reason=vms.ExitReason.KILLED, final_counters=COUNTERS),
    ),
    (
        events.decode_vm_event,
        _vm_event(events.VmFailed, error=ErrorInfo(code=ErrorCode.INTERNAL, message="no")),
    ),
    (
        events.decode_vm_event,
        _vm_event(
            events.NetworkAbuseSuspected,
            reason="spoofed_source",
            dropped={"spoofed_source": 12_000},
            window_s=60,
        ),
    ),
    (
        events.decode_host_event,
        _host_event(events.GapOpened, run_id=new_id(), seq_first=3, seq_last=9),
    ),
    (events.decode_host_event, _host_event(events.HostHeard, silent_ms=1200)),
    (
        events.decode_host_event,
        _host_event(events.HostLost, reason="burnt", requested_by="ops", automatic=True),
    ),
    (events.decode_host_event, _host_event(events.HostFound)),
    (events.decode_host_event, _host_event(events.HostDrained, reason="x", ordered_at=NOW)),
    (
        events.decode_host_event,
        _host_event(
            events.MeteringAdjusted, lost_at=NOW, first_tick=NOW, last_tick=NOW, frames=3, rows=9
        ),
    ),
    (
        events.decode_host_event,
        _host_event(
            events.MeteringAdjusted, lost_at=NOW, first_tick=NOW, last_tick=NOW, frames=3, rows=9,
            cause=events.AdjustmentCause.RETRY, replay_id="r1", reason="late", uncertain=True,
        ),
    ),
    (
        vms.decode_vm_record,
        vms.VmRecord(
            vm_id=new_id(), customer_id="acme", host_id="h1", spec=SPEC, created_at=NOW
        ),
    ),
    (
        vms.decode_vm_record,
        vms.VmRecord(
            vm_id=new_id(), customer_id="acme", host_id="h2", spec=SPEC, created_at=NOW,
            former_hosts=(vms.FormerHost(host_id="h1", last_incarnation=3, left_at=NOW),),
        ),
    ),
    (
        vms.decode_vm_status,
        vms.VmStatus(
            vm_id=new_id(), customer_id="acme", host_id="h1", state=vms.VmState.RUNNING,
            incarnation=3, final_counters=COUNTERS, updated_at=NOW,
            snapshots=(
                vms.SnapshotInfo(
                    snapshot_id=new_id(), kind=vms.SnapshotKind.DIFF, image="tiny", vcpus=1,
                    memory_mib=64, disk_mib=0, created_at=NOW,
                ),
            ),
        ),
    ),
    (
        hosts.decode_host_info,
        hosts.HostInfo(
            host_id="h1", run_id=new_id(), boot_id="b", version="0", driver="firecracker",
            capacity=hosts.Resources(vcpus=8), free=hosts.Resources(vcpus=2), heartbeat_at=NOW,
            draining=True, drain_reason="new disks", reserved=hosts.Resources(vcpus=6),
            started_at=NOW,
        ),
    ),
    (
        hosts.decode_host_orders,
        hosts.HostOrders(
            host_id="h1", draining=True, reason="new disks", requested_by="ops", ordered_at=NOW
        ),
    ),
    (
        hosts.decode_host_loss,
        hosts.HostLoss(
            host_id="h1", reason="burnt", requested_by="ops", declared_at=NOW, automatic=True
        ),
    ),
    (progress.decode_host_progress, progress.HostProgress(complete_ms={"h1": 1000})),
    (hosts.decode_customer, hosts.Customer(customer_id="acme", created_at=NOW)),
    (
        hosts.decode_operation,
        hosts.Operation(
            operation_id=new_id(), customer_id="acme", vm_id=new_id(), host_id="h1", verb="boot",
            status=hosts.OperationStatus.FAILED,
            error=ErrorInfo(code=ErrorCode.NO_CAPACITY, message="full"),
            created_at=NOW, deadline=NOW,
        ),
    ),
    (usage.decode_usage_query, usage.UsageQuery(start=NOW, end=NOW + timedelta(days=1))),
    (
        usage.decode_usage_reply,
        usage.UsageReply(error=ErrorInfo(code=ErrorCode.UNAVAILABLE, message="away")),
    ),
]  # fmt: skip

DECODERS = list(dict.fromkeys(decode for decode, _ in MESSAGES))
_ids = [type(message).__name__ for _, message in MESSAGES]


@pytest.mark.parametrize(("decode", "message"), MESSAGES, ids=_ids)
def test_a_message_reads_back(decode: Callable[[bytes], Any], message: Any) -> None:
    """Encoding and decoding is the identity, and equal messages are equal bytes."""
    data = encode(message)
    assert decode(data) == message
    assert encode(decode(data)) == data


@pytest.mark.parametrize(("decode", "message"), MESSAGES, ids=_ids)
def test_an_old_reader_reads_a_newer_message(decode: Callable[[bytes], Any], message: Any) -> None:
    """Fields that this version does not know are passed over."""
    newer = json.loads(encode(message)) | {"added_in_a_later_version": {"x": [1, 2]}}
    assert decode(json.dumps(newer).encode()) == message


@pytest.mark.parametrize(("decode", "message"), MESSAGES, ids=_ids)
def test_a_new_reader_reads_an_older_message(decode: Callable[[bytes], Any], message: Any) -> None:
    """Every field that has a default may be missing."""
    fields = {f.name: f for f in msgspec.structs.fields(message)}
    optional = [name for name, f in fields.items() if not f.required]
    older = {k: v for k, v in json.loads(encode(message)).items() if k not in optional}
    decoded = decode(json.dumps(older).encode())
    assert {n: getattr(decoded, n) for n in fields if n not in optional} == {
        n: getattr(message, n) for n in fields if n not in optional
    }


@pytest.mark.parametrize(("decode", "message"), MESSAGES, ids=_ids)
def test_a_missing_required_field_is_named(decode: Callable[[bytes], Any], message: Any) -> None:
    """The error says which field; nothing else is raised."""
    whole = json.loads(encode(message))
    for field in msgspec.structs.fields(message):
        if field.required:
            less = {k: v for k, v in whole.items() if k != field.name}
            with pytest.raises(MalformedMessageError, match=field.name):
                decode(json.dumps(less).encode())


@given(st.sampled_from(DECODERS), st.binary(max_size=300))
def test_garbage_raises_the_documented_error_only(
    decode: Callable[[bytes], Any], data: bytes
) -> None:
    """No bytes that are no JSON object raise anything but MalformedMessageError."""
    with suppress(ValueError):
        assume(not isinstance(json.loads(data), dict))
    with pytest.raises(MalformedMessageError):
        decode(data)


@given(
    st.sampled_from(MESSAGES),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    ),
    st.data(),
)
def test_a_field_of_any_value_is_taken_or_refused(
    pair: tuple[Callable[[bytes], Any], Any], value: Any, data: st.DataObject
) -> None:
    """One field replaced by anything: a valid message or the documented error."""
    decode, message = pair
    whole = json.loads(encode(message))
    whole[data.draw(st.sampled_from(sorted(whole)))] = value
    try:
        decode(json.dumps(whole).encode())
    except MalformedMessageError as error:
        assert error.reason in {"invalid_message", "not_json"}  # noqa: PT017


def test_deep_nesting_is_refused() -> None:
    """A message of a hundred thousand brackets ends no reader."""
    for data in (b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(MalformedMessageError):
            commands.decode_command(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "../etc/passwd"), ("image", "tiny\n"), ("vcpus", 0), ("vcpus", 33),
        ("vcpus", 1.5), ("vcpus", "2"), ("memory_mib", 15), ("memory_mib", 2**40),
        ("disk_mib", -1), ("kernel_args", {"init": "/bin/sh"}), ("kernel_args", {"A": "1"}),
        ("kernel_args", {f"a{i}": "1" for i in range(17)}), ("labels", {"x": "a b"}),
    ],
)  # fmt: skip
def test_a_spec_outside_its_limits_is_refused(field: str, value: object) -> None:
    """Paths, spaces, sizes beyond the limits and wrong types have no way in."""
    whole = json.loads(encode(_command(commands.CreateVm, spec=SPEC)))
    whole["spec"][field] = value
    with pytest.raises(MalformedMessageError, match=field):
        commands.decode_command(json.dumps(whole).encode())


def test_a_time_without_a_zone_is_refused() -> None:
    """Every instant says its offset."""
    whole = json.loads(encode(_command(commands.BootVm))) | {"deadline": "2026-01-01T00:00:00"}
    with pytest.raises(MalformedMessageError, match="deadline"):
        commands.decode_command(json.dumps(whole).encode())


def test_states_keep_their_numbers() -> None:
    """The numbers are on the wire and in the store: appended to, never changed."""
    assert [s.value for s, _ in sorted(vms.STATE_NUMBERS.items(), key=lambda p: p[1])] == [
        "pending", "creating", "created", "booting", "running", "paused", "stopping", "stopped",
        "deleting", "deleted", "failed",
    ]  # fmt: skip


def test_every_state_can_end_and_deleted_is_the_end() -> None:
    """From each state some way leads to deleted, and none out of it."""
    assert not vms.TRANSITIONS[vms.VmState.DELETED]
    for start in vms.VmState:
        reached, queue = {start}, [start]
        while queue:
            for state in vms.TRANSITIONS[queue.pop()] - reached:
                reached.add(state)
                queue.append(state)
        assert vms.VmState.DELETED in reached


def test_an_adjustment_of_an_earlier_version_is_one_of_late_frames() -> None:
    """It says nothing of its cause."""
    told = (
        b'{"type":"metering_adjusted","event_id":"01a226b7-34b5-7184-8ad1-248c2b4df60a",'
        b'"at":"2026-01-01T00:00:00Z","host_id":"h1","lost_at":"2026-01-01T00:00:00Z",'
        b'"first_tick":"2026-01-01T00:00:00Z","last_tick":"2026-01-01T00:00:00Z",'
        b'"frames":1,"rows":2}'
    )
    event = events.decode_host_event(told)
    assert isinstance(event, events.MeteringAdjusted)
    assert (event.cause, event.replay_id, event.uncertain) == ("late", "", False)
    # An earlier reader wants what it knows to be there.
    again = encode(msgspec.structs.replace(event, cause="replay", replay_id="r1"))
    assert msgspec.json.decode(again)["lost_at"] == "2026-01-01T00:00:00Z"
