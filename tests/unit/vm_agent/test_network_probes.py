"""Probes of a VM's path: where they go, what answers them, and what is made of it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from schemas.ids import new_id
from schemas.network_checks import Outcome, Probed
from vm_agent.network.attachment import Attachment, Port
from vm_agent.network.differences import Differences
from vm_agent.network.layout import Layout
from vm_agent.network.leases import Ranges
from vm_agent.network.path_check import Facts, address_of, probes_of
from vm_agent.network.probes import (
    PROBER,
    PROBER_IPV4,
    Answer,
    Probe,
    answer_inside,
    answer_outside,
    ping,
    ping_from_outside,
)
from vm_agent.network.probing import STOPPED, Sent
from vm_agent.network.verdicts import findings, proven, stopped, summary

UPLINK = "0a:00:00:00:01:01"
RANGES = Ranges(IPv6Network("2001:db8:1::/56"), (IPv4Network("203.0.113.0/28"),))
LAYOUT = Layout(identity="x", ranges=RANGES, mtu=1500)
ONE = IPv6Network("2001:db8:1::7/128")
VM = Attachment(
    slot=7, vm_id=new_id(), customer_id="acme", tenant=1 << 20, mac="06:dc:00:00:00:07",
    addresses=(ONE,), ipv4=IPv4Address("203.0.113.5"), incarnation=1,
)  # fmt: skip
VARIANTS = (
    VM,
    replace(VM, ipv4=None, mtu=1280),
    replace(VM, quarantined=True),
    replace(VM, open_inbound=False),
    replace(VM, open_inbound=False, ports=(Port(protocol="tcp", first=1, last=65_535),)),
    replace(VM, addresses=(IPv6Network("2001:db8:1:7::/64"),)),
)


@pytest.mark.parametrize("vm", VARIANTS)
@pytest.mark.parametrize("layout", [LAYOUT, replace(LAYOUT, interface="eth1")])
def test_nothing_is_sent_to_any_address_but_the_vms_own(vm: Attachment, layout: Layout) -> None:
    """Or, of neighbour discovery, the group of it; and nothing is larger than its link."""
    probes = probes_of(vm, layout, UPLINK)
    assert probes
    for probe in probes:
        assert probe.packet_bytes <= min(vm.mtu, layout.mtu)
        if probe.probed is Probed.NEIGHBOUR:
            assert probe.data[8:24] == address_of(vm).packed
            assert probe.to in IPv6Network("ff02::1:ff00:0/104")
            continue
        assert probe.to in (address_of(vm), vm.ipv4)
        assert not (layout.interface and probe.outside)
        if probe.outside:
            six = isinstance(probe.to, IPv6Address)
            ends = (PROBER if six else PROBER_IPV4).packed + probe.to.packed
            assert probe.data[22:54] == ends if six else probe.data[26:34] == ends
    assert address_of(vm) in vm.addresses[0]


def test_what_is_to_be_stopped_follows_from_what_the_vm_asked_for() -> None:
    """All of a VM that is cut off; of a closed one what begins outside, but for its open ports."""
    passes = {
        vm: {probe.probed: probe.passes for probe in probes_of(vm, LAYOUT, UPLINK)}
        for vm in VARIANTS
    }
    assert set(passes[VARIANTS[0]].values()) == {True}
    assert set(passes[VARIANTS[2]].values()) == {False}
    closed = passes[VARIANTS[3]]
    assert {probed for probed, ok in closed.items() if not ok} == {
        Probed.OUTSIDE, Probed.OUTSIDE_IPV4, Probed.CLOSED_PORT,
    }  # fmt: skip
    assert Probed.OPEN_PORT not in closed
    every_port = passes[VARIANTS[4]]
    assert every_port[Probed.OPEN_PORT]
    assert Probed.CLOSED_PORT not in every_port


def echoed(probe: Probe) -> bytes:
    """The frame of a guest that answers a ping from outside."""
    frame = probe.data
    if isinstance(probe.to, IPv4Address):
        return frame[:26] + frame[30:34] + frame[26:30] + b"\0" + frame[35:]
    return frame[:22] + frame[38:54] + frame[22:38] + b"\x81" + frame[55:]


@pytest.mark.parametrize("to", [ONE.network_address, IPv4Address("203.0.113.5")])
def test_only_the_answer_of_the_vm_is_one(to: IPv6Address | IPv4Address) -> None:
    """Not the question, another's, a shorter one, nor one of another probe."""
    probe, other = (
        ping_from_outside(Probed.OUTSIDE, to, UPLINK, size=size) for size in (1280, 1280)
    )
    right = echoed(probe)
    assert answer_outside(probe, right) == Answer()
    at = 37 if isinstance(to, IPv6Address) else 29
    foreign = right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :]
    for wrong in (probe.data, echoed(other), right[:-1], foreign, b"", right[:20]):
        assert answer_outside(probe, wrong) is None
    inside = ping(Probed.GATEWAY, to)
    reply = bytes([129 if isinstance(to, IPv6Address) else 0]) + inside.data[1:]
    assert answer_inside(inside, reply, to) == Answer()
    assert answer_inside(inside, reply, to + 1) is None
    assert answer_inside(inside, inside.data, to) is None
    assert answer_inside(probe, reply, to) is None


def test_who_says_that_there_is_no_way_is_named() -> None:
    """An ICMP error that quotes the probe; not one that quotes another."""
    to = ONE.network_address
    probe, other = (ping_from_outside(Probed.OUTSIDE, to, UPLINK) for _ in range(2))
    gateway = IPv6Address("2001:db8:1::1")

    def error(of: Probe) -> bytes:
        body = struct.pack("!BBHI", 1, 0, 0, 0) + of.data[14:]
        head = struct.pack("!IHBB", 6 << 28, len(body), 58, 64) + gateway.packed + PROBER.packed
        return of.data[:12] + b"\x86\xdd" + head + body

    assert answer_outside(probe, error(probe)) == Answer(error=f"unreachable, says {gateway}")
    assert answer_outside(probe, error(other)) is None


def facts(vm: Attachment = VM, **more: object) -> Facts:
    """All in order, and everything answered that should be."""
    sent = [Sent(probe) for probe in probes_of(vm, LAYOUT, UPLINK)]
    for one in sent:
        if one.probe.passes:
            one.begun(0.0)
            one.answered(Answer(), 0.001)
    given: dict[str, object] = {
        "vm": vm, "carrier": True, "amiss": Differences(), "rules": (), "host": (),
        "beyond": True, "sent": tuple(sent), "stopped": {},
    }  # fmt: skip
    return Facts(**{**given, **more})  # type: ignore[arg-type]


def test_what_leaks_is_no_proof() -> None:
    """A closed VM that is reached, or one that is cut off; nor what got lost without a rule."""
    closed = facts(VARIANTS[3], stopped={"inbound": 3})
    assert proven(closed, findings(closed))
    lost = replace(closed, stopped={})
    wrong = {one.probed: one for one in findings(lost) if one.outcome is Outcome.WRONG}
    assert wrong.keys() == {Probed.OUTSIDE, Probed.OUTSIDE_IPV4, Probed.CLOSED_PORT}
    assert "no rule has stopped it" in wrong[Probed.CLOSED_PORT].detail
    for vm, reason in ((VARIANTS[3], "inbound"), (VARIANTS[2], "quarantine")):
        leaking = facts(vm, stopped={reason: 3})
        (one, *_) = [one for one in leaking.sent if one.probe.probed is Probed.OUTSIDE]
        one.answered(Answer(), 0.001)
        found = findings(leaking)
        assert not proven(leaking, found)
        assert summary(leaking, found).endswith(": outside")


def test_why_nothing_was_answered_is_said() -> None:
    """What the kernel refused, what the rules dropped, or that it is the guest's own affair."""
    silent = facts(sent=tuple(Sent(probe) for probe in probes_of(VM, LAYOUT, UPLINK)))

    def says(of: Facts) -> str:
        return next(one.detail for one in findings(of) if one.probed is Probed.GATEWAY)

    assert says(silent).endswith("no rule stopped anything: look into the guest")
    dropping = replace(silent, stopped={"source": 2, "host_chatter": 9})
    assert says(dropping).endswith("the rules dropped meanwhile: source")
    assert [one.reason for one in stopped(dropping)] == ["source"]
    silent.sent[1].refused = "Network is unreachable"
    assert says(silent).endswith("it cannot be sent (Network is unreachable)")
    cut = facts(VARIANTS[2])
    for one in cut.sent:
        one.refused = STOPPED
    assert not [one for one in findings(cut) if one.outcome is Outcome.WRONG]


def test_a_tap_that_nobody_holds_and_a_host_that_lacks_something_are_named() -> None:
    """Without a word about the host's own addresses."""
    alone = facts(carrier=False, host=("dcfx has no address fe80::dec:a/64", "more"))
    found = {one.probed: one for one in findings(alone)}
    assert found[Probed.TAP].outcome is Outcome.WRONG
    assert found[Probed.HOST].detail == "2 things are missing; the host's log says what"
    many = facts(rules=tuple(f"missing: {n}" for n in range(7)))
    assert next(o for o in findings(many) if o.probed is Probed.RULES).detail.endswith(
        "; and 2 more"
    )
