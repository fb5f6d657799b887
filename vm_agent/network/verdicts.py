"""What the facts about a VM's path come to, in words for its owner. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schemas.network_checks import NetworkFinding, Outcome, Probed, StoppedPackets
from vm_agent.network.path_check import Facts, address_of
from vm_agent.network.probing import STOPPED, Sent
from vm_agent.network.reasons import Reason

_MEANINGS = {reason.label: reason.meaning for reason in Reason}
_NOT_ITS_OWN = frozenset({Reason.HOST_CHATTER.label})
"""What the rules stop all the time, and no guest has a part in."""

_USUAL = _NOT_ITS_OWN | {Reason.MLD.label}
"""What they stop of any guest."""

_MOST_SAID = 5
_ASKED = {
    Probed.GATEWAY: "a ping of its gateway",
    Probed.GATEWAY_IPV4: "a ping of its gateway over IPv4",
    Probed.OUTSIDE: "a ping that came through the uplink",
    Probed.OUTSIDE_IPV4: "a ping over IPv4 that came through the uplink",
}
_BACK = frozenset({Probed.OUTSIDE, Probed.OUTSIDE_IPV4})
_WANTED_STOPS = (Reason.QUARANTINE.label, Reason.INBOUND.label)


def findings(facts: Facts) -> tuple[NetworkFinding, ...]:
    """All that was looked at, and what was found."""
    return tuple(_findings(facts))


def stopped(facts: Facts) -> tuple[StoppedPackets, ...]:
    """What the rules dropped meanwhile."""
    return tuple(
        StoppedPackets(reason=reason, meaning=_MEANINGS.get(reason, ""), packets=count)
        for reason, count in sorted(facts.stopped.items())
        if reason not in _NOT_ITS_OWN
    )


def proven(facts: Facts, found: Sequence[NetworkFinding]) -> bool:
    """Whether the path is proven."""
    return (
        not facts.vm.quarantined
        and _anything_answered(facts)
        and all(one.outcome is not Outcome.WRONG for one in found)
    )


def summary(facts: Facts, found: Sequence[NetworkFinding]) -> str:
    """All of it in a sentence."""
    wrong = ", ".join(one.probed.value for one in found if one.outcome is Outcome.WRONG)
    if facts.vm.quarantined:
        if wrong:
            return f"the operator has cut it off, and not all is as it should be then: {wrong}"
        return "the operator has cut it off from the network: nothing passes"
    if wrong or not _anything_answered(facts):
        return f"the path is not proven: {wrong or 'nothing was sent'}"
    probed = {one.probed for one in found if one.outcome is Outcome.OK}
    if not facts.beyond:
        return "the path is proven between host and guest; what is beyond the uplink was not tried"
    if not facts.vm.open_inbound and Probed.OPEN_PORT not in probed:
        return "the path is proven between host and guest; nobody outside may begin to talk to it"
    return "the path is proven: through the uplink to the guest, and back"


def _anything_answered(facts: Facts) -> bool:
    return any(one.answer is not None for one in facts.sent if one.probe.passes)


def _findings(facts: Facts) -> Iterator[NetworkFinding]:
    tap = facts.amiss.tap
    if not tap and not facts.carrier:
        tap = (f"nobody holds {facts.vm.tap}: its VMM has gone, or has let it go",)
    yield _compared(Probed.TAP, tap, "it is there, open, and held by its VMM")
    yield _compared(
        Probed.ADDRESSES,
        facts.amiss.addresses,
        "gateway, neighbour and routes are as they should be",
    )
    yield _compared(Probed.RULES, facts.rules, "those of the VM and of the host stand")
    # Whose addresses the host has is none of its tenants' business.
    lacking = len(facts.host) + len(facts.amiss.fabric)
    host = (f"{_missing(lacking)}; the host's log says what",) if lacking else ()
    yield _compared(Probed.HOST, host, "it leads what comes for its VMs to them")
    for one in facts.sent:
        yield _probed(facts, one)
    if not facts.beyond:
        yield NetworkFinding(
            probed=Probed.OUTSIDE,
            outcome=Outcome.SKIPPED,
            detail="the uplink is an interface of its own: no probe can come through it",
        )


def _compared(probed: Probed, amiss: Sequence[str], right: str) -> NetworkFinding:
    if not amiss:
        return NetworkFinding(probed=probed, outcome=Outcome.OK, detail=right)
    more = len(amiss) - _MOST_SAID
    said = "; ".join(amiss[:_MOST_SAID]) + (f"; and {more} more" if more > 0 else "")
    return NetworkFinding(probed=probed, outcome=Outcome.WRONG, detail=said)


def _probed(facts: Facts, one: Sent) -> NetworkFinding:
    answered = one.answer is not None and not one.answer.error
    if one.probe.passes:
        detail = _answered(facts, one) if answered else _unanswered(facts, one)
        return NetworkFinding(
            probed=one.probe.probed,
            outcome=Outcome.OK if answered else Outcome.WRONG,
            detail=detail,
            round_trip_us=one.round_trip_us if answered else None,
        )
    right, detail = _kept_out(facts, one, answered=answered)
    outcome = Outcome.OK if right else Outcome.WRONG
    return NetworkFinding(probed=one.probe.probed, outcome=outcome, detail=detail)


def _answered(facts: Facts, one: Sent) -> str:
    probe = one.probe
    match probe.probed:
        case Probed.NEIGHBOUR:
            return f"the guest answers for {address_of(facts.vm)}"
        case Probed.MTU:
            way = "through the uplink" if probe.outside else "from its gateway"
            return f"it answers a ping of {probe.packet_bytes} bytes {way}"
        case Probed.OPEN_PORT:
            taken = one.answer is not None and one.answer.taken
            what = "the guest takes a connection" if taken else "nothing listens there in the guest"
            return f"{_port(one)} is reached from outside; {what}"
        case probed:
            back = ", and its answer leaves through it" if probed in _BACK else ""
            return f"it answers {_ASKED[probed]}{back}"


def _unanswered(facts: Facts, one: Sent) -> str:
    probe = one.probe
    match probe.probed:
        case Probed.NEIGHBOUR:
            what = f"the guest does not answer for {address_of(facts.vm)}"
        case Probed.MTU:
            what = f"no answer to a ping of {probe.packet_bytes} bytes"
        case Probed.OPEN_PORT:
            what = f"no answer from {_port(one)}, which is open"
        case probed:
            what = f"no answer to {_ASKED[probed]}"
    if one.refused:
        return f"{what}: it cannot be sent ({one.refused})"
    if one.answer is not None:
        return f"{what}: {one.answer.error}"
    if dropped := _against_it(facts):
        return f"{what}; the rules dropped meanwhile: {', '.join(dropped)}"
    if probe.probed is Probed.NEIGHBOUR and facts.vm.addresses[0].prefixlen != 128:
        return f"{what}; it may have others in its /64"
    return f"{what}, and no rule stopped anything: look into the guest"


def _kept_out(facts: Facts, one: Sent, *, answered: bool) -> tuple[bool, str]:
    """Whether what is to be stopped was, and what to say."""
    probe = one.probe
    what = _port(one) if probe.probed is Probed.CLOSED_PORT else _asking(one)
    if answered:
        return False, f"{what} gets through, and should not"
    if one.refused == STOPPED:
        return True, f"{what} is stopped, as it should be: {_why(facts)}"
    if one.answer is not None:
        return False, f"{what} is not stopped by a rule, and gets nowhere: {one.answer.error}"
    if any(reason in facts.stopped for reason in _WANTED_STOPS):
        return True, f"{what} is stopped, as it should be: {_why(facts)}"
    return False, f"{what} is not answered, and no rule has stopped it"


def _why(facts: Facts) -> str:
    return (Reason.QUARANTINE if facts.vm.quarantined else Reason.INBOUND).label


def _against_it(facts: Facts) -> list[str]:
    """Reasons for which more was dropped than had to be."""
    wanted = {_why(facts): sum(not one.probe.passes for one in facts.sent)}
    return [
        reason
        for reason, count in sorted(facts.stopped.items())
        if reason not in _USUAL and count > wanted.get(reason, 0)
    ]


def _asking(one: Sent) -> str:
    return _ASKED.get(one.probe.probed, "a question about its address")


def _port(one: Sent) -> str:
    return f"tcp/{one.probe.port}"


def _missing(count: int) -> str:
    return "one thing is missing" if count == 1 else f"{count} things are missing"
