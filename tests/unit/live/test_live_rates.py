"""Live rates: of the last second, of one incarnation, and never of somebody else's VMs."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from rich.console import Console

from decisec.live.api_feed import as_sample
from decisec.live.board import line, table
from decisec.live.quantities import cpu_seconds, percent, rate, seconds, size
from decisec.live.rates import FORGET_MS, Live, VmRates
from decisec.live.samples import samples
from schemas.frames import EnrichedFrame, FramesStored, SampleFlag
from schemas.ids import new_id
from schemas.live import LiveSample
from schemas.vms import METERS
from tests.support.store import Reading, enriched

BASE_MS = 1_760_000_000_000
VM = new_id()


def tick(
    number: int, *, flags: int = 0, incarnation: int = 1, customer: str = "acme", vm_id: UUID = VM
) -> EnrichedFrame:
    """A VM that uses half a CPU and writes 1000 bytes per tick."""
    counters = {
        "uptime_ms": number * 100,
        "cpu_ns": number * 50_000_000,
        "disk_write_bytes": number * 1000,
    }
    reading = Reading(vm_id, BASE_MS + number * 100, incarnation, flags, counters, customer)
    return enriched([reading], seq=number)


def fed(frames: list[EnrichedFrame], customers: frozenset[str] | None = None) -> Live:
    """A board that got these frames on time."""
    live = Live(customers)
    for frame in frames:
        live.take(frame, frame.tick_ms - BASE_MS)
    return live


def only(live: Live, now_ms: int) -> VmRates:
    (rates,) = live.rates(now_ms)
    return rates


def test_rates_are_those_of_the_last_second() -> None:
    """Half a CPU, 10 kB/s, ten samples a second."""
    rates = only(fed([tick(n) for n in range(30)]), 2900)
    assert rates.cpu_ratio == pytest.approx(0.5)
    assert rates.disk_write_bytes_per_s == pytest.approx(10_000)
    assert rates.disk_read_bytes_per_s == 0
    assert rates.samples_per_s == 10
    assert (rates.state, rates.customer, rates.simulated) == ("running", "acme", False)


def test_old_and_repeated_ticks_change_nothing() -> None:
    """A replay on the stream does not turn the board back."""
    frames = [tick(n) for n in range(12)]
    assert only(fed(frames), 1100) == only(fed([*frames, frames[3], frames[11]]), 1100)


def test_a_new_incarnation_starts_its_own_rates() -> None:
    """Counters restart at zero; no rate is negative."""
    live = fed([tick(n) for n in range(5)])
    restarted = msgspec.structs.replace(tick(0, incarnation=2), tick_ms=BASE_MS + 600, seq=6)
    live.take(restarted, 600)
    assert only(live, 600).cpu_ratio == 0


def test_a_vm_that_stopped_says_so_and_leaves_the_board_later() -> None:
    """Its last sample is shown for a while, without rates."""
    live = fed([*(tick(n) for n in range(9)), tick(9, flags=SampleFlag.FINAL)])
    rates = only(live, 1000)
    assert (rates.state, rates.cpu_ratio) == ("stopped", 0)
    assert only(live, 900 + FORGET_MS - 1).samples_per_s == 0
    assert live.rates(900 + FORGET_MS) == []


def test_other_customers_are_not_shown() -> None:
    """Only those that were asked for."""
    frames = [tick(0), tick(0, customer="globex", vm_id=new_id())]
    assert [r.customer for r in fed(frames, frozenset({"globex"})).rates(0)] == ["globex"]
    assert [r.customer for r in fed(frames).rates(0)] == ["acme", "globex"]


def test_the_lag_is_the_median_of_what_was_stored() -> None:
    """Unknown until the first flush."""
    live = Live()
    assert live.lag_ms is None
    live.stored(FramesStored(batch_id="b", rows=3, frames=3, stored_at_ns=1, lags_ms=(10, 300, 20)))
    assert live.lag_ms == 20


def rendered(live: Live, names: dict[UUID, str]) -> str:
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(table(live.rates(0), live.lag_ms, names, title="VMs"))
    return captured.get()


def test_simulated_numbers_say_so_wherever_they_are_shown() -> None:
    """In the table's title and in the line."""
    live = fed([tick(0, flags=SampleFlag.SIMULATED)])
    assert "(simulated)" in rendered(live, {})
    assert "simulated" in line(live.rates(0), None, {})
    assert "simulated" not in rendered(fed([tick(0)]), {})


def test_a_vm_is_shown_by_its_name_where_it_has_one() -> None:
    """The id otherwise."""
    live = fed([tick(0)])
    assert "web" in rendered(live, {VM: "web"})
    assert str(VM) in rendered(live, {VM: ""})
    assert line([], None, {}) == "no VM has sent a sample yet"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(1536), "1.5 KiB"),
        (size(3 * 1024 * 1024), "3.0 MiB"),
        (rate(0), "-"),
        (rate(2048), "2.0 KiB/s"),
        (seconds(61_005), "61.005 s"),
        (cpu_seconds(1_999_999), "0.001 s"),
        (percent(1.5), "150.0 %"),
    ],
)
def test_amounts_read_well(shown: str, text: str) -> None:
    """Units are named; what is billed is cut, never rounded up."""
    assert shown == text


def test_the_apis_samples_say_the_same_as_frames() -> None:
    """One board, whichever way they come."""
    flags = int(SampleFlag.FINAL | SampleFlag.SIMULATED)
    for frame in (tick(7), tick(8, flags=flags, incarnation=2)):
        (sample,) = samples(frame)
        told = LiveSample(
            vm_id=sample.vm_id,
            at=datetime.fromtimestamp(frame.tick_ms // 1000, UTC),
            incarnation=sample.incarnation,
            state=sample.state.value if sample.state else "",
            final=SampleFlag.FINAL in sample.flags,
            simulated=SampleFlag.SIMULATED in sample.flags,
            vcpus=1,
            memory_mib=128,
            mem_bytes=sample.mem_bytes,
            **dict(zip(METERS, sample.counters, strict=True)),
        )
        assert as_sample(told, sample.customer) == sample
    unknown = msgspec.structs.replace(told, state="of-a-later-version", final=False)
    assert as_sample(unknown, "acme").state is None
