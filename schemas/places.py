"""What an operator asks of placement, on `place.ask.explain`, and the answer.

Core NATS, asked of whichever gateway answers first; nothing is placed, held or written. Customers
may not ask: the answer names hosts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.hosts import Resources
from schemas.ids import CustomerId, HostId, PoolId
from schemas.vms import VmSpec
from schemas.wishes import PlacedWord

MAX_VERDICTS = 2000
"""Hosts that an answer lists at most: some 400 KiB."""


class PlaceQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VM of this spec would be placed now.

    Attributes:
        spec: What it needs and wishes.
        customer_id: Whose: VMs of theirs may be to be apart from. None for nobody's.
        pool: Which hosts; None for the customer's own pool.
    """

    spec: VmSpec
    customer_id: CustomerId | None = None
    pool: PoolId | None = None


class HostVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What placement thinks of one host.

    Attributes:
        reason: Why it cannot take the VM; empty if it can.
        free: What is left of its heartbeat's `free` after `in_flight`; none of it below zero.
        in_flight: What was placed there, by any gateway, and is not in its heartbeat yet.
        vms: VMs that are there, and on their way there.
        peers: Those that this one is to be apart from.
    """

    host_id: HostId
    reason: str = ""
    free: Resources
    in_flight: Resources
    vms: int
    peers: int = 0


class PlaceExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM would be placed.

    Attributes:
        host_id: The host that it would get, None for none.
        why: Why that one, as in `Operation.placed`.
        error: What its customer would be told if there is none.
        pool: Hosts of this pool,
        region: and this region were looked at.
        strategy: `spread` or `pack`.
        hosts: The pool's hosts: those that can take it in the order in which they would be taken,
            then the others.
        left_out: How many hosts of the pool are not listed.
        elsewhere: How many hosts are of other pools or regions.
    """

    host_id: HostId | None = None
    why: PlacedWord = ""
    error: ErrorInfo | None = None
    pool: PoolId
    region: str
    strategy: str
    hosts: tuple[HostVerdict, ...] = ()
    left_out: int = 0
    elsewhere: int = 0


class PlaceReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of these is set."""

    explanation: PlaceExplanation | None = None
    error: ErrorInfo | None = None


decode_place_question: Callable[[bytes], PlaceQuestion] = decoder(PlaceQuestion)
decode_place_reply: Callable[[bytes], PlaceReply] = decoder(PlaceReply)
