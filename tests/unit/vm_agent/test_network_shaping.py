"""A VM's bucket in the kernel's own units, whatever its limit is."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from ipaddress import IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import new_id
from vm_agent.network.attachment import Attachment
from vm_agent.network.layout import Layout
from vm_agent.network.leases import Ranges
from vm_agent.network.reasons import Reason
from vm_agent.network.rules.entries import LARGEST_PACKET, entries, rate_of
from vm_agent.network.shaping import MOST_BYTES_PER_S, Limit, limit_of
from vm_agent.network.standing import read_hooks

TAP = "vm0000002a"
LIMITS = st.integers(1, 100_000_000_000)
FRAME = 1514
TICK_NS = 64


@given(LIMITS)
def test_a_bucket_holds_what_a_second_allows_and_one_frame_at_least(limit: int) -> None:
    """Never more than was asked for in the long run, and in numbers that the kernel takes."""
    made = limit_of(TAP, limit, 1500)
    assert made.bytes_per_s == min(limit, MOST_BYTES_PER_S)
    bucket = Fraction(made.bytes_per_s * made.bucket_ticks * TICK_NS, 10**9)
    if limit >= FRAME:
        assert bucket == made.bytes_per_s
    elif limit > 5:
        assert FRAME <= bucket <= FRAME + 1
    assert made.bucket_ticks < 1 << 32
    assert 2 * 65_536 <= made.queue_bytes < 1 << 32


def test_what_waits_is_a_tenth_of_a_second() -> None:
    """And not without end: it is the host's memory."""
    assert limit_of(TAP, 10_000_000, 1500).queue_bytes == 1_000_000
    assert limit_of(TAP, 10_000_000_000, 1500).queue_bytes == 2 << 20
    assert limit_of(TAP, 1_000_000, 1500) == Limit(TAP, 1_000_000, 15_625_000, 128 << 10)


def attachment(limit: int) -> Attachment:
    """A VM that may send so much."""
    return Attachment(
        slot=0x2A,
        vm_id=new_id(),
        customer_id="acme",
        tenant=7,
        mac="06:00:00:00:00:2a",
        tx_bytes_per_s=limit,
    )


def hook_of(limit: int) -> str:
    """A tap's chain."""
    found = entries(attachment(limit))
    (chain,) = [entry for entry in found if entry.family == "netdev" and entry.body]
    assert chain.value == rate_of(limit)
    return chain.body


@given(LIMITS)
def test_what_a_chain_lets_through_is_read_as_it_was_written(limit: int) -> None:
    """In the units that nft(8) chooses, and with a bucket that any packet fits into."""
    rate, burst = map(int, rate_of(limit).split())
    assert rate == min(limit, MOST_BYTES_PER_S)
    assert rate + burst >= LARGEST_PACKET or burst == 0
    lines = hook_of(limit).replace("; goto vm", "\ngoto vm").replace("drop; limit", "drop;\nlimit")
    listed = "\n\t\t".join(lines.splitlines())
    for text in (listed, _in_larger_units(listed)):
        (found,) = read_hooks(f"\tchain {TAP} {{\n\t\t{text}\n\t}}\n")
        assert found.value == rate_of(limit)


def _in_larger_units(text: str) -> str:
    words = text.split(" ")
    for at, word in enumerate(words):
        if word.startswith("bytes") and words[at - 1].isdigit():
            number = int(words[at - 1])
            for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
                if number and number % size == 0:
                    words[at - 1], words[at] = str(number // size), unit + word
                    break
    return " ".join(words)


def test_a_chain_without_its_limit_is_another_one() -> None:
    """So is one without its hook, and one that does more than it should."""
    head = f'type filter hook ingress device "{TAP}" priority -500; policy drop;'
    limit = "limit rate over 1 mbytes/second goto drop_rate_tx"
    for lines, value in (
        ((head, "goto vm"), ""),
        ((head, limit, "goto vm"), f"{1 << 20} 0"),
        ((head, limit), "changed"),
        ((head,), "changed"),
        ((head, "accept", limit, "goto vm"), "changed"),
        ((head, limit.replace("over ", ""), "goto vm"), "changed"),
        ((head.replace(f' device "{TAP}"', ""), "goto vm"), "unhooked"),
    ):
        text = "".join(f"\t\t{line}\n" for line in lines)
        (found,) = read_hooks(f"\tchain {TAP} {{\n{text}\t}}\n")
        assert found.value == value
    assert rate_of(0) == ""
    assert "limit" not in hook_of(0)


def test_a_vm_without_limits_costs_nothing() -> None:
    """No message more when it is connected, and no rule more for its packets."""
    layout = Layout(identity="a", ranges=Ranges(IPv6Network("2001:db8::/56")))
    free = attachment(0)
    assert not [item for item in layout.behind(free) if isinstance(item, Limit)]
    assert len(layout.behind(replace(free, rx_bytes_per_s=1))) == len(layout.behind(free)) + 1
    assert entries(free) == entries(replace(free, rx_bytes_per_s=1))
    assert len(entries(free)) == len(entries(attachment(1)))


def test_whoever_reaches_a_limit_is_no_suspect() -> None:
    """TCP finds out by drops how fast it may be."""
    assert not Reason.RATE_TX.suspicious
    assert not Reason.RATE_RX.suspicious
