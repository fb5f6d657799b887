"""Customers whose VMs may reach each other on a host: each of the two gives its own half."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from schemas.codec import decoder
from schemas.ids import CustomerId
from schemas.units import Counter
from schemas.vms import Timestamp

MAX_HALVES = 100
"""Customers that one customer can agree with."""

MAX_ADDED = 120
"""Halves that one customer can give in a minute: each is told to every host."""

MAX_PEER_PAGE = 1000


class PeerHalf(msgspec.Struct, frozen=True, kw_only=True):
    """What one customer says of a peering; who said so stands in the audit."""

    since: Timestamp


class CustomerPeers(msgspec.Struct, frozen=True, kw_only=True):
    """Value of bucket `network_peers`: with whom a customer agrees, written by gateways.

    A peering stands while each of the two names the other. A value is emptied and never removed, so
    that its revision only grows.

    Attributes:
        halves: By customer agreed with; whether there is such a customer does not matter.
        minute: Unix time in minutes, when the last half was given.
        added: How many were given in that minute.
    """

    halves: dict[CustomerId, PeerHalf] = msgspec.field(default_factory=dict)
    minute: Counter = 0
    added: Counter = 0


class PeerState(StrEnum):
    """How far two customers agree.

    Attributes:
        AGREED: Their VMs reach each other where they share a host.
        WAITING: You have agreed, they have not, or there is no such customer.
        ASKED: They have agreed, you have not.
        NONE: Neither has.
    """

    AGREED = "agreed"
    WAITING = "waiting"
    ASKED = "asked"
    NONE = "none"


class PeerView(msgspec.Struct, frozen=True, kw_only=True):
    """Another customer, and how far you agree.

    Attributes:
        customer_id: The other one.
        since: When the younger of the halves was given; null if there is none.
    """

    customer_id: CustomerId
    state: PeerState
    since: Timestamp | None = None


class PeerList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/network/peers`, by name; `next_cursor` is empty on the last page."""

    peers: tuple[PeerView, ...]
    next_cursor: str = ""


decode_customer_peers: Callable[[bytes], CustomerPeers] = decoder(CustomerPeers)
