"""Whether a VM can be reached, proven by probes: asked on `vm.ask.<host>.<vm>.network`, answered.

The host compares what stands for the VM with what should, sends probes to the VM's own addresses
and to no other, and reads before and after what its rules have dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, VmId
from schemas.units import Counter
from schemas.vms import VmState

CHECK_S = 4.0
"""How long a host may take."""


class Probed(StrEnum):
    """What is looked at.

    Attributes:
        TAP: Whether the VM's interface is there, open, and held by its VMM.
        ADDRESSES: The gateway's address on it, the guest's as a neighbour, routes.
        RULES: Those of the VM, and those of the host that they rest on.
        HOST: Whether the host leads what comes for VMs to them.
        NEIGHBOUR: Whether the guest answers for its address.
        GATEWAY: Whether it answers a ping of its gateway; `GATEWAY_IPV4` likewise.
        OUTSIDE: Whether it answers a ping that comes through the uplink, and the answer gets back;
            `OUTSIDE_IPV4` likewise.
        OPEN_PORT: Whether a connection's beginning from outside gets to a port that is open.
        CLOSED_PORT: Whether it is stopped before one that is not.
        MTU: Whether it answers a ping of the largest size.
    """

    TAP = "tap"
    ADDRESSES = "addresses"
    RULES = "rules"
    HOST = "host"
    NEIGHBOUR = "neighbour"
    GATEWAY = "gateway"
    GATEWAY_IPV4 = "gateway-ipv4"
    OUTSIDE = "outside"
    OUTSIDE_IPV4 = "outside-ipv4"
    OPEN_PORT = "open-port"
    CLOSED_PORT = "closed-port"
    MTU = "mtu"


class Outcome(StrEnum):
    """What was found.

    Attributes:
        OK: It is as it should be, which may be that nothing passes.
        WRONG: It is not.
        SKIPPED: It could not be looked at, or need not be.
    """

    OK = "ok"
    WRONG = "wrong"
    SKIPPED = "skipped"


class NetworkFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        detail: What was found, for people.
        round_trip_us: How long the answer to a probe took.
    """

    probed: Probed
    outcome: Outcome
    detail: str
    round_trip_us: Counter | None = None


class StoppedPackets(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules dropped of the VM, or for it, while it was looked at; others' packets too.

    Attributes:
        reason: As in `docs/network-filter.md`.
        meaning: What it stands for.
        packets: How many.
    """

    reason: str
    meaning: str
    packets: Counter


class NetworkCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a VM can be reached.

    Attributes:
        state: The VM's; a VM that does not run is sent nothing.
        proven: The path to it and back is proven, and all that was looked at is as it should be.
        summary: In a sentence.
        quarantined: The operator has cut it off.
        addresses: Those that probes were sent to.
        sent_frames: Frames of probes; what of them reached the VM counts as received by it.
        sent_bytes: Their bytes, Ethernet headers included.
    """

    vm_id: VmId
    state: VmState
    proven: bool
    summary: str
    quarantined: bool = False
    addresses: tuple[str, ...] = ()
    findings: tuple[NetworkFinding, ...] = ()
    stopped: tuple[StoppedPackets, ...] = ()
    sent_frames: Counter = 0
    sent_bytes: Counter = 0


class NetworkQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Whose VM is to be looked at. There is nothing else to say: no address can be given."""

    customer_id: CustomerId
    vm_id: VmId


class NetworkReply(msgspec.Struct, frozen=True, kw_only=True):
    """Either what was found or the reason why it was not looked for."""

    check: NetworkCheck | None = None
    error: ErrorInfo | None = None


decode_network_query: Callable[[bytes], NetworkQuery] = decoder(NetworkQuery)
decode_network_reply: Callable[[bytes], NetworkReply] = decoder(NetworkReply)
