"""Others' pings while a VM floods: what gets lost, and how long the rest takes."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pyroute2 import IPRoute

from tests.network.cases.base import VMS, address, from_outside, message
from tests.network.flood.frames import KINDS
from tests.support import packets as p
from tests.support.fabric import GATEWAY, OUTSIDE, Fabric, Guest, inside
from tests.support.readable import readable

_PATIENCE_S = 1.0
_PAUSE_S = 0.001
_GATEWAY_EACH = 100


@dataclass(slots=True)
class Felt:
    """What the others felt.

    Attributes:
        sent: Frames of the flood.
        lost: Pings without an answer.
        pings_us: Of each ping and its answer between two VMs.
        neighbours: In the host's table, afterwards.
    """

    sent: int = 0
    lost: int = 0
    pings_us: list[float] = field(default_factory=list)
    neighbours: int = 0

    def quantile(self, part: float) -> float:
        """Of the pings, in µs."""
        ordered = sorted(self.pings_us)
        return round(ordered[int(len(ordered) * part)], 1) if ordered else float("nan")


class Flood:
    """A process of its own that sends from a VM's tap."""

    def __init__(self, fabric: Fabric, process: subprocess.Popen[str]) -> None:
        self._fabric = fabric
        self._process = process

    @contextmanager
    def of(self, kind: str, felt: Felt) -> Iterator[None]:
        """Flood with this kind for the length of the block."""
        descriptor = self._fabric.guests[VMS[KINDS[kind][0]].slot].descriptor
        self._tell(f"{descriptor} {kind}")
        if self._said() != "sending":
            raise RuntimeError("the sender did not begin")
        try:
            yield
        finally:
            felt.sent = int(self._tell("0") or 0)

    def _tell(self, words: str) -> str:
        if self._process.stdin is None:
            raise RuntimeError("the sender cannot be told anything")
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        return self._said()

    def _said(self) -> str:
        if self._process.stdout is None:
            raise RuntimeError("the sender cannot say anything")
        return self._process.stdout.readline().strip()


@contextmanager
def flooding(fabric: Fabric) -> Iterator[Flood]:
    """A sender, quiet until it is told a kind."""
    descriptors = [guest.descriptor for guest in fabric.guests.values()]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.network.flood.sender"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=descriptors,
        text=True,
    ) as process:
        try:
            yield Flood(fabric, process)
        finally:
            process.communicate()


def feel(fabric: Fabric, seconds: float, felt: Felt) -> None:
    """Ping for so long: between Carol's and Alice's second VM, from outside to Bob's, the host."""
    one, other, bob = (fabric.guests[VMS[name].slot] for name in ("carol", "alice 2", "bob"))
    asks = _ping("carol", "alice 2", p.ECHO)
    answers = _ping("alice 2", "carol", p.ECHO_REPLY)
    to_bob = p.ip6(OUTSIDE, bob.address, p.UDP, p.udp(OUTSIDE, bob.address, 1, 2, b"TO BOB!!"))
    gateway = message(
        p.ECHO, p.echo(7, b"GATEWAY!"), at="bob", source=bob.address, to=GATEWAY, hops=64
    )
    gc.disable()
    try:
        end, round_number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            round_number += 1
            before = time.perf_counter_ns()
            one.send(asks)
            there = _arrives(other, b"PINGPONG")
            other.send(answers)
            if there and _arrives(one, b"PINGPONG"):
                felt.pings_us.append((time.perf_counter_ns() - before) / 1000)
            else:
                felt.lost += 1
            fabric.send_from_outside(from_outside(to_bob))
            felt.lost += not _arrives(bob, b"TO BOB!!")
            if round_number % _GATEWAY_EACH == 0:
                bob.send(gateway)
                felt.lost += not _arrives(bob, b"GATEWAY!")
            for _ in fabric.seen_outside():
                pass
            fabric.answer()
            time.sleep(_PAUSE_S)
    finally:
        gc.enable()
    felt.neighbours = inside(fabric.netns, _neighbours)


def _ping(at: str, to: str, kind: int) -> bytes:
    body = p.echo(1, b"PINGPONG")
    return message(kind, body, at=at, source=address(at), to=address(to), hops=64)


def _arrives(guest: Guest, word: bytes) -> bool:
    while True:
        if any(word in frame for frame in guest.received()):
            return True
        if not readable([guest.descriptor], _PATIENCE_S):
            return False


def _neighbours() -> int:
    with IPRoute() as route:
        return len(list(route.get_neighbours(family=socket.AF_INET6)))
