"""Which verb makes sense in which state. The agent has the last word; this spares it the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.errors import RefusedError
from schemas.errors import ErrorCode
from schemas.vms import TRANSITIONS, VmState

TARGET_OF: Mapping[str, VmState] = {
    "create": VmState.CREATED,
    "boot": VmState.RUNNING,
    "resume": VmState.RUNNING,
    "restore": VmState.RUNNING,
    "reboot": VmState.RUNNING,
    "pause": VmState.PAUSED,
    "shutdown": VmState.STOPPED,
    "delete": VmState.DELETED,
}
"""Where a VM stands after a verb has succeeded; others leave it where it is."""

_SETTLES: Mapping[VmState, VmState] = {
    VmState.PENDING: VmState.CREATED,
    VmState.CREATING: VmState.CREATED,
    VmState.BOOTING: VmState.RUNNING,
    VmState.STOPPING: VmState.STOPPED,
    VmState.DELETING: VmState.DELETED,
}


def expected(state: VmState, verbs_in_flight: Sequence[str]) -> VmState:
    """Where the VM will stand when the commands before this one are done.

    An agent works on one command of a VM at a time, in order, so a verb is judged against what
    the earlier ones lead to: a boot may follow a create that is still under way.
    """
    for verb in reversed(verbs_in_flight):
        if verb in TARGET_OF:
            return TARGET_OF[verb]
    return _SETTLES.get(state, state)


def legal(verb: str, state: VmState) -> bool:
    """Whether a verb may follow a settled state."""
    match verb:
        case "boot" | "restore":
            return VmState.BOOTING in TRANSITIONS[state]
        case "resume":
            return state is VmState.PAUSED
        case "pause":
            return VmState.PAUSED in TRANSITIONS[state]
        case "shutdown" | "reboot":
            return VmState.STOPPING in TRANSITIONS[state]
        case "snapshot":
            return state in (VmState.RUNNING, VmState.PAUSED)
        case "delete" | "discard":
            # A running VM is stopped on its way; only one that is gone cannot be deleted.
            return state is not VmState.DELETED
        case _:
            return False


def check(verb: str, state: VmState, verbs_in_flight: Sequence[str]) -> None:
    """Go on only if the verb makes sense.

    Raises:
        RefusedError: ILLEGAL_TRANSITION.
    """
    if verb != "delete" and "create" in verbs_in_flight and len(verbs_in_flight) > 1:
        # The boot that belongs to a create is sent once the create is done, so another
        # command would overtake it.
        raise RefusedError(
            ErrorCode.ILLEGAL_TRANSITION,
            f"Cannot {verb} a VM that is still being created and booted.",
        )
    then = expected(state, verbs_in_flight)
    if not legal(verb, then):
        under_way = f", with {' and '.join(verbs_in_flight)} under way" if verbs_in_flight else ""
        raise RefusedError(
            ErrorCode.ILLEGAL_TRANSITION, f"Cannot {verb} a VM that is {state.value}{under_way}."
        )
