"""Sends cases from taps and the uplink, and looks everywhere for what became of them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tests.network.cases.base import (
    HERE,
    HOST,
    UNATTACHED,
    UPLINK,
    VMS,
    Case,
    Step,
    datagram,
    from_outside,
)
from tests.support import packets as p
from tests.support.fabric import OUTSIDE, PLAN, Fabric, fabric
from tests.support.readable import readable
from vm_agent.network.drops import Drops
from vm_agent.network.filter import Filter
from vm_agent.network.nft import Nft
from vm_agent.network.reasons import Reason

REPORT = Path(__file__).resolve().parents[2] / ".decisec" / "packet-suite.json"

_PATIENCE_S = 5.0
_SENTINEL = b"SENTINEL"
_HOSTS_OWN = {IPv6Address(a).packed for a in ("fe80::1", "fe80::1:1", "fe80::dec:a", "fe80::dec:b")}
_ROUTER = IPv6Address("fe80::1").packed
_LIMITS = ("control", "asking", "nd_learning", "nd_source")
SENDER, _FAR = "alice 1", IPv6Address("2001:db8:ffff::5e")
# What got through the filter to the host's own sockets and tables, seen behind it.
_OBSERVER = """
table inet observer {
	set seen { type ifname; flags dynamic; size 1024; counter; }
	chain input {
		type filter hook input priority 300; policy accept;
		iifname "vm*" update @seen { iifname }
	}
}
table arp observer {
	set seen { type ifname; flags dynamic; size 1024; counter; }
	chain input {
		type filter hook input priority 300; policy accept;
		iifname "vm*" update @seen { iifname }
	}
}
"""


class Sender(Protocol):
    """A VM that sends the frames that it is told, and shows those that come to it."""

    def send(self, frame: bytes, header: bytes = ...) -> None:
        """Send a frame; OSError where the header of virtio or the frame is refused."""

    def received(self) -> Iterator[bytes]:
        """Frames that have come since it was asked last."""

    def waits(self, patience_s: float) -> bool:
        """Whether a frame comes for it in time."""


@dataclass(slots=True)
class Sight:
    """What was seen after a step: frames by place, and packets that the host itself took."""

    frames: dict[str, list[bytes]] = field(default_factory=dict)
    host: int = 0
    refused: bool = False
    counted: dict[tuple[str, Reason], int] = field(default_factory=dict)

    def places(self, mark: bytes) -> set[str]:
        """Where something that holds the mark was seen."""
        found = {place for place, seen in self.frames.items() if any(mark in f for f in seen)}
        return found | ({HOST} if self.host else set())


class Suite:
    """Runs cases in a fabric, with a filter or without.

    Args:
        fabric: With the taps of all `VMS`.
        nft: A session in it.
        rules: The filter that is in force; None if none is.
        sender: Who sends as `SENDER`; None for the tap's descriptor.
        stack: The sender is a guest with a stack of its own, which answers what comes to it from
            outside, and reports what it listens to.
    """

    def __init__(
        self,
        fabric: Fabric,
        nft: Nft,
        rules: Filter | None,
        sender: Sender | None = None,
        *,
        stack: bool = False,
    ) -> None:
        self._fabric = fabric
        self._stack = stack
        self._nft = nft
        self._rules = rules
        self._guests: dict[str, Sender] = {
            name: fabric.guests[vm.slot] for name, vm in VMS.items() if vm.slot in fabric.guests
        }
        if sender is not None:
            self._guests[SENDER] = sender
        self._round = 0
        self._before = Drops()
        self._host_before = 0

    async def prepare(self) -> None:
        """Count what reaches the host's own sockets."""
        await self._nft.run(_OBSERVER)
        self._before = await self._drops()
        self._host_before = await self._host_count()

    async def wrong(self, case: Case) -> str | None:
        """Run a case; what came out otherwise than it should, or None."""
        await self._rest()
        for number, step in enumerate(case.steps, 1):
            sight = await self._send(step)
            if problem := _judge(step, sight):
                return f"{case.category}: {case.name}, step {number}: {problem}"
        return None

    async def gets_through(self, case: Case) -> bool:
        """Run an attack; whether any of it was seen where it should not be."""
        for step in case.steps:
            sight = await self._send(step)
            if not step.to and sight.places(step.mark) - {step.at}:
                return True
        return False

    async def _rest(self) -> None:
        """Let rate limits forget the cases before."""
        if self._rules is not None:
            sets = ["netdev decisec control"]
            sets += [f"inet decisec {name}" for name in _LIMITS]
            await self._nft.run("\n".join(f"flush set {name}" for name in sets))

    async def _send(self, step: Step) -> Sight:
        self._drain()
        sight = Sight()
        for _ in range(step.times):
            if step.at == UPLINK:
                self._fabric.send_from_outside(step.frame)
            else:
                try:
                    self._guests[step.at].send(step.frame, step.header)
                except OSError:
                    sight.refused = True
        sight.frames = self._collect()
        if self._stack and step.at == UPLINK:
            sight.frames.pop(UPLINK, None)
        host_before, self._host_before = self._host_before, await self._host_count()
        sight.host = self._host_before - host_before
        before, self._before = self._before, await self._drops()
        for interface, reasons in self._before.by_tap.items():
            for reason, count in reasons.items():
                more = count.packets - before.of(interface, reason)
                # The host, and whoever is at its uplink, talk when they feel like it.
                chatter = reason is Reason.HOST_CHATTER
                chatter |= self._stack and reason is Reason.MLD is not step.reason
                chatter |= reason is Reason.HOST is not step.reason and interface == PLAN.uplink
                if more and not chatter:
                    sight.counted[interface, reason] = more
        return sight

    async def _drops(self) -> Drops:
        return await self._rules.drops() if self._rules is not None else Drops()

    async def _host_count(self) -> int:
        total = 0
        for family in ("inet", "arp"):
            (listed,) = await self._nft.read(f"list set {family} observer seen")
            elements = listed["set"].get("elem", [])
            total += sum(element["elem"]["counter"]["packets"] for element in elements)
        return total

    def _drain(self) -> None:
        for guest in self._guests.values():
            for _ in guest.received():
                pass
        for _ in self._fabric.seen_outside():
            pass

    def _collect(self) -> dict[str, list[bytes]]:
        """All frames that came before a sentinel that takes the same way as they."""
        self._round += 1
        word = _SENTINEL + self._round.to_bytes(8, "big")
        frames: dict[str, list[bytes]] = {name: [] for name in (*self._guests, UPLINK)}
        sender, wire = self._guests[SENDER], self._fabric
        sender.send(datagram(word, to=_FAR))
        _until(word, frames[UPLINK], wire.seen_outside, lambda s: bool(readable([wire.wire], s)))
        # A question to the host's service is there by now.
        wire.answer()
        packet = p.ip6(OUTSIDE, HERE, p.UDP, p.udp(OUTSIDE, HERE, 9, 9, word))
        wire.send_from_outside(from_outside(packet))
        _until(word, frames[SENDER], sender.received, sender.waits)
        frames[UPLINK] += wire.seen_outside()
        for name, guest in self._guests.items():
            frames[name] += guest.received()
        return {
            name: [frame for frame in seen if _SENTINEL not in frame and not _chatter(frame)]
            for name, seen in frames.items()
            if seen
        }


def _until(
    word: bytes,
    seen: list[bytes],
    more: Callable[[], Iterable[bytes]],
    waits: Callable[[float], bool],
) -> None:
    while not any(word in frame for frame in seen):
        if not waits(_PATIENCE_S):
            raise TimeoutError("a datagram that has to pass did not")
        seen += more()


def _chatter(frame: bytes) -> bool:
    """What the host says of its own accord: advertisements to guests, asking on the uplink."""
    own = frame[22:38] in _HOSTS_OWN
    if not own or frame[20] == p.HOP_BY_HOP:
        return own
    kinds = {p.RS, p.RA, p.NS} | ({p.NA} if frame[22:38] != _ROUTER else set())
    return frame[20] == p.ICMP6 and frame[54] in kinds


@asynccontextmanager
async def guarded(*, filtered: bool = True) -> AsyncIterator[tuple[Fabric, Nft, Filter | None]]:
    """A fabric with all VMs and their rules, but for those who are to have none."""
    with fabric(list(VMS.values())) as place, OneCpu():
        nft = Nft(place.netns)
        try:
            rules = Filter(nft) if filtered else None
            if rules is not None:
                await rules.install(PLAN)
                for name, vm in VMS.items():
                    if name not in UNATTACHED:
                        await rules.add(vm)
            yield place, nft, rules
        finally:
            await nft.close()


@asynccontextmanager
async def suite(*, filtered: bool) -> AsyncIterator[Suite]:
    """A suite in such a fabric."""
    async with guarded(filtered=filtered) as (place, nft, rules):
        made = Suite(place, nft, rules)
        await made.prepare()
        yield made


def _judge(step: Step, sight: Sight) -> str | None:
    places = sight.places(step.mark)
    counted = {reason: more for (_, reason), more in sight.counted.items()}
    if step.times > 1:
        if step.reason is None or not counted.get(step.reason):
            return f"nothing was dropped as {step.reason}, but {_words(sight)}"
        return None
    if places != step.to:
        return f"seen at {sorted(places) or 'no place'}, not {sorted(step.to)}; {_words(sight)}"
    if step.to:
        return f"passed, and {_words(sight)}" if counted else None
    if step.reason is None:
        return f"the kernel was to drop it, but {_words(sight)}" if counted else None
    if counted != {step.reason: 1}:
        return f"was to be dropped as {step.reason.label}, but {_words(sight)}"
    stray = {place for place in sight.frames if sight.frames[place]}
    return f"something was seen at {sorted(stray)}" if stray else None


def _words(sight: Sight) -> str:
    drops = ", ".join(f"{tap} {reason.label} {n}" for (tap, reason), n in sight.counted.items())
    return f"dropped: {drops or 'nothing'}" + (", refused by the tap" if sight.refused else "")


def write_report(cases: Sequence[Case], as_expected: int, hits: int) -> None:
    """Leave the figures for whoever asks, beside those of real guests."""
    _report({**_figures(cases, as_expected), "negative_control_hits": hits})


def write_guest_report(guest: str, cases: Sequence[Case], as_expected: int) -> None:
    """The same about the cases that a real guest has sent."""
    _report({"guests": {guest: _figures(cases, as_expected)}})


def _figures(cases: Sequence[Case], as_expected: int) -> dict[str, object]:
    attacks = sum(case.attack for case in cases)
    return {"cases": len(cases), "attacks": attacks, "as_expected": as_expected}


def _report(figures: dict[str, Any]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    with REPORT.open("a+b") as file:
        # Other tests may do the same in other processes.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known: dict[str, Any] = msgspec.json.decode(file.read() or b"{}")
        for name, value in figures.items():
            both = isinstance(value, dict) and isinstance(known.get(name), dict)
            known[name] = {**known[name], **value} if both else value
        file.truncate(0)
        file.write(msgspec.json.format(msgspec.json.encode(known)) + b"\n")


class OneCpu:
    """Keeps this thread on one CPU, so that frames that wait for a softirq stay in order."""

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        with suppress(OSError):
            os.sched_setaffinity(0, {min(self._before)})

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)
