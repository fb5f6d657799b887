"""The flood on a pipeline of its own: it passes where all is well, and only there."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from runtime.bus import Bus
from tests.load.flood.__main__ import main
from tests.load.flood.flood import flood
from tests.load.flood.host import FloodHost
from tests.load.flood.plan import Plan
from tests.load.flood.posting import Letter, Post
from tests.support.stack import metering_stack

PLAN = Plan(hosts=3, vms=5, seconds=2.0)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    async with metering_stack(tmp_path / "state") as stack, stack.bus() as connected:
        yield connected


async def run(bus: Bus, plan: Plan, **more: Any) -> dict[str, Any]:
    """A flood that tells nobody of its progress."""
    with Progress(disable=True) as progress:
        return await flood(bus, plan, progress, **more)


async def test_whatever_goes_wrong_on_the_way_the_bill_is_right(bus: Bus) -> None:
    """Twice, late, in another order, between rubbish, from a host with a wrong clock."""
    plan = dataclasses.replace(
        PLAN,
        seconds=4.0,
        duplicates=0.2,
        reorder=0.2,
        late=0.02,
        malformed=0.1,
        skew_s=600,
        step_s=3600,
        burst=True,
    )
    report = await run(bus, plan)
    assert report["problems"] == []
    assert report["conserved"]
    sent = report["sent"]
    assert sent["samples"] == plan.samples == 3 * 5 * 40
    assert min(sent["duplicates"], sent["reordered"], sent["rubbish"]) > 0
    assert sum(report["rejected"].values()) == sent["rubbish"]
    lag_ms = report["lag_ms"]
    assert 0 < lag_ms["p50"] <= lag_ms["p90"] <= lag_ms["p99"] <= lag_ms["p999"] <= lag_ms["max"]
    # All frames but those that were late or out of order on purpose, of wrong clocks too.
    assert lag_ms["count"] == sent["frames"] - sent["late"] - sent["reordered"]
    assert lag_ms["max"] < 30_000


async def test_it_says_so_if_something_is_lost_or_misbilled(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that nobody stores is missing; a VM with another bill than its counters shows."""
    send = Post.send

    async def forgetful(post: Post, letter: Letter) -> None:
        if not (letter.msg_id.endswith(":7") and letter.subject.endswith("-0")):
            await send(post, letter)

    monkeypatch.setattr(Post, "send", forgetful)
    lost = await run(bus, PLAN, standstill_s=3.0)
    assert not lost["conserved"]
    assert (lost["missing"], lost["invented"], lost["misbilled"]) == (PLAN.vms, 0, 0)
    assert f"{PLAN.ticks - 1} of {PLAN.ticks} samples" in lost["problems"][0]

    monkeypatch.setattr(Post, "send", send)
    truth = FloodHost.truth

    def one_byte_more(host: FloodHost) -> dict[Any, dict[str, int]]:
        return {
            vm: {**counters, "disk_read_bytes": counters["disk_read_bytes"] + 1}
            for vm, counters in truth(host).items()
        }

    monkeypatch.setattr(FloodHost, "truth", one_byte_more)
    wrong = await run(bus, PLAN)
    assert (wrong["missing"], wrong["misbilled"]) == (0, PLAN.hosts * PLAN.vms)
    assert not wrong["conserved"]


def test_a_plan_that_cannot_be_carried_out_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In words, before anything is connected."""
    for words, reason in (
        (["--hosts", "0"], "--hosts: at least 1 and at most 1,000,000, not 0"),
        (["--hosts", "2000", "--vms", "1000"], "at most 1,000,000 VMs in all, not 2,000,000"),
        (["--seconds", "nan"], "--seconds: more than 0 and at most 86,400, not nan"),
        (["--hz", "0"], "--hz: more than 0"),
        (["--ramp-s", "-1"], "--ramp-s: at least 0"),
        (["--late", "1.5"], "--late: at least 0 and at most 1, not 1.5"),
        (["--late", "0.7", "--reorder", "0.7"], "so at most 1 together, not 1.4"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err


def test_without_a_bus_it_says_where_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every command does."""
    monkeypatch.delenv("DECISEC_NATS_URL", raising=False)
    assert main(["--state-dir", str(tmp_path)]) == 3
    assert "decisec dev" in capsys.readouterr().err
