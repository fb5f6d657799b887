"""What the pipeline makes of honest, broken and hostile frames."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from collector.messages import MAX_PAYLOAD_BYTES, Now
from schemas.events import GapClosed, GapOpened, HostHeard, HostSilent, decode_host_event
from schemas.frames import (
    COLUMNS,
    HEADER_DETAIL,
    HEADER_ORIGIN_SEQUENCE,
    HEADER_ORIGIN_STREAM,
    HEADER_REASON,
    MAX_FRAME_BYTES,
    MAX_ROWS,
    RejectReason,
    encode_frame,
)
from schemas.ids import new_id
from schemas.subjects import METRICS_RAW, metrics_raw, vm_key
from schemas.units import MAX_COUNTER, NS_PER_MS, NS_PER_S, TICK_MS
from schemas.vms import METERS
from tests.support.feed import Feed, enriched_of, ids_of, rejected_of, uptime
from tests.support.frames import BASE_MS, HOST, Row, frame, record

RUN = new_id()
VM, OTHER, THIRD = new_id(), new_id(), new_id()


def test_good_rows_leave_with_their_owners() -> None:
    """Every column stays as it came; customer, pool, plan, vCPUs and memory are added."""
    feed = Feed(
        record(VM, customer="acme", vcpus=2, memory_mib=256, pool="gold", price_plan="p1"),
        record(OTHER, customer="umbrella", vcpus=4, memory_mib=512),
        record(THIRD, customer="acme"),
    )
    raw = frame([Row(OTHER, uptime(5)), Row(VM, uptime(7)), Row(THIRD)], run_id=RUN)
    raw = msgspec.structs.replace(raw, refresh_ms=500)
    outcome = feed(raw, at_ms=30)
    enriched = enriched_of(outcome)
    assert [getattr(enriched, c.name) for c in COLUMNS] == [getattr(raw, c.name) for c in COLUMNS]
    assert (enriched.msg_id, enriched.refresh_ms) == (raw.msg_id, 500)
    assert enriched.collected_at_ns == (BASE_MS + 30) * NS_PER_MS
    owner = np.frombuffer(enriched.customer_index, "<u2")
    assert [enriched.customers[i] for i in owner] == ["umbrella", "acme", "acme"]
    pool = np.frombuffer(enriched.pool_index, "<u2")
    assert [enriched.pools[i] for i in pool] == ["default", "gold", "default"]
    plan = np.frombuffer(enriched.price_plan_index, "<u2")
    assert [enriched.price_plans[i] for i in plan] == ["default", "p1", "default"]
    assert np.frombuffer(enriched.vcpus, "<u2").tolist() == [4, 2, 1]
    assert np.frombuffer(enriched.memory_mib, "<u4").tolist() == [512, 256, 128]
    assert (outcome.samples, outcome.rejected, outcome.lag_ns) == (3, {}, 30 * NS_PER_MS)


def test_an_empty_frame_passes() -> None:
    """A frame without VMs still carries its number and tick."""
    enriched = enriched_of(Feed()(frame([], run_id=RUN, seq=4)))
    assert (enriched.rows, enriched.seq, enriched.tick_ms) == (0, 4, BASE_MS + 400)


def test_a_new_record_is_used_from_the_next_frame_on() -> None:
    """A cached layout is dropped when a record of its host changes."""
    feed = Feed(record(VM, price_plan="old"))
    assert enriched_of(feed(frame([Row(VM)], run_id=RUN))).price_plans == ("old",)
    feed.pipeline.specs.change(vm_key("acme", VM), record(VM, price_plan="new"))
    assert enriched_of(feed(frame([Row(VM)], run_id=RUN, seq=1))).price_plans == ("new",)


def test_an_unknown_vm_is_waited_for_and_then_found() -> None:
    """The frame comes again until the record is there; nothing is refused meanwhile."""
    feed = Feed(record(OTHER))
    raw = frame([Row(OTHER), Row(VM)], run_id=RUN)
    waiting = feed(raw)
    assert waiting.wait
    assert waiting.enriched is None
    assert not waiting.rejected
    feed.pipeline.specs.change(vm_key("acme", VM), record(VM))
    assert enriched_of(feed(raw, at_ms=100, redelivered=True)).rows == 2


def test_an_unknown_vm_is_refused_after_the_wait_and_taken_once_known() -> None:
    """Only its row is refused; a record that comes later is still found."""
    feed = Feed(record(OTHER))
    rows = [Row(VM), Row(OTHER)]
    assert feed(frame(rows, run_id=RUN)).wait
    outcome = feed(frame(rows, run_id=RUN), at_ms=2000, redelivered=True)
    assert rejected_of(outcome) == {RejectReason.UNKNOWN_VM: [VM]}
    assert ids_of(enriched_of(outcome)) == [OTHER]
    assert not feed(frame(rows, run_id=RUN, seq=1), at_ms=2100).wait
    feed.pipeline.specs.change(vm_key("acme", VM), record(VM))
    assert ids_of(enriched_of(feed(frame(rows, run_id=RUN, seq=2), at_ms=2200))) == [VM, OTHER]


def test_a_vm_of_another_host_is_foreign() -> None:
    """A host can report only VMs that were placed on it; its word is waited over only once."""
    feed = Feed(record(VM), record(OTHER, host="host-b"))
    assert feed(frame([Row(VM), Row(OTHER)], run_id=RUN)).wait
    for seq in range(2):
        outcome = feed(frame([Row(VM), Row(OTHER)], run_id=RUN, seq=seq), at_ms=2000 + 100 * seq)
        assert rejected_of(outcome) == {RejectReason.FOREIGN_VM: [OTHER]}
        assert ids_of(enriched_of(outcome)) == [VM]


def test_each_host_of_a_moved_vm_reports_what_ran_there() -> None:
    """Late rows of a former host are good, and so are those after a return; no others."""
    spans = {"host-a": (1, 2, 6, 7), "host-b": (3,), "host-c": (4, 5)}
    moved = record(VM, host="host-a").moved("host-b", last_incarnation=2, left_at=None)
    moved = moved.moved("host-c", last_incarnation=3, left_at=None)
    moved = moved.moved("host-a", last_incarnation=5, left_at=None)
    feed = Feed(moved)
    for host in (*spans, "host-d"):
        rows = [Row(VM, incarnation=number) for number in range(1, 8)]
        sent, subject = frame(rows, run_id=RUN, host=host), metrics_raw(host)
        if feed(sent, subject=subject).wait:
            outcome = feed(sent, subject=subject, at_ms=2000)
        else:
            outcome = feed(sent, subject=subject)
        lawful = spans.get(host, ())
        kept = np.frombuffer(enriched_of(outcome).incarnations, "<u4").tolist()
        assert kept == list(lawful)
        assert sum(outcome.rejected.values()) == 7 - len(lawful)
        assert set(outcome.rejected) == {RejectReason.FOREIGN_VM}


def test_a_move_counts_from_the_next_frame_on() -> None:
    """Layouts of both hosts are made anew: good a moment ago is refused, and vice versa."""
    before = record(VM)
    feed = Feed(before)
    later = frame([Row(VM, incarnation=2)], run_id=RUN)
    assert enriched_of(feed(later)).rows == 1
    there = frame([Row(VM, incarnation=2)], run_id=RUN, host="host-b")
    assert feed(there, subject=metrics_raw("host-b")).wait
    after = before.moved("host-b", last_incarnation=1, left_at=None)
    feed.pipeline.specs.change(vm_key("acme", VM), after)
    # The record was on its way: nothing of the first frame of the new host is lost.
    assert enriched_of(feed(there, subject=metrics_raw("host-b"), at_ms=100)).rows == 1
    assert feed(later, at_ms=200).wait
    assert rejected_of(feed(later, at_ms=2200)) == {RejectReason.FOREIGN_VM: [VM]}
    late = frame([Row(VM)], run_id=RUN, seq=1)
    assert enriched_of(feed(late, at_ms=2300)).rows == 1
    back = after.moved(HOST, last_incarnation=1, left_at=None)
    feed.pipeline.specs.change(vm_key("acme", VM), back)
    assert enriched_of(feed(later, at_ms=2400)).rows == 1


def test_a_word_against_a_record_is_not_waited_over_where_no_later_record_can_help() -> None:
    """The record says already whose the incarnation is."""
    feed = Feed(record(VM).moved("host-b", last_incarnation=3, left_at=None))
    outcome = feed(
        frame([Row(VM, incarnation=3)], run_id=RUN, host="host-b"), subject=metrics_raw("host-b")
    )
    assert rejected_of(outcome) == {RejectReason.FOREIGN_VM: [VM]}


def test_a_record_of_another_customer_cannot_take_a_vm_over() -> None:
    """The first owner of a VM id keeps it."""
    feed = Feed(record(VM, customer="acme"))
    feed.pipeline.specs.change(vm_key("evil", VM), record(VM, customer="evil"))
    feed.pipeline.specs.change(vm_key("evil", VM), None)
    feed.pipeline.specs.change("no key", record(VM, customer="evil"))
    assert enriched_of(feed(frame([Row(VM)], run_id=RUN))).customers == ("acme",)


def test_the_second_row_of_one_incarnation_is_a_duplicate() -> None:
    """Two incarnations of a VM in one frame are legal, the same one twice is not."""
    feed = Feed(record(VM))
    rows = [Row(VM, uptime(1)), Row(VM, incarnation=2), Row(VM, uptime(2))]
    outcome = feed(frame(rows, run_id=RUN))
    assert rejected_of(outcome) == {RejectReason.DUPLICATE_VM: [VM]}
    good = enriched_of(outcome)
    assert np.frombuffer(good.incarnations, "<u4").tolist() == [1, 2]
    assert np.frombuffer(good.uptime_ms, "<u8").tolist() == [1, 0]


@pytest.mark.parametrize("meter", METERS)
def test_a_counter_that_falls_refuses_its_row_only(meter: str) -> None:
    """The next honest sample is measured against the last good one and passes."""
    feed = Feed(record(VM), record(OTHER))
    start = dict.fromkeys(METERS, 1000)
    feed(frame([Row(VM, start), Row(OTHER, start)], run_id=RUN))
    bad = frame([Row(VM, start | {meter: 999}), Row(OTHER, start)], run_id=RUN, seq=1)
    outcome = feed(bad)
    assert rejected_of(outcome) == {RejectReason.COUNTER_DECREASED: [VM]}
    assert ids_of(enriched_of(outcome)) == [OTHER]
    after = feed(frame([Row(VM, start), Row(OTHER, start)], run_id=RUN, seq=2))
    assert ids_of(enriched_of(after)) == [VM, OTHER]


@pytest.mark.parametrize("meter", [*METERS, "mem_bytes"])
def test_a_counter_beyond_63_bits_is_an_overflow(meter: str) -> None:
    """`MAX_COUNTER` itself is legal for what has no other limit."""
    feed = Feed(record(VM), record(OTHER))
    good = Row(OTHER, {"net_rx_bytes": MAX_COUNTER})
    bad = (
        Row(VM, mem_bytes=MAX_COUNTER + 1)
        if meter == "mem_bytes"
        else Row(VM, {meter: MAX_COUNTER + 1})
    )
    for seq in range(2):
        outcome = feed(frame([bad, good], run_id=RUN, seq=seq))
        assert rejected_of(outcome) == {RejectReason.COUNTER_OVERFLOW: [VM]}
        assert ids_of(enriched_of(outcome)) == [OTHER]


def test_cpu_beyond_the_vcpus_and_the_overhead_is_implausible() -> None:
    """One vCPU and two more threads in 100 ms, plus what clocks may be apart: not more."""
    for cpu_ns, good in ((610 * NS_PER_MS, True), (610 * NS_PER_MS + 1, False)):
        feed = Feed(record(VM))
        feed(frame([Row(VM)], run_id=RUN))
        outcome = feed(frame([Row(VM, uptime(100, cpu_ns=cpu_ns))], run_id=RUN, seq=1))
        assert (outcome.samples == 1) is good
        assert set(outcome.rejected) == (set() if good else {RejectReason.CPU_IMPLAUSIBLE})


def test_cpu_is_measured_to_the_reading_not_to_the_tick() -> None:
    """A sampler held up for a second reads a second's CPU more."""
    feed = Feed(record(VM))
    feed(frame([Row(VM)], run_id=RUN))
    busy = Row(VM, uptime(1100, cpu_ns=3_300 * NS_PER_MS))
    assert feed(frame([busy], run_id=RUN, seq=1, read_late_ms=1000), at_ms=1100).samples == 1


def test_the_first_sample_seen_is_measured_from_its_start() -> None:
    """A collector that starts anew takes old incarnations as they are, within their uptime."""
    day = 86_400_000
    honest, greedy = Feed(record(VM)), Feed(record(VM))
    assert honest(frame([Row(VM, uptime(day, cpu_ns=day * NS_PER_MS))], run_id=RUN)).samples == 1
    outcome = greedy(frame([Row(VM, uptime(day, cpu_ns=4 * day * NS_PER_MS))], run_id=RUN))
    assert outcome.rejected == {RejectReason.CPU_IMPLAUSIBLE: 1}


def test_what_ran_before_its_baseline_was_sent_is_measured_by_its_uptime() -> None:
    """The agent died before the first frame; back after 10 s, it sends baseline and end at once."""
    for cpu_ns, good in ((30_000 * NS_PER_MS, True), (31_000 * NS_PER_MS, False)):
        feed = Feed(record(VM))
        feed(frame([Row(VM)], run_id=RUN))
        outcome = feed(frame([Row(VM, uptime(10_000, cpu_ns=cpu_ns))], run_id=RUN, seq=1))
        assert outcome.rejected == ({} if good else {RejectReason.CPU_IMPLAUSIBLE: 1})


def test_a_late_frame_with_lower_counters_is_no_violation() -> None:
    """Replayed frames carry what was true then; a late one that is ahead of now is refused."""
    feed = Feed(record(VM))
    feed(frame([Row(VM, uptime(900))], run_id=RUN, seq=9))
    assert feed(frame([Row(VM, uptime(500))], run_id=RUN, seq=5)).samples == 1
    assert feed(frame([Row(VM, uptime(901))], run_id=RUN, seq=6)).rejected == {
        RejectReason.COUNTER_DECREASED: 1
    }


def test_a_clock_set_back_between_two_runs_refuses_nothing() -> None:
    """The new run's ticks lie before the old run's last one while the counters go on."""
    feed = Feed(record(VM))
    feed(frame([Row(VM, uptime(5000))], run_id=RUN, seq=0, tick_ms=BASE_MS + 4000))
    for seq in range(60):
        tick_ms = BASE_MS + 1000 + seq * TICK_MS
        row = Row(VM, uptime(5100 + seq * TICK_MS, net_rx_bytes=seq))
        outcome = feed(frame([row], run_id=OTHER, seq=seq, tick_ms=tick_ms), at_ms=7000)
        assert outcome.samples == 1, outcome.rejected


def test_a_tick_in_the_future_is_skew_and_the_past_is_not() -> None:
    """5 s ahead pass, 5.1 s do not; a frame of last month does."""
    feed = Feed(record(VM))
    assert feed(frame([Row(VM)], run_id=RUN, seq=50)).samples == 1
    skewed = feed(frame([Row(VM)], run_id=RUN, seq=51))
    assert skewed.enriched is None
    assert skewed.rejected == {RejectReason.CLOCK_SKEW: 1}
    month_ms = 30 * 86_400_000
    old = frame([Row(VM)], run_id=THIRD, tick_ms=BASE_MS - month_ms)
    assert feed(old).samples == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", RejectReason.NOT_MSGPACK),
        (b"\xc1", RejectReason.NOT_MSGPACK),
        (msgspec.msgpack.encode({"a": 1}), RejectReason.INVALID_FRAME),
        (bytes(MAX_FRAME_BYTES + 1), RejectReason.INVALID_FRAME),
        (encode_frame(frame([], run_id=RUN, tick_ms=BASE_MS + 1)), RejectReason.INVALID_FRAME),
        (encode_frame(frame([], run_id=RUN, host="host-b")), RejectReason.WRONG_HOST),
        (
            encode_frame(msgspec.structs.replace(frame([], run_id=RUN), version=2)),
            RejectReason.UNSUPPORTED_VERSION,
        ),
        (
            encode_frame(msgspec.structs.replace(frame([Row(VM)], run_id=RUN), cpu_ns=b"1")),
            RejectReason.BAD_SHAPE,
        ),
    ],
    ids=[
        "empty", "not-msgpack", "a-map", "too-large", "between-ticks", "another-host",
        "newer-version", "short-column",
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused_as_it_came(data: bytes, reason: RejectReason) -> None:
    """The bytes go to the rejects under their place in the stream, with the reason in headers."""
    outcome = Feed()(data)
    (message,) = outcome.side
    assert outcome.enriched is None
    assert message.subject == f"metrics.rejected.{reason}.{HOST}"
    assert message.payload == data
    assert message.msg_id == f"{METRICS_RAW}:1:{reason}"
    assert message.headers is not None
    assert message.headers[HEADER_REASON] == reason
    assert message.headers[HEADER_ORIGIN_STREAM] == METRICS_RAW
    assert message.headers[HEADER_ORIGIN_SEQUENCE] == "1"
    assert message.headers[HEADER_DETAIL].isprintable()


def test_a_subject_without_a_host_is_refused_under_unknown() -> None:
    """So is what is too large for the bus, cut to what the bus takes."""
    (message,) = Feed()(bytes(2 * MAX_PAYLOAD_BYTES), subject="metrics.raw.NO HOST").side
    assert message.subject == "metrics.rejected.invalid_frame.unknown"
    assert len(message.payload) == MAX_PAYLOAD_BYTES


def test_the_largest_legal_frame_still_fits_the_bus_once_enriched() -> None:
    """An agent's largest frame, each VM of another customer with the longest name."""
    vm_ids = [new_id() for _ in range(MAX_ROWS)]
    feed = Feed(*(record(v, customer=f"{i:063}"[-63:]) for i, v in enumerate(vm_ids)))
    outcome = feed(frame([Row(v) for v in vm_ids], run_id=RUN))
    assert outcome.samples == MAX_ROWS
    assert outcome.enriched is not None
    assert len(outcome.enriched.payload) <= MAX_PAYLOAD_BYTES


def test_gaps_and_silence_become_events() -> None:
    """A skipped number opens a gap, its frame closes it, a pause is told once and ended once."""
    feed = Feed()
    feed(frame([], run_id=RUN))
    (opened,) = feed(frame([], run_id=RUN, seq=2)).side
    assert isinstance(decode_host_event(opened.payload), GapOpened)
    (closed,) = feed(frame([], run_id=RUN, seq=1)).side
    assert isinstance(decode_host_event(closed.payload), GapClosed)
    told = feed.pipeline.watch(Now(BASE_MS * NS_PER_MS, 12 * NS_PER_S))
    assert isinstance(decode_host_event(told[-1].payload), HostSilent)
    assert feed.pipeline.watch(Now(BASE_MS * NS_PER_MS, 13 * NS_PER_S)) == []
    (heard,) = feed(frame([], run_id=RUN, seq=3), at_ms=12_500).side
    event = decode_host_event(heard.payload)
    assert isinstance(event, HostHeard)
    assert event.silent_ms == 12_500


def test_a_host_long_silent_is_forgotten() -> None:
    """Its state goes; when it comes back its frames pass as a new host's."""
    feed = Feed(record(VM))
    feed(frame([Row(VM, uptime(900))], run_id=RUN))
    feed.pipeline.watch(Now(BASE_MS * NS_PER_MS, 3602 * NS_PER_S))
    assert feed.pipeline.silence.hosts == 0
    outcome = feed(frame([Row(VM, uptime(900))], run_id=RUN, seq=77), at_ms=3_602_000)
    assert outcome.samples == 1
    assert outcome.side == []
